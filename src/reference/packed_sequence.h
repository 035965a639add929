// One sequence of a packed batch: which rows it has, and which keys each of its queries sees.
#pragma once

#include <algorithm>
#include <cstdint>

#include "api/sequences.h"
#include "api/shapes.h"

namespace flashmla::reference {

struct PackedSequence {
  std::int64_t begin_q;
  std::int64_t len_q;
  std::int64_t begin_k;
  std::int64_t len_k;
  bool causal;

  PackedSequence(const SequenceWalk& q, const SequenceWalk& k, bool is_causal)
      : begin_q(q.begin()), len_q(q.length()), begin_k(k.begin()), len_k(k.length()), causal(is_causal) {}
};

/// Query row `row` of those that read `kv_head`, counted with the head moving fastest.
struct PackedQuery {
  std::int64_t token;    ///< row of `q`
  std::int64_t head;     ///< of `q`
  std::int64_t visible;  ///< it sees the sequence's keys before this one

  PackedQuery(const PackedSequence& sequence, const MhaShape& shape, std::int64_t kv_head, std::int64_t row)
      : token(sequence.begin_q + row / shape.group()), head(kv_head * shape.group() + row % shape.group()) {
    const std::int64_t seen = sequence.len_k - sequence.len_q + row / shape.group() + 1;
    visible = sequence.causal ? std::max<std::int64_t>(0, seen) : sequence.len_k;
  }
};

}  // namespace flashmla::reference
