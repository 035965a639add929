// Multi-head attention over packed sequences in float64.
#include <algorithm>

#include "api/sequences.h"
#include "api/shapes.h"
#include "reference/attention_rows.h"
#include "reference/packed_sequence.h"
#include "reference/reference.h"

namespace flashmla::reference {
namespace {

void fill_as_lonely(const MhaForward& op, const MhaShape& shape) {
  for (std::int64_t i = 0; i < shape.total_q; ++i) {
    for (std::int64_t head = 0; head < shape.h_q; ++head) {
      element<float>(op.lse, i, head) = static_cast<float>(kInfinity);
      store_zeros(op.out.type, shape.d_v, address(op.out, i, head));
    }
  }
}

void attend(const MhaForward& op, const MhaShape& shape, const PackedSequence& sequence, std::int64_t kv_head,
            std::int64_t first, std::int64_t count, AttentionRows& rows) {
  for (std::int64_t r = 0; r < count; ++r) {
    const PackedQuery query(sequence, shape, kv_head, first + r);
    rows.begin(r, address(op.q, query.token, query.head), op.q.type);
  }
  const std::int64_t end = PackedQuery(sequence, shape, kv_head, first + count - 1).visible;
  for (std::int64_t t = 0; t < end; ++t) {
    load_row(address(op.k, sequence.begin_k + t, kv_head), op.k.type, shape.d_qk, rows.key());
    load_row(address(op.v, sequence.begin_k + t, kv_head), op.v.type, shape.d_v, rows.value());
    for (std::int64_t r = 0; r < count; ++r) {
      if (t < PackedQuery(sequence, shape, kv_head, first + r).visible) rows.see(r, rows.value());
    }
  }
  for (std::int64_t r = 0; r < count; ++r) {
    const PackedQuery query(sequence, shape, kv_head, first + r);
    element<float>(op.lse, query.token, query.head) = static_cast<float>(rows.lse(r));
    rows.finish(r, -kInfinity, op.out.type, address(op.out, query.token, query.head));
  }
}

}  // namespace

std::size_t workspace_bytes(const MhaForward& op, const Execution& on) {
  const MhaShape shape = shape_of(op);
  return AttentionScratch(Workspace(), on, shape.d_qk, shape.d_v).bytes();
}

void run(const MhaForward& op, const Execution& on) {
  const MhaShape shape = shape_of(op);
  const double softmax_scale = softmax_scale_or_default(op.softmax_scale, shape.d_qk);
  const AttentionScratch scratch(Workspace(on), on, shape.d_qk, shape.d_v);
  fill_as_lonely(op, shape);
  SequenceWalk q(op.cu_seqlens_q, shape.total_q);
  SequenceWalk k(op.cu_seqlens_k, shape.total_k);
  while (q.next() && k.next()) {
    const PackedSequence sequence(q, k, op.causal);
    const RowBlocks blocks{sequence.len_q * shape.group()};
    const std::int64_t units = shape.h_kv * blocks.count();
    parallel_for(threads_of(on), units, [&](int thread, std::int64_t unit) {
      const std::int64_t block = unit % blocks.count();
      AttentionRows rows(scratch.of(thread), shape.d_qk, shape.d_v, softmax_scale);
      attend(op, shape, sequence, unit / blocks.count(), blocks.begin(block), blocks.size(block), rows);
    });
  }
}

}  // namespace flashmla::reference
