// Mutated arguments of every operation: an Error or a normal return, never a crash. Worth most under
// AddressSanitizer and UBSan.
//
// FLASHMLA_FUZZ_ITERATIONS: how many argument sets. FLASHMLA_FUZZ_SEED: seed of the first one; the
// others follow by counting up.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "valid_operations.h"

namespace flashmla {
namespace {

using cases::Random;

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* value = std::getenv(variable);
  return value == nullptr ? otherwise : std::stoull(value);
}

/// A view and all the memory around it that it may be changed to.
struct Slot {
  std::string_view name, shape;
  Role role = Role::kInput;
  TensorView view;
  std::vector<std::byte> memory;
  bool mutated = false;

  /// Moves the elements to memory of its own, with `slack` bytes before and behind them.
  void own(std::int64_t slack) {
    const auto [low, high] = extent();
    memory.assign(static_cast<std::size_t>(high - low + 2 * slack) + 64, std::byte{0x3c});
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    std::byte* begin =
        memory.data() + (64 - address % 64) % 64 + (slack + 63) / 64 * 64 - (slack > 0 ? 64 : 0);
    if (high > low) std::memcpy(begin, view.as<std::byte>() + low, static_cast<std::size_t>(high - low));
    view.data = begin - low;
  }

  /// Bytes that the elements occupy, from `data`; for fp8_model1, whose scales lie behind the rows, too.
  std::pair<std::int64_t, std::int64_t> extent() const {
    std::int64_t low = 0;
    std::int64_t high = 0;
    for (int dim = 0; dim < view.ndim; ++dim) {
      if (view.shape[std::size_t(dim)] < 1) return {0, 0};
      const std::int64_t reach = (view.shape[std::size_t(dim)] - 1) * view.strides[std::size_t(dim)];
      (reach < 0 ? low : high) += reach;
    }
    const auto size = static_cast<std::int64_t>(size_of(view.type));
    return {low * size, (high + 1) * size};
  }

  bool inside() const {
    const auto [low, high] = extent();
    if (low == high) return true;
    const auto* begin = view.as<const std::byte>();
    return begin != nullptr && begin + low >= memory.data() && begin + high <= memory.data() + memory.size();
  }
};

std::vector<std::string> symbols_of(std::string_view shape) {
  std::vector<std::string> symbols;
  std::istringstream stream{std::string(shape.substr(1, shape.size() - 2))};
  for (std::string symbol; stream >> symbol;) symbols.push_back(symbol.substr(0, symbol.find('+')));
  return symbols;
}

/// An operation whose tensors lie in memory that the test knows the bounds of.
template <class Op>
class Subject {
 public:
  Subject(const Op& valid, Random& random) : op_(valid), random_(random) {
    slots_.reserve(32);  // list views and slots keep their place
    for (const auto& field : Op::fields().tensors) {
      if (const auto* one = std::get_if<TensorView Op::*>(&field.member)) {
        add(field, op_.**one);
      } else {
        for (const TensorView& view : op_.*std::get<std::span<const TensorView> Op::*>(field.member)) {
          add(field, view);
        }
      }
    }
  }

  void mutate() {
    const std::int64_t kind = random_.between(0, 11);
    if (kind == 0) return mutate_scalar();
    if (kind <= 2) return mutate_integers();
    if (refused_) return;  // another change could make a call valid that points anywhere
    Slot& slot = slots_[static_cast<std::size_t>(random_.between(0, std::int64_t(slots_.size()) - 1))];
    const TensorView before = slot.view;
    const bool was_mutated = slot.mutated;
    refused_ = mutate_view(slot.view, slot.shape, kind);
    slot.mutated = true;
    // What the library must refuse may point anywhere; everything else must stay in its memory, and small.
    if (refused_ || (small(slot.view) && slot.inside())) return;
    slot.view = before;
    slot.mutated = was_mutated;
  }

  /// The operation as mutated; valid until the next call.
  const Op& op() {
    std::size_t at = 0;
    lists_.clear();
    lists_.reserve(4);
    for (const auto& field : Op::fields().tensors) {
      if (const auto* one = std::get_if<TensorView Op::*>(&field.member)) {
        op_.** one = slots_[at++].view;
        continue;
      }
      auto& list = lists_.emplace_back();
      for (; at < slots_.size() && slots_[at].name == field.name; ++at) list.push_back(slots_[at].view);
      op_.*std::get<std::span<const TensorView> Op::*>(field.member) = list;
    }
    return op_;
  }

