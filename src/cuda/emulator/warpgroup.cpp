// Carries out products in order, and watches over the registers that they own.
#include "cuda/emulator/warpgroup.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <utility>

#include "cuda/emulator/failure.h"
#include "cuda/emulator/fragments.h"
#include "cuda/emulator/instructions.h"
#include "cuda/emulator/scheduler.h"
#include "cuda/emulator/shared_memory.h"
#include "cuda/emulator/wgmma_operand.h"

namespace flashmla::emulator {
namespace {

constexpr int kRows = 64;
constexpr int kDepth = 16;
constexpr int kMaxColumns = 256;
constexpr std::uint32_t kChunkBytes = 16;
constexpr std::uint32_t kChunkElements = 8;

/// A NaN that no operation gives: registers of a product hold it until the product is over.
constexpr std::uint32_t kPoison = 0xffc0dead;

int columns_of(const ProductForm& form) { return 2 * form.registers; }

Major major_of(bool transposed) { return transposed ? Major::kMn : Major::kK; }

/// Copies an operand out of shared memory: element (row, k) goes to `out[row * row_step + k * k_step]`.
void gather(const std::byte* shared, std::uint64_t descriptor, bool transposed, int rows,
            std::size_t row_step, std::size_t k_step, std::uint16_t* out) {
  const Major major = major_of(transposed);
  const std::size_t step = transposed ? row_step : k_step;
  for_each_chunk(decode_descriptor(descriptor), major, static_cast<std::uint32_t>(rows), kDepth,
                 [&](std::uint32_t offset, std::uint32_t row, std::uint32_t k) {
                   std::uint16_t chunk[kChunkElements];
                   std::memcpy(chunk, shared + offset, kChunkBytes);
                   std::uint16_t* const to = out + row * row_step + k * k_step;
                   for (std::size_t i = 0; i < kChunkElements; ++i) to[i * step] = chunk[i];
                 });
}

}  // namespace

// --- one thread ---

void ThreadProducts::own(const void* registers, std::size_t bytes, bool may_be_read, const Location& place) {
  const auto begin = reinterpret_cast<std::uintptr_t>(registers);
  const auto known = std::ranges::find(owned_, begin, &Registers::begin);
  if (known != owned_.end()) {
    known->group = current_group();
    known->place = place;
  } else {
    owned_.push_back({begin, bytes, may_be_read, place, current_group()});
  }
}

void ThreadProducts::give_back(Time groups) {
  std::erase_if(owned_, [&](const Registers& r) { return r.group <= groups; });
}

void ThreadProducts::check_access(const Thread& thread, const void* address, std::size_t bytes, bool writes,
                                  const void* return_address) const {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  for (const Registers& r : owned_) {
    if (at + bytes <= r.begin || at >= r.begin + r.bytes || (r.may_be_read && !writes)) continue;
    fail(thread, describe(source_line_of(return_address)),
         std::string(writes ? "writes" : "reads") + " registers of the product at " + describe(r.place) +
             " before wgmma_wait");
  }
}

void ThreadProducts::check_exit(const Thread& thread) const {
  if (owned_.empty()) return;
  fail(thread, owned_.front().place, "this thread ends without wgmma_wait for this product");
}

// --- issue ---

void Warpgroup::issue(Thread& thread, const ProductForm& form, float* d, const std::uint32_t* a,
                      const Location& place) {
  if (!thread.products.fenced) fail(thread, place, "a product without wgmma_fence before it");
  block_ = thread.block;
  first_thread_ = thread.index / kThreads * kThreads;
  if (owner_ == kNoOwner) owner_ = add_engine(thread, "wgmma");
  Product& product = next_product_of(thread, form, d, place);
  take_accumulators(thread, product, d);
  const std::uint32_t number = thread.index % kThreads;
  if (a != nullptr) {
    std::copy_n(a, 4, product.a[number].begin());
    product.a_at[number] = a;
    thread.products.own(a, 4 * sizeof(*a), true, place);
  }
  ++thread.products.issued;
  const std::uint32_t warp = number / kWarpSize;
  if (++product.arrived_in_warp[warp] == kWarpSize) check_operands(thread, product, warp);
  if (++product.arrived == kThreads) on_complete_issue(thread);
}

Warpgroup::Product& Warpgroup::next_product_of(Thread& thread, const ProductForm& form, const float* d,
                                               const Location& place) {
  if (first_thread_ + kThreads > block_->size)
    fail(thread, place, "wgmma in a warpgroup of less than 128 threads");
  const std::uint32_t number = thread.products.issued - performed_;
  if (number == pending_.size()) {
    auto product = std::make_unique<Product>();
    product->form = form;
    product->place = place;
    product->accumulators = accumulators_at(thread.index % kThreads, d, form.registers);
    ++product->accumulators->products;
    pending_.push_back(std::move(product));
  }
  Product& product = *pending_[number];
  if (product.form != form || product.place.line() != place.line()) {
    fail(thread, place,
         "this product is another one, or has other descriptors, than that of other threads of the warpgroup "
         "at " +
             describe(product.place));
  }
  return product;
}

float& Warpgroup::Accumulators::at_element(const Element& element) {
  const int columns = 2 * registers;
  return values[static_cast<std::size_t>(element.row) * static_cast<std::size_t>(columns) +
                static_cast<std::size_t>(element.column)];
}

// Products on the same registers follow each other without a wait: the later ones go on with the tile.
std::shared_ptr<Warpgroup::Accumulators> Warpgroup::accumulators_at(std::uint32_t thread, const float* d,
                                                                    int registers) {
  for (const auto& product : pending_) {
    const auto& tile = product->accumulators;
    if (tile->at[thread] == d && tile->registers == registers) return tile;
  }
  auto tile = std::make_shared<Accumulators>();
  tile->registers = registers;
  tile->values.resize(static_cast<std::size_t>(kRows) * 2 * static_cast<std::size_t>(registers));
  return tile;
}

void Warpgroup::take_accumulators(Thread& thread, Product& product, float* d) {
  const int number = static_cast<int>(thread.index % kThreads);
  Accumulators& tile = *product.accumulators;
  float*& at = tile.at[thread.index % kThreads];
  if (at == nullptr) {
    at = d;
    for (int i = 0; i < tile.registers; ++i) {
      const Element e = wgmma_accumulator_element(number, i);
      tile.at_element(e) = d[i];
      d[i] = std::bit_cast<float>(kPoison);
    }
  } else if (at != d) {
    fail(thread, product.place,
         "products of this warpgroup mix accumulators in different ways in different threads");
  }
  thread.products.own(d, sizeof(float) * static_cast<std::size_t>(tile.registers), false, product.place);
}

// Each warp answers for a part of the operands: its own rows of A, and a quarter of B.
void Warpgroup::check_operands(Thread& thread, const Product& product, std::uint32_t warp) {
  const ProductForm& form = product.form;
  const Engine engine{.owner = owner_, .time = thread.products.current_group(), .proxy = Proxy::kAsync};
  const auto check = [&](std::uint32_t offset) {
    check_access(thread, engine, block_->shared + offset, kChunkBytes, Access::kRead, product.place);
  };
  if (!form.a_in_registers) {
    for_each_chunk(decode_descriptor(form.a), major_of(form.a_transposed), kRows, kDepth,
                   [&](std::uint32_t offset, std::uint32_t row, std::uint32_t) {
                     if (row / 16 == warp) check(offset);
                   });
  }
  std::uint32_t chunk = 0;
  for_each_chunk(decode_descriptor(form.b), major_of(form.b_transposed),
                 static_cast<std::uint32_t>(columns_of(form)), kDepth,
                 [&](std::uint32_t offset, std::uint32_t, std::uint32_t) {
                   if (chunk++ % 4 == warp) check(offset);
                 });
}

void Warpgroup::on_complete_issue(Thread& thread) {
  Cluster& cluster = *thread.cluster;
  if (can_perform()) cluster.agenda().add(*this);
  while (cluster.launch().settings.mode == Mode::kEarly && can_perform()) perform_first();
  for (Thread* waiting : std::exchange(waiting_, {})) cluster.wake(*waiting);
}

// --- completion ---

void Warpgroup::wait(Thread& thread, int pending, const Location& place) {
  const Time over = thread.products.current_group() - 1 - pending;
  const std::uint32_t target = thread.products.products_of(over);
  while (performed_ < target) {
    if (can_perform()) {
      perform_first();
    } else {
      waiting_.push_back(&thread);
      thread.cluster->park("wgmma_wait (other threads of the warpgroup)", place);
    }
  }
  thread.products.give_back(over);
  acquire(thread, owner_, over);
}

void Warpgroup::perform_one(Random&) { perform_first(); }

void Warpgroup::perform_first() {
  const std::unique_ptr<Product> product = std::move(pending_.front());
  pending_.pop_front();
  ++performed_;
  if (!can_perform()) block_->threads[first_thread_].cluster->agenda().remove(*this);

  std::uint16_t a[kRows * kDepth];
  std::uint16_t b[kDepth * kMaxColumns];
  gather_operands(*product, a, b);
  Accumulators& tile = *product->accumulators;
  if (!product->form.accumulate) std::ranges::fill(tile.values, 0.0f);
  multiply_step(product->form.type, {.rows = kRows, .columns = columns_of(product->form), .depth = kDepth}, a,
                b, tile.values.data());
  if (--tile.products == 0) give_back(*product);
}

void Warpgroup::gather_operands(const Product& product, std::uint16_t* a, std::uint16_t* b) const {
  const ProductForm& form = product.form;
  const auto columns = static_cast<std::size_t>(columns_of(form));
  gather(block_->shared, form.b, form.b_transposed, columns_of(form), 1, columns, b);
  if (!form.a_in_registers) {
    gather(block_->shared, form.a, form.a_transposed, kRows, kDepth, 1, a);
    return;
  }
  for (std::uint32_t i = 0; i < kThreads; ++i) {
    if (!std::equal(product.a[i].begin(), product.a[i].end(), product.a_at[i])) {
      fail(block_->threads[first_thread_ + i], product.place,
           "operand A of this product changed before wgmma_wait");
    }
    for (int e = 0; e < 8; ++e) {
      const Element at = wgmma_a_element(static_cast<int>(i), e);
      const std::uint32_t pair = product.a[i][static_cast<std::size_t>(e / 2)];
      a[at.row * kDepth + at.column] = static_cast<std::uint16_t>(pair >> (16 * (e % 2)));
    }
  }
}

void Warpgroup::give_back(const Product& product) {
  Accumulators& tile = *product.accumulators;
  for (std::uint32_t t = 0; t < kThreads; ++t) {
    float* const registers = tile.at[t];
    for (int i = 0; i < tile.registers; ++i) {
      if (std::bit_cast<std::uint32_t>(registers[i]) != kPoison) {
        fail(block_->threads[first_thread_ + t], product.place,
             "an accumulator of this product was written before wgmma_wait");
      }
      const Element e = wgmma_accumulator_element(static_cast<int>(t), i);
      registers[i] = tile.at_element(e);
    }
  }
}

// --- instructions ---

namespace {

Warpgroup& warpgroup_of(Thread& thread) {
  return thread.block->warpgroups[thread.index / Warpgroup::kThreads];
}

template <class T>
constexpr OperandType kOperandType = std::is_same_v<T, ptx::Bf16> ? OperandType::kBf16 : OperandType::kF16;

}  // namespace

void wgmma_fence(Location) { current_thread().products.fenced = true; }

void wgmma_commit(Location) { current_thread().products.commit(); }

void wgmma_wait(int pending, Location place) {
  Thread& thread = current_thread();
  warpgroup_of(thread).wait(thread, pending, place);
}

template <class T>
void wgmma(float* d, int registers, std::uint64_t a, bool a_transposed, std::uint64_t b, bool b_transposed,
           bool accumulate, Location place) {
  const ProductForm form{.type = kOperandType<T>,
                         .registers = registers,
                         .a = a,
                         .b = b,
                         .a_transposed = a_transposed,
                         .b_transposed = b_transposed,
                         .accumulate = accumulate};
  Thread& thread = current_thread();
  warpgroup_of(thread).issue(thread, form, d, nullptr, place);
}

template <class T>
void wgmma(float* d, int registers, const std::uint32_t (&a)[4], std::uint64_t b, bool b_transposed,
           bool accumulate, Location place) {
  const ProductForm form{.type = kOperandType<T>,
                         .registers = registers,
                         .a_in_registers = true,
                         .b = b,
                         .b_transposed = b_transposed,
                         .accumulate = accumulate};
  Thread& thread = current_thread();
  warpgroup_of(thread).issue(thread, form, d, a, place);
}

template void wgmma<ptx::Bf16>(float*, int, std::uint64_t, bool, std::uint64_t, bool, bool, Location);
template void wgmma<ptx::F16>(float*, int, std::uint64_t, bool, std::uint64_t, bool, bool, Location);
template void wgmma<ptx::Bf16>(float*, int, const std::uint32_t (&)[4], std::uint64_t, bool, bool, Location);
template void wgmma<ptx::F16>(float*, int, const std::uint32_t (&)[4], std::uint64_t, bool, bool, Location);

}  // namespace flashmla::emulator
