// Blocks of rows of packed sequences, numbered for handing out to threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "api/sequences.h"
#include "flashmla/tensor.h"

namespace flashmla::cpu {

/// The queries and keys of one sequence, as rows of their tensors.
struct PackedSequence {
  std::int64_t q_begin, q_end, k_begin, k_end;

  /// Keys that query row `q` sees end here.
  std::int64_t key_end(std::int64_t q, bool causal) const {
    if (!causal) return k_end;
    return std::clamp(k_end - (q_end - q) + 1, k_begin, k_end);
  }

  /// Queries that see key row `k` begin here.
  std::int64_t query_begin(std::int64_t k, bool causal) const {
    if (!causal) return q_begin;
    return std::clamp(q_end - (k_end - k), q_begin, q_end);
  }
};

enum class Side { kQueries, kKeys };

/// A block of rows of one side of a sequence, for one head.
struct PackedBlock {
  PackedSequence sequence;
  std::int64_t begin;
  std::int64_t end;
  std::int64_t head;
};

/// Blocks of up to `block_rows` rows, sequence after sequence; the heads of a block follow each other.
class PackedBlocks {
 public:
  PackedBlocks(const TensorView& cu_seqlens_q, std::int64_t total_q, const TensorView& cu_seqlens_k,
               std::int64_t total_k, Side side, std::int64_t heads, std::int64_t block_rows)
      : queries_(cu_seqlens_q, total_q),
        keys_(cu_seqlens_k, total_k),
        side_(side),
        heads_(heads),
        block_rows_(block_rows) {}

  /// Number of blocks behind the ones that have been passed.
  std::int64_t count() const {
    PackedBlocks walk = *this;
    while (walk.next_sequence()) {
    }
    return walk.first_ + walk.items_;
  }

  /// Block `item`; items are asked for in rising order.
  PackedBlock at(std::int64_t item) {
    while (item >= first_ + items_) next_sequence();
    const SequenceWalk& rows = side_ == Side::kQueries ? queries_ : keys_;
    const std::int64_t begin = rows.begin() + (item - first_) / heads_ * block_rows_;
    return {.sequence = {queries_.begin(), queries_.end(), keys_.begin(), keys_.end()},
            .begin = begin,
            .end = std::min(begin + block_rows_, rows.end()),
            .head = (item - first_) % heads_};
  }

 private:
  bool next_sequence() {
    if (!queries_.next() || !keys_.next()) return false;
    first_ += items_;
    const std::int64_t length = side_ == Side::kQueries ? queries_.length() : keys_.length();
    items_ = (length + block_rows_ - 1) / block_rows_ * heads_;
    return true;
  }

  SequenceWalk queries_;
  SequenceWalk keys_;
  Side side_;
  std::int64_t heads_;
  std::int64_t block_rows_;
  std::int64_t first_ = 0;
  std::int64_t items_ = 0;
};

/// Calls `body(row)` for the rows that no sequence covers.
template <class Body>
void for_each_uncovered_row(const TensorView& cu_seqlens, std::int64_t total, Body&& body) {
  SequenceWalk walk(cu_seqlens, total);
  std::int64_t covered_from = 0;
  std::int64_t covered_to = 0;
  for (bool first = true; walk.next(); first = false) {
    if (first) covered_from = walk.begin();
    covered_to = walk.end();
  }
  for (std::int64_t row = 0; row < covered_from; ++row) body(row);
  for (std::int64_t row = covered_to; row < total; ++row) body(row);
}

/// Row `[token, head]` of a 16-bit tensor.
inline std::uint16_t* packed_row(const TensorView& tensor, std::int64_t token, std::int64_t head) {
  return tensor.as<std::uint16_t>() + token * tensor.strides[0] + head * tensor.strides[1];
}

}  // namespace flashmla::cpu
