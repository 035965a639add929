// Sparse prefill in float64.
#include <algorithm>

#include "api/shapes.h"
#include "reference/attention_rows.h"
#include "reference/reference.h"

namespace flashmla::reference {
namespace {

/// Heads `[first, first + count)` of query token `i`.
void attend(const SparsePrefill& op, const PrefillShape& shape, std::int64_t i, std::int64_t kv_head,
            std::int64_t first, std::int64_t count, AttentionRows& rows) {
  for (std::int64_t r = 0; r < count; ++r) rows.begin(r, address(op.q, i, first + r), op.q.type);
  const std::int64_t length = op.topk_length.given() ? element<std::int32_t>(op.topk_length, i) : shape.topk;
  for (std::int64_t e = 0; e < std::min(length, shape.topk); ++e) {
    const std::int64_t token = element<std::int32_t>(op.indices, i, kv_head, e);
    if (token < 0 || token >= shape.s_kv) continue;
    load_row(address(op.kv, token, kv_head), op.kv.type, shape.d_qk, rows.key());
    for (std::int64_t r = 0; r < count; ++r) rows.see(r, rows.key());
  }
  for (std::int64_t r = 0; r < count; ++r) {
    const double sink = op.attn_sink.given() ? element<float>(op.attn_sink, first + r) : -kInfinity;
    element<float>(op.max_logits, i, first + r) = static_cast<float>(rows.max_logit(r));
    element<float>(op.lse, i, first + r) = static_cast<float>(rows.lse(r));
    rows.finish(r, sink, op.out.type, address(op.out, i, first + r));
  }
}

}  // namespace

std::size_t workspace_bytes(const SparsePrefill& op, const Execution& on) {
  const PrefillShape shape = shape_of(op);
  return AttentionScratch(Workspace(), on, shape.d_qk, shape.d_v).bytes();
}

void run(const SparsePrefill& op, const Execution& on) {
  const PrefillShape shape = shape_of(op);
  const double softmax_scale = softmax_scale_or_default(op.softmax_scale, shape.d_qk);
  const AttentionScratch scratch(Workspace(on), on, shape.d_qk, shape.d_v);
  const RowBlocks blocks{shape.group()};
  const std::int64_t units = shape.s_q * shape.h_kv * blocks.count();
  parallel_for(threads_of(on), units, [&](int thread, std::int64_t unit) {
    const std::int64_t block = unit % blocks.count();
    const std::int64_t kv_head = unit / blocks.count() % shape.h_kv;
    const std::int64_t i = unit / blocks.count() / shape.h_kv;
    const std::int64_t first = kv_head * shape.group() + blocks.begin(block);
    AttentionRows rows(scratch.of(thread), shape.d_qk, shape.d_v, softmax_scale);
    attend(op, shape, i, kv_head, first, blocks.size(block), rows);
  });
}

}  // namespace flashmla::reference
