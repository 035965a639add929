// Dense decode in float64.
#include <algorithm>

#include "api/shapes.h"
#include "reference/attention_rows.h"
#include "reference/reference.h"

namespace flashmla::reference {
namespace {

/// Tokens that query `i` of a sequence sees: those before this one.
std::int64_t visible_tokens(const DenseDecode& op, std::int64_t seqlen, std::int64_t i) {
  return op.causal ? std::max<std::int64_t>(0, seqlen - op.q.shape[1] + i + 1) : seqlen;
}

std::int64_t seqlen_of(const DenseDecode& op, std::int64_t b) {
  const std::int64_t most = op.block_table.shape[1] * op.kv_cache.shape[1];
  return std::clamp<std::int64_t>(element<std::int32_t>(op.cache_seqlens, b), 0, most);
}

/// Rows of a sequence that share a kv head, counted with the head moving fastest.
struct Query {
  std::int64_t i;
  std::int64_t head;
  Query(const DecodeShape& shape, std::int64_t kv_head, std::int64_t row)
      : i(row / shape.group()), head(kv_head * shape.group() + row % shape.group()) {}
};

/// A factor of a sequence; 1 if it is not given.
double factor_of(const TensorView& factors, std::int64_t b) {
  return factors.given() ? element<float>(factors, b) : 1;
}

void attend(const DenseDecode& op, const DecodeShape& shape, std::int64_t b, std::int64_t kv_head,
            std::int64_t first, std::int64_t count, AttentionRows& rows) {
  const std::int64_t seqlen = seqlen_of(op, b);
  const std::int64_t page = op.kv_cache.shape[1];
  for (std::int64_t r = 0; r < count; ++r) {
    const Query query(shape, kv_head, first + r);
    rows.begin(r, address(op.q, b, query.i, query.head), op.q.type);
  }
  const std::int64_t end = visible_tokens(op, seqlen, Query(shape, kv_head, first + count - 1).i);
  for (std::int64_t t = 0; t < end; ++t) {
    const std::int64_t block = element<std::int32_t>(op.block_table, b, t / page);
    if (block < 0 || block >= op.kv_cache.shape[0]) continue;
    load_row(address(op.kv_cache, block, t % page, kv_head), op.kv_cache.type, shape.d_qk, rows.key());
    for (std::int64_t r = 0; r < count; ++r) {
      if (t < visible_tokens(op, seqlen, Query(shape, kv_head, first + r).i)) rows.see(r, rows.key());
    }
  }
  for (std::int64_t r = 0; r < count; ++r) {
    const Query query(shape, kv_head, first + r);
    element<float>(op.lse, b, query.head, query.i) = static_cast<float>(rows.lse(r));
    rows.finish(r, -kInfinity, op.out.type, address(op.out, b, query.i, query.head),
                factor_of(op.descale_k, b));
  }
}

}  // namespace

std::size_t workspace_bytes(const DenseDecode& op, const Execution& on) {
  const DecodeShape shape = shape_of(op);
  return AttentionScratch(Workspace(), on, shape.d_qk, shape.d_v).bytes();
}

void run(const DenseDecode& op, const Execution& on) {
  const DecodeShape shape = shape_of(op);
  const double softmax_scale = softmax_scale_or_default(op.softmax_scale, shape.d_qk);
  const AttentionScratch scratch(Workspace(on), on, shape.d_qk, shape.d_v);
  const RowBlocks blocks{shape.s_q * shape.group()};
  const std::int64_t units = shape.batch * shape.h_kv * blocks.count();
  parallel_for(threads_of(on), units, [&](int thread, std::int64_t unit) {
    const std::int64_t block = unit % blocks.count();
    const std::int64_t kv_head = unit / blocks.count() % shape.h_kv;
    const std::int64_t b = unit / blocks.count() / shape.h_kv;
    AttentionRows rows(scratch.of(thread), shape.d_qk, shape.d_v,
                       softmax_scale * factor_of(op.descale_q, b) * factor_of(op.descale_k, b));
    attend(op, shape, b, kv_head, blocks.begin(block), blocks.size(block), rows);
  });
}

}  // namespace flashmla::reference