  /// All memory that the operation may write.
  std::vector<std::vector<std::byte>> written_memory() const {
    std::vector<std::vector<std::byte>> result;
    for (const Slot& slot : slots_) {
      if (slot.role == Role::kOutput || slot.role == Role::kUpdate) result.push_back(slot.memory);
    }
    return result;
  }

 private:
  template <class Field>
  void add(const Field& field, const TensorView& view) {
    Slot& slot = slots_.emplace_back();
    slot.name = field.name;
    slot.shape = field.shape;
    slot.role = field.role;
    slot.view = view;
    if (view.given()) slot.own(random_.chance(0.5) ? 0 : 4096);
  }

  static bool small(const TensorView& view) {
    std::int64_t count = 1;
    for (int dim = 0; dim < view.ndim && dim < kMaxDims; ++dim) {
      const std::int64_t extent = view.shape[std::size_t(dim)];
      if (extent > 4096) return false;
      count *= std::max<std::int64_t>(extent, 1);
    }
    return count <= 1 << 16;
  }

  std::int64_t hostile() {
    const std::int64_t values[] = {0,     1,         -1,           2,        3, 5, 8, -8, 16, 100, 1000,
                                   65536, 1LL << 31, -(1LL << 31), 1LL << 40};
    return values[random_.between(0, 14)];
  }

  std::int64_t hostile_64() {
    const std::int64_t most = std::numeric_limits<std::int64_t>::max();
    const std::int64_t values[] = {most, -most - 1, most / 2, 1LL << 62};
    return random_.chance(0.3) ? values[random_.between(0, 3)] : hostile();
  }

  /// Whether another tensor that nobody changed has this symbol, so that another size must be refused.
  bool is_bound_elsewhere(const std::string& symbol, std::string_view shape) const {
    if (symbol.find_first_not_of("0123456789") == std::string::npos) return true;
    for (const Slot& slot : slots_) {
      if (slot.mutated || !slot.view.given() || slot.shape == shape) continue;
      for (const std::string& other : symbols_of(slot.shape)) {
        if (other == symbol) return true;
      }
    }
    return false;
  }

  /// Changes one thing about a view; true if the library must refuse what came out.
  bool mutate_view(TensorView& view, std::string_view shape, std::int64_t kind) {
    if (view.ndim < 1 || std::size_t(view.ndim) != symbols_of(shape).size()) return false;
    const auto dim = static_cast<std::size_t>(random_.between(0, view.ndim - 1));
    switch (kind) {
      case 3:
        return mutate_type(view);
      case 4:
        view.data = random_.chance(0.5) ? nullptr : view.as<char>() + random_.between(-17, 17);
        return false;
      case 5:
        view.device = {DeviceType::kCuda, static_cast<std::int32_t>(random_.between(0, 2))};
        return true;
      case 6:
        view = {};
        return false;
      case 7: {
        const std::int64_t ndim = random_.between(-1, 7);
        const bool other = ndim != view.ndim;
        view.ndim = static_cast<std::int32_t>(ndim);
        return other;
      }
      case 8:
      case 9: {
        const std::int64_t old = view.strides[dim];
        const std::int64_t near[] = {old * 2, old + 8, old - 8, -old, 0, 1, old + 1};
        view.strides[dim] = random_.chance(0.7) ? near[random_.between(0, 6)] : hostile();
        return false;
      }
      default: {
        const std::int64_t old = view.shape[dim];
        const bool bound = is_bound_elsewhere(symbols_of(shape)[dim], shape);
        const std::int64_t next = random_.chance(0.6) ? old + random_.between(-2, 2)
                                  : bound             ? hostile_64()
                                                      : hostile();
        view.shape[dim] = next;
        return (bound && next != old) || next < 0;
      }
    }
  }

  /// Another type of no more bytes stays in its memory; a larger one is looked at by `inside`.
  bool mutate_type(TensorView& view) {
    const DataType types[] = {DataType::kBf16, DataType::kF16, DataType::kF32,
                              DataType::kU8,   DataType::kI32, DataType::kI64};
    view.type = types[random_.between(0, 5)];
    return false;
  }

