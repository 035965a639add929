// wgmma: products of a warpgroup, which own their registers from the issue to the wait.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "cuda/emulator/agenda.h"
#include "cuda/emulator/fragments.h"
#include "cuda/emulator/matrix_unit.h"
#include "cuda/emulator/origin.h"
#include "cuda/emulator/race_checks.h"

namespace flashmla::emulator {

struct Block;
struct Thread;

/// What all threads of a warpgroup must agree on.
struct ProductForm {
  OperandType type = OperandType::kBf16;
  int registers = 0;  // of accumulators, in each thread
  bool a_in_registers = false;
  std::uint64_t a = 0;  // descriptor
  std::uint64_t b = 0;
  bool a_transposed = false;
  bool b_transposed = false;
  bool accumulate = false;

  friend bool operator==(const ProductForm&, const ProductForm&) = default;
};

/// The products of one thread, in the order of their issue.
class ThreadProducts {
 public:
  std::uint32_t issued = 0;
  bool fenced = false;

  void commit() { issued_before_commit_.push_back(issued); }
  /// Groups are numbered from 1.
  Time current_group() const { return static_cast<Time>(issued_before_commit_.size()) + 1; }
  /// How many products the first `groups` groups have.
  std::uint32_t products_of(Time groups) const {
    return groups <= 0 ? 0 : issued_before_commit_[static_cast<std::size_t>(groups) - 1];
  }

  /// These registers belong to the current group. Nobody may write them, or read them unless `may_be_read`.
  void own(const void* registers, std::size_t bytes, bool may_be_read, const Location& place);
  void give_back(Time groups);

  bool owns_registers() const { return !owned_.empty(); }
  /// Fails if this access of the thread is to registers of a product.
  void check_access(const Thread& thread, const void* address, std::size_t bytes, bool writes,
                    const void* return_address) const;
  void check_exit(const Thread& thread) const;

 private:
  struct Registers {
    std::uintptr_t begin;
    std::size_t bytes;
    bool may_be_read;
    Location place;
    Time group;
  };

  std::vector<std::uint32_t> issued_before_commit_;
  std::vector<Registers> owned_;
};

class Warpgroup final : public Agent {
 public:
  static constexpr std::uint32_t kThreads = 128;

  /// The part of one thread in its next product. `a` has four registers, or is null.
  void issue(Thread& thread, const ProductForm& form, float* d, const std::uint32_t* a,
             const Location& place);
  /// Suspends the thread until all but its last `pending` groups are carried out.
  void wait(Thread& thread, int pending, const Location& place);
  void perform_one(Random& random) override;

 private:
  /// A tile of 64 rows, taken out of the registers while products work on it.
  struct Accumulators {
    int registers = 0;
    std::array<float*, kThreads> at = {};
    std::vector<float> values;
    int products = 0;  // to be carried out

    float& at_element(const Element& element);
  };
  struct Product {
    ProductForm form;
    Location place;
    std::uint32_t arrived = 0;
    std::array<std::uint32_t, 4> arrived_in_warp = {};
    std::shared_ptr<Accumulators> accumulators;
    // Operand A as it was at the issue, and where it was.
    std::array<std::array<std::uint32_t, 4>, kThreads> a = {};
    std::array<const std::uint32_t*, kThreads> a_at = {};
  };

  Product& next_product_of(Thread& thread, const ProductForm& form, const float* d, const Location& place);
  std::shared_ptr<Accumulators> accumulators_at(std::uint32_t thread, const float* d, int registers);
  void take_accumulators(Thread& thread, Product& product, float* d);
  void check_operands(Thread& thread, const Product& product, std::uint32_t warp);
  void on_complete_issue(Thread& thread);
  bool can_perform() const { return !pending_.empty() && pending_.front()->arrived == kThreads; }
  void perform_first();
  void gather_operands(const Product& product, std::uint16_t* a, std::uint16_t* b) const;
  void give_back(const Product& product);

  Block* block_ = nullptr;
  std::uint32_t first_thread_ = 0;
  Owner owner_ = kNoOwner;
  std::deque<std::unique_ptr<Product>> pending_;
  std::uint32_t performed_ = 0;
  std::vector<Thread*> waiting_;
};

}  // namespace flashmla::emulator
