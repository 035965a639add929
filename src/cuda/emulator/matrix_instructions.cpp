// Matrix products of a warp, and its loads and stores of 8 x 8 matrices.
#include <array>
#include <cstring>
#include <type_traits>

#include "cuda/emulator/collectives.h"
#include "cuda/emulator/failure.h"
#include "cuda/emulator/fragments.h"
#include "cuda/emulator/instructions.h"
#include "cuda/emulator/matrix_unit.h"
#include "cuda/emulator/scheduler.h"
#include "cuda/emulator/shared_memory.h"

namespace flashmla::emulator {
namespace {

constexpr int kMatrixRows = 8;
constexpr std::uint32_t kRowBytes = 16;
constexpr int kLanes = 32;

using Operands = std::array<void*, 32>;

/// A lane's part of ldmatrix or stmatrix.
struct MatrixMove {
  std::byte* row;
  std::uint32_t* fragment;
  int matrices;
  bool transposed;
};

void check_full_warp(const Warp& warp, const Location& place) {
  if (warp.size != kLanes) fail(*warp.threads, place, "this instruction needs 32 lanes");
}

/// The rows that lanes name, checked as accesses of these lanes.
void check_rows(const Warp& warp, const Operands& operands, Access access, const Location& place) {
  check_full_warp(warp, place);
  const int rows = kMatrixRows * static_cast<const MatrixMove*>(operands[0])->matrices;
  for (int lane = 0; lane < rows; ++lane) {
    const Thread& thread = warp.threads[lane];
    const auto& move = *static_cast<const MatrixMove*>(operands[static_cast<std::size_t>(lane)]);
    check_aligned(thread, move.row, kRowBytes, place);
    check_access(thread, move.row, kRowBytes, access, place);
  }
}

/// Calls `visit(register, shift, element)` for each 16-bit element: `element` in memory, and its place in the
/// register.
template <class Visit>
void for_each_element(const Operands& operands, Visit&& visit) {
  const auto& first = *static_cast<const MatrixMove*>(operands[0]);
  for (int matrix = 0; matrix < first.matrices; ++matrix) {
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int half = 0; half < 2; ++half) {
        const Element e = matrix_element(lane, half, first.transposed);
        const int address_lane = matrix_address_lane(matrix, e.row);
        const auto& source =
            *static_cast<const MatrixMove*>(operands[static_cast<std::size_t>(address_lane)]);
        const auto& target = *static_cast<const MatrixMove*>(operands[static_cast<std::size_t>(lane)]);
        visit(target.fragment[matrix], 16 * half, source.row + e.column * 2);
      }
    }
  }
}

void combine_load(Warp& warp, const Operands& operands, const Location& place) {
  check_rows(warp, operands, Access::kRead, place);
  for_each_element(operands, [](std::uint32_t& fragment, int shift, const std::byte* element) {
    std::uint16_t value;
    std::memcpy(&value, element, sizeof(value));
    fragment = (fragment & ~(0xffffu << shift)) | std::uint32_t{value} << shift;
  });
}

void combine_store(Warp& warp, const Operands& operands, const Location& place) {
  check_rows(warp, operands, Access::kWrite, place);
  for_each_element(operands, [](std::uint32_t fragment, int shift, std::byte* element) {
    const auto value = static_cast<std::uint16_t>(fragment >> shift);
    std::memcpy(element, &value, sizeof(value));
  });
}

/// A lane's part of mma.sync.
struct Product {
  std::array<std::uint32_t, 4> a;
  std::array<std::uint32_t, 2> b;
  std::array<float, 4> c;
};

template <OperandType kType, int kDepth>
void combine_product(Warp& warp, const Operands& operands, const Location& place) {
  check_full_warp(warp, place);
  std::array<std::array<std::uint32_t, 4>, kLanes> a;
  std::array<std::array<std::uint32_t, 2>, kLanes> b;
  std::array<std::array<float, 4>, kLanes> c;
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    const auto& product = *static_cast<const Product*>(operands[lane]);
    a[lane] = product.a;
    b[lane] = product.b;
    c[lane] = product.c;
  }
  warp_mma(kType, kDepth, a, b, c);
  for (std::size_t lane = 0; lane < kLanes; ++lane) static_cast<Product*>(operands[lane])->c = c[lane];
}

template <class T, int kDepth>
void multiply(float (&c)[4], Product& product, const char* name, const Location& place) {
  constexpr auto kType = std::is_same_v<T, ptx::Bf16> ? OperandType::kBf16 : OperandType::kF16;
  std::copy_n(c, 4, product.c.begin());
  meet_in_warp(name, place, &product, combine_product<kType, kDepth>);
  std::copy_n(product.c.begin(), 4, c);
}

}  // namespace

void load_matrix(std::uint32_t* fragment, int matrices, bool transposed, const void* shared_row,
                 Location place) {
  MatrixMove move{.row = static_cast<std::byte*>(const_cast<void*>(shared_row)),
                  .fragment = fragment,
                  .matrices = matrices,
                  .transposed = transposed};
  meet_in_warp("load_matrix", place, &move, combine_load);
}

void store_matrix(void* shared_row, const std::uint32_t* fragment, int matrices, bool transposed,
                  Location place) {
  MatrixMove move{.row = static_cast<std::byte*>(shared_row),
                  .fragment = const_cast<std::uint32_t*>(fragment),
                  .matrices = matrices,
                  .transposed = transposed};
  meet_in_warp("store_matrix", place, &move, combine_store);
}

template <class T>
void mma_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                 Location place) {
  Product product{.a = {a[0], a[1], a[2], a[3]}, .b = {b0, b1}, .c = {}};
  multiply<T, 16>(c, product, "mma_16x8x16", place);
}

template <class T>
void mma_16x8x8(float (&c)[4], const std::uint32_t (&a)[2], std::uint32_t b, Location place) {
  Product product{.a = {a[0], a[1], 0, 0}, .b = {b, 0}, .c = {}};
  multiply<T, 8>(c, product, "mma_16x8x8", place);
}

template void mma_16x8x16<ptx::Bf16>(float (&)[4], const std::uint32_t (&)[4], std::uint32_t, std::uint32_t,
                                     Location);
template void mma_16x8x16<ptx::F16>(float (&)[4], const std::uint32_t (&)[4], std::uint32_t, std::uint32_t,
                                    Location);
template void mma_16x8x8<ptx::Bf16>(float (&)[4], const std::uint32_t (&)[2], std::uint32_t, Location);
template void mma_16x8x8<ptx::F16>(float (&)[4], const std::uint32_t (&)[2], std::uint32_t, Location);

}  // namespace flashmla::emulator