  /// Arbitrary values in an integer tensor that is read.
  void mutate_integers() {
    std::vector<Slot*> integers;
    for (Slot& slot : slots_) {
      const bool read = slot.role == Role::kInput || slot.role == Role::kOptional;
      const bool integer = slot.view.type == DataType::kI32 || slot.view.type == DataType::kI64;
      if (read && integer && slot.view.given() && !slot.memory.empty()) integers.push_back(&slot);
    }
    if (integers.empty()) return;
    Slot& slot = *random_.pick(integers);
    const std::int64_t count = random_.between(1, 8);
    const std::int64_t words = static_cast<std::int64_t>(slot.memory.size()) / 4;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t value =
          random_.chance(0.5) ? hostile_64() : static_cast<std::int64_t>(random_.next());
      std::memcpy(&slot.memory[static_cast<std::size_t>(random_.between(0, words - 1)) * 4], &value, 4);
    }
  }

  void mutate_scalar() {
    const auto scalars = Op::fields().scalars;
    if (scalars.empty()) return;
    const auto& field =
        scalars[static_cast<std::size_t>(random_.between(0, std::int64_t(scalars.size()) - 1))];
    if (const auto* flag = std::get_if<bool Op::*>(&field.member)) {
      op_.** flag = !(op_.**flag);
    } else if (const auto* number = std::get_if<std::int64_t Op::*>(&field.member)) {
      op_.** number = hostile_64();
    } else {
      const float infinity = std::numeric_limits<float>::infinity();
      const float values[] = {0.0f, -1.0f, 1e30f, -1e-30f, infinity, -infinity, infinity - infinity, 0.5f};
      op_.*std::get<std::optional<float> Op::*>(field.member) = values[random_.between(0, 7)];
    }
  }

  Op op_;
  Random& random_;
  bool refused_ = false;
  std::vector<Slot> slots_;
  std::vector<std::vector<TensorView>> lists_;
};

/// How often calls ended in which way.
struct Outcomes {
  int returned = 0;
  int refused = 0;
};

Execution random_execution(Random& random) {
  const std::string_view backends[] = {"", "cpu", "reference", "reference", "cpu", "none"};
  Execution on;
  on.backend = backends[random.between(0, random.chance(0.1) ? 5 : 4)];
  on.threads = static_cast<int>(random.chance(0.05) ? -1 : random.between(0, 3));
  on.check_indices = random.chance(0.2);
  return on;
}

template <class Op>
void fuzz_one(const Valid<Op>& valid, Random& random, Outcomes& outcomes) {
  Subject<Op> subject(valid.op, random);
  for (std::int64_t count = random.between(1, 3); count > 0; --count) subject.mutate();
  const Op& op = subject.op();
  Execution on = random_execution(random);
  const auto before = subject.written_memory();
  try {
    std::vector<std::byte> workspace(workspace_bytes(op, on));
    on.workspace = workspace.data();
    on.workspace_size = workspace.size() - (random.chance(0.05) && !workspace.empty() ? 1 : 0);
    run(op, on);
    ++outcomes.returned;
  } catch (const Error& error) {
    ++outcomes.refused;
    EXPECT_TRUE(std::string_view(error.what()).starts_with(Op::fields().operation)) << error.what();
    EXPECT_TRUE(subject.written_memory() == before) << "written before this error: " << error.what();
  }
}

TEST(MutatedArguments, GiveAnErrorOrAResult) {
  const std::uint64_t iterations = number_from("FLASHMLA_FUZZ_ITERATIONS", 10000);
  const std::uint64_t seed = number_from("FLASHMLA_FUZZ_SEED", 1);
  Operations::for_each([&]<class Op>() {
    const Valid<Op> valid;
    Outcomes outcomes;
    for (std::uint64_t i = 0; i < (iterations + 9) / 10; ++i) {
      Random random(seed + i);
      SCOPED_TRACE("FLASHMLA_FUZZ_ITERATIONS=1 FLASHMLA_FUZZ_SEED=" + std::to_string(seed + i));
      fuzz_one(valid, random, outcomes);
    }
    if (iterations >= 1000) {
      EXPECT_GT(outcomes.returned, 0) << Op::fields().operation;
      EXPECT_GT(outcomes.refused, 0) << Op::fields().operation;
    }
  });
}

}  // namespace
}  // namespace flashmla
