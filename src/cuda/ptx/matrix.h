// Matrix products of a warp (mma.sync) and the moves between shared memory and their fragments.
//
// Fragments of m16n8k16, with `g = lane / 4` and `t = lane % 4`; a register holds two neighbours, the first
// in its lower half (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type"):
//   A, 16 x 16 by rows:  a[0] = (g, 2t), a[1] = (g + 8, 2t), a[2] = (g, 2t + 8), a[3] = (g + 8, 2t + 8)
//   B, 16 x 8 by columns: b[0] = (2t, g), b[1] = (2t + 8, g); the second of a pair is one row below
//   C and D, 16 x 8 f32: c[0] = (g, 2t), c[1] = (g, 2t + 1), c[2] = (g + 8, 2t), c[3] = (g + 8, 2t + 1)
#pragma once

#include "cuda/ptx/target.h"
#ifndef FLASHMLA_ON_GPU
#include "cuda/emulator/instructions.h"
#endif

namespace flashmla::ptx {

/// `ldmatrix.x4`: four 8 x 8 matrices of 2-byte elements. Lane `l` names row `l % 8` of matrix `l / 8`: 8
/// elements, aligned to 16 bytes, in shared memory. Register `i` gets the elements `(lane / 4, 2 * (lane %
/// 4))` and its right neighbour of matrix `i`.
FLASHMLA_DEVICE void load_matrix(std::uint32_t (&fragment)[4], const void* shared_row FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  const auto row = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(row)
               : "memory");
#else
  emulator::load_matrix(fragment, 4, false, shared_row, place);
#endif
}

/// `ldmatrix.x4.trans`: the same, each matrix transposed.
FLASHMLA_DEVICE void load_matrix_transposed(std::uint32_t (&fragment)[4],
                                            const void* shared_row FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  const auto row = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(row)
               : "memory");
#else
  emulator::load_matrix(fragment, 4, true, shared_row, place);
#endif
}

/// `ldmatrix.x2`: two matrices; the rows are those that lanes 0 to 15 name.
FLASHMLA_DEVICE void load_matrix(std::uint32_t (&fragment)[2], const void* shared_row FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  const auto row = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(fragment[0]), "=r"(fragment[1])
               : "r"(row)
               : "memory");
#else
  emulator::load_matrix(fragment, 2, false, shared_row, place);
#endif
}

/// `ldmatrix.x2.trans`.
FLASHMLA_DEVICE void load_matrix_transposed(std::uint32_t (&fragment)[2],
                                            const void* shared_row FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  const auto row = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(fragment[0]), "=r"(fragment[1])
               : "r"(row)
               : "memory");
#else
  emulator::load_matrix(fragment, 2, true, shared_row, place);
#endif
}

/// `stmatrix.x4`: the inverse of load_matrix(). From SM90 on.
FLASHMLA_DEVICE void store_matrix(void* shared_row, const std::uint32_t (&fragment)[4] FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  const auto row = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(fragment[0]), "r"(fragment[1]), "r"(fragment[2]), "r"(fragment[3])
               : "memory");
#else
  emulator::store_matrix(shared_row, fragment, 4, false, place);
#endif
}

/// `stmatrix.x4.trans`: the inverse of load_matrix_transposed(). From SM90 on.
FLASHMLA_DEVICE void store_matrix_transposed(void* shared_row,
                                             const std::uint32_t (&fragment)[4] FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  const auto row = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(fragment[0]), "r"(fragment[1]), "r"(fragment[2]), "r"(fragment[3])
               : "memory");
#else
  emulator::store_matrix(shared_row, fragment, 4, true, place);
#endif
}

/// `mma.sync.m16n8k16`: `c += a * b` with f32 accumulation. `T` is Bf16 or F16.
template <class T>
FLASHMLA_DEVICE void mma_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                 std::uint32_t b1 FLASHMLA_PLACE);

/// `mma.sync.m16n8k8`: half as deep: `a[0] = (g, 2t)`, `a[1] = (g + 8, 2t)`, `b = (2t, g)`.
template <class T>
FLASHMLA_DEVICE void mma_16x8x8(float (&c)[4], const std::uint32_t (&a)[2], std::uint32_t b FLASHMLA_PLACE);

#ifdef FLASHMLA_ON_GPU

template <>
FLASHMLA_DEVICE void mma_16x8x16<Bf16>(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                       std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
FLASHMLA_DEVICE void mma_16x8x16<F16>(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                      std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
FLASHMLA_DEVICE void mma_16x8x8<Bf16>(float (&c)[4], const std::uint32_t (&a)[2], std::uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

template <>
FLASHMLA_DEVICE void mma_16x8x8<F16>(float (&c)[4], const std::uint32_t (&a)[2], std::uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

#else

template <class T>
inline void mma_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                        std::source_location place) {
  emulator::mma_16x8x16<T>(c, a, b0, b1, place);
}

template <class T>
inline void mma_16x8x8(float (&c)[4], const std::uint32_t (&a)[2], std::uint32_t b,
                       std::source_location place) {
  emulator::mma_16x8x8<T>(c, a, b, place);
}

#endif

}  // namespace flashmla::ptx
