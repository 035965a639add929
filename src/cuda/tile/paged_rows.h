// Where the rows of a sequence lie in a paged cache.
#pragma once

#include <cstdint>

#include "cuda/ptx/target.h"

namespace flashmla::tile {

/// A paged cache of 2-byte elements, one kv head's rows of it, and the page table. Strides in elements.
struct PagedCacheParams {
  const std::uint16_t* rows;
  std::int64_t block_stride;
  std::int64_t token_stride;
  std::int64_t head_stride;
  std::int64_t blocks;
  const std::int32_t* block_table;
  std::int64_t table_stride;        ///< between sequences
  std::int64_t table_entry_stride;  ///< between entries of one
  std::int32_t page;
};

/// The rows of one sequence and kv head.
class PagedRows {
 public:
  FLASHMLA_DEVICE PagedRows(const PagedCacheParams& cache, std::int64_t seq, std::int64_t head)
      : cache_(cache),
        table_(cache.block_table + seq * cache.table_stride),
        rows_(cache.rows + head * cache.head_stride) {}

  /// Entry of the page table for a token below the sequence's length.
  FLASHMLA_DEVICE std::int32_t block_of(std::int32_t token) const {
    return table_[token / cache_.page * cache_.table_entry_stride];
  }

  /// The row of `token` in `block`; null if the cache has no such block.
  FLASHMLA_DEVICE const std::uint16_t* row(std::int32_t block, std::int32_t token) const {
    if (block < 0 || block >= cache_.blocks) return nullptr;
    return rows_ + block * cache_.block_stride + token % cache_.page * cache_.token_stride;
  }

  /// An address that may be named where nothing is read.
  FLASHMLA_DEVICE const std::uint16_t* anywhere() const { return cache_.rows; }

 private:
  const PagedCacheParams& cache_;
  const std::int32_t* table_;
  const std::uint16_t* rows_;
};

}  // namespace flashmla::tile
