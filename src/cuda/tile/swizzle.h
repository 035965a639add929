// Where a tile's elements lie in shared memory, so that no two accesses of an instruction meet in a bank.
#pragma once

#include "cuda/ptx/target.h"

namespace flashmla::tile {

/// Elements of 2 bytes in a chunk of 16 bytes.
inline constexpr int kChunk = 8;

/// Rows of `kWidth` 2-byte elements, a multiple of 64: chunk `c` of row `r` lies at `c ^ (r % 8)`. Any 8
/// neighbouring rows' chunks of one column then lie in different banks.
template <int kWidth>
FLASHMLA_DEVICE int wide_row_offset(int row, int chunk) {
  static_assert(kWidth % 64 == 0);
  return row * kWidth + (chunk ^ (row & 7)) * kChunk;
}

/// Offset of chunk `a ^ b` in such a row `r`, given `b ^ (r % 8)`. `a` is a constant of an unrolled loop, `b
/// < 8` depends on the thread: one register then serves the whole loop.
FLASHMLA_DEVICE int swizzled_chunk(int a, int b_and_row) {
  return (a & ~7) * kChunk + ((a & 7) ^ b_and_row) * kChunk;
}

/// Rows of 32 2-byte elements: two rows share a line of banks.
FLASHMLA_DEVICE int narrow_row_offset(int row, int chunk) {
  return row * 32 + (chunk ^ ((row >> 1) & 3)) * kChunk;
}

/// Rows of 32 f32: what the number of an element in row `r` is xored with. Stores of accumulator fragments (8
/// rows, 4 pairs of columns) and loads of 4 neighbours both spread over all banks. Repeats after 4 rows.
FLASHMLA_DEVICE int logit_swizzle(int row) { return ((row & 3) * 8) ^ ((row & 1) * 4); }

}  // namespace flashmla::tile
