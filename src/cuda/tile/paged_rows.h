// Where the rows of a sequence lie in a paged cache.
#pragma once

#include <cstdint>

#include "cuda/ptx/target.h"
#include "cuda/tile/divisor.h"

namespace flashmla::tile {

/// The rows of one sequence and kv head.
struct PagedRows {
  const std::int32_t* table;  ///< the sequence's page table
  const std::uint16_t* rows;  ///< the head's row of the cache's first token
};

/// A paged cache of 2-byte elements and its page table. Strides in elements.
struct PagedCacheParams {
  const std::uint16_t* rows;
  std::int64_t block_stride;
  std::int64_t token_stride;
  std::int64_t head_stride;
  std::int64_t blocks;
  const std::int32_t* block_table;
  std::int64_t table_stride;        ///< between sequences
  std::int64_t table_entry_stride;  ///< between entries of one
  Divisor page;

  FLASHMLA_DEVICE PagedRows rows_of(std::int64_t seq, std::int64_t head) const {
    return {block_table + seq * table_stride, rows + head * head_stride};
  }

  /// Entry of the page table for a token below the sequence's length.
  FLASHMLA_DEVICE std::int32_t block_of(const PagedRows& of, std::int32_t token) const {
    return of.table[page.quotient(token) * table_entry_stride];
  }

  /// The row of `token` in `block`; null if the cache has no such block.
  FLASHMLA_DEVICE const std::uint16_t* row(const PagedRows& of, std::int32_t block,
                                           std::int32_t token) const {
    if (block < 0 || block >= blocks) return nullptr;
    return of.rows + block * block_stride + page.remainder(token) * token_stride;
  }
};

}  // namespace flashmla::tile
