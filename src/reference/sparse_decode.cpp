// Sparse decode in float64.
#include <algorithm>

#include "api/shapes.h"
#include "reference/attention_rows.h"
#include "reference/reference.h"

namespace flashmla::reference {
namespace {

/// One of the two caches with the list of its tokens that a query selects.
struct Selection {
  const TensorView& kv_cache;
  const TensorView& indices;
  const TensorView& length;  ///< optional

  /// Calls `see()` for each valid entry of query `(b, i)` in order, its row loaded to `key`.
  template <class See>
  void for_each(std::int64_t b, std::int64_t i, std::int64_t kv_head, std::int64_t d_qk, double* key,
                See&& see) const {
    if (!kv_cache.given()) return;
    const std::int64_t page = kv_cache.shape[1];
    const std::int64_t topk = indices.shape[2];
    const std::int64_t count =
        length.given() ? std::clamp<std::int64_t>(element<std::int32_t>(length, b), 0, topk) : topk;
    for (std::int64_t e = 0; e < count; ++e) {
      const std::int64_t token = element<std::int32_t>(indices, b, i, e);
      if (token < 0 || token >= tokens_in(kv_cache)) continue;
      load_token(kv_cache, token / page, token % page, kv_head, d_qk, key);
      see();
    }
  }
};

/// Heads `[first, first + count)` of query `(b, i)`.
void attend(const SparseDecode& op, std::int64_t d_qk, std::int64_t b, std::int64_t i, std::int64_t kv_head,
            std::int64_t first, std::int64_t count, AttentionRows& rows) {
  for (std::int64_t r = 0; r < count; ++r) rows.begin(r, address(op.q, b, i, first + r), op.q.type);
  const auto see = [&] {
    for (std::int64_t r = 0; r < count; ++r) rows.see(r, rows.key());
  };
  const Selection main{op.kv_cache, op.indices, op.topk_length};
  const Selection extra{op.extra_kv_cache, op.extra_indices, op.extra_topk_length};
  main.for_each(b, i, kv_head, d_qk, rows.key(), see);
  extra.for_each(b, i, kv_head, d_qk, rows.key(), see);
  for (std::int64_t r = 0; r < count; ++r) {
    const double sink = op.attn_sink.given() ? element<float>(op.attn_sink, first + r) : -kInfinity;
    element<float>(op.lse, b, first + r, i) = static_cast<float>(rows.lse(r));
    rows.finish(r, sink, op.out.type, address(op.out, b, i, first + r));
  }
}

}  // namespace

std::size_t workspace_bytes(const SparseDecode& op, const Execution& on) {
  const DecodeShape shape = shape_of(op);
  return AttentionScratch(Workspace(), on, shape.d_qk, shape.d_v).bytes();
}

void run(const SparseDecode& op, const Execution& on) {
  const DecodeShape shape = shape_of(op);
  const double softmax_scale = softmax_scale_or_default(op.softmax_scale, shape.d_qk);
  const AttentionScratch scratch(Workspace(on), on, shape.d_qk, shape.d_v);
  const RowBlocks blocks{shape.group()};
  const std::int64_t units = shape.batch * shape.s_q * shape.h_kv * blocks.count();
  parallel_for(threads_of(on), units, [&](int thread, std::int64_t unit) {
    const std::int64_t block = unit % blocks.count();
    const std::int64_t kv_head = unit / blocks.count() % shape.h_kv;
    const std::int64_t query = unit / blocks.count() / shape.h_kv;
    const std::int64_t first = kv_head * shape.group() + blocks.begin(block);
    AttentionRows rows(scratch.of(thread), shape.d_qk, shape.d_v, softmax_scale);
    attend(op, shape.d_qk, query / shape.s_q, query % shape.s_q, kv_head, first, blocks.size(block), rows);
  });
}

}  // namespace flashmla::reference
