// sparse_prefill: query tokens, in blocks of heads, are handed out to threads; nothing is split.
#include <algorithm>

#include "api/shapes.h"
#include "cpu/attention.h"
#include "cpu/cpu.h"
#include "cpu/key_sources.h"
#include "cpu/thread_memory.h"
#include "host/threads.h"
#include "schedule/request.h"

namespace flashmla::cpu {
namespace {

Attention attention_for(Workspace& workspace, const SparsePrefill& op) {
  const PrefillShape shape = shape_of(op);
  return {workspace, kWideRows, op.q.type, op.q.type, shape.d_qk, shape.d_v, true};
}

/// kv as a cache with one block.
PagedCache as_cache(const TensorView& kv) {
  PagedCache cache;
  cache.data = kv.as<std::uint8_t>();
  cache.blocks = 1;
  cache.page = kv.shape[0];
  cache.token_stride = kv.strides[0] * static_cast<std::int64_t>(size_of(kv.type));
  cache.head_stride = kv.strides[1] * static_cast<std::int64_t>(size_of(kv.type));
  return cache;
}

/// Heads `[first_head, first_head + count)` of one kv head's group, for one query token.
struct HeadBlock {
  std::int64_t query;
  std::int64_t kv_head;
  std::int64_t first_head;
  int count;
};

void attend(const SparsePrefill& op, const HeadBlock& block, Attention& attention) {
  const PrefillShape shape = shape_of(op);
  const void* queries[kWideRows];
  for (int row = 0; row < block.count; ++row) {
    queries[row] = op.q.as<const std::uint16_t>() + block.query * op.q.strides[0] +
                   (block.first_head + row) * op.q.strides[1];
  }
  attention.begin(queries, block.count, softmax_scale_or_default(op.softmax_scale, shape.d_qk));
  const std::int64_t count = lengths_of(op.topk_length).clamped(block.query, shape.topk);
  const Selection selection{op.indices.as<const std::int32_t>() + block.query * op.indices.strides[0] +
                                block.kv_head * op.indices.strides[1],
                            count, as_cache(op.kv)};
  SelectedKeys keys(selection, {}, block.kv_head, 0, count);
  attention.attend(keys, nullptr);
}

void write(const SparsePrefill& op, const HeadBlock& block, const Attention& attention) {
  for (int row = 0; row < block.count; ++row) {
    const std::int64_t head = block.first_head + row;
    finish_row(
        attention.engine(), attention.state(), row, op.out.shape[2],
        {.out = op.out.as<std::uint16_t>() + block.query * op.out.strides[0] + head * op.out.strides[1],
         .type = op.out.type,
         .lse = op.lse.as<float>() + block.query * op.lse.strides[0] + head * op.lse.strides[1],
         .max_logit = op.max_logits.as<float>() + block.query * op.max_logits.strides[0] +
                      head * op.max_logits.strides[1],
         .sink = op.attn_sink.given() ? op.attn_sink.as<const float>() + head * op.attn_sink.strides[0]
                                      : nullptr});
  }
}

}  // namespace

std::size_t workspace_bytes(const SparsePrefill& op, const Execution& on) {
  Workspace workspace;
  const ThreadMemory memory(workspace, threads_of(on), [&](Workspace& mine) { attention_for(mine, op); });
  return workspace.bytes();
}

void run(const SparsePrefill& op, const Execution& on) {
  const PrefillShape shape = shape_of(op);
  const int threads = threads_of(on);
  Workspace workspace(on);
  const ThreadMemory memory(workspace, threads, [&](Workspace& mine) { attention_for(mine, op); });
  const std::int64_t blocks = (shape.group() + kWideRows - 1) / kWideRows;
  WorkQueue queue(shape.s_q * shape.h_kv * blocks);
  parallel(threads, [&](int thread) {
    Workspace mine = memory.of(thread);
    Attention attention = attention_for(mine, op);
    for (std::int64_t item = queue.take(); item >= 0; item = queue.take()) {
      const std::int64_t kv_head = item / blocks % shape.h_kv;
      const std::int64_t first = item % blocks * kWideRows;
      const HeadBlock block{
          .query = item / (blocks * shape.h_kv),
          .kv_head = kv_head,
          .first_head = kv_head * shape.group() + first,
          .count = static_cast<int>(std::min<std::int64_t>(kWideRows, shape.group() - first))};
      attend(op, block, attention);
      write(op, block, attention);
    }
  });
}

}  // namespace flashmla::cpu
