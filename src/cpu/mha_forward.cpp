// mha_forward: blocks of query rows of one head are handed out to threads.
#include <cstring>
#include <limits>

#include "api/shapes.h"
#include "cpu/attention.h"
#include "cpu/cpu.h"
#include "cpu/key_sources.h"
#include "cpu/packed_blocks.h"
#include "cpu/thread_memory.h"
#include "host/threads.h"

namespace flashmla::cpu {
namespace {

Attention attention_for(Workspace& workspace, const MhaForward& op) {
  const MhaShape shape = shape_of(op);
  return {workspace, kMaxRows, op.q.type, op.q.type, shape.d_qk, shape.d_v, false};
}

PackedKeys keys_of(const MhaForward& op, const PackedBlock& block) {
  const std::int64_t kv_head = block.head / shape_of(op).group();
  return {packed_row(op.k, 0, kv_head), op.k.strides[0],
          packed_row(op.v, 0, kv_head), op.v.strides[0],
          block.sequence.k_begin,       block.sequence.key_end(block.end - 1, op.causal)};
}

float& lse_of(const MhaForward& op, std::int64_t token, std::int64_t head) {
  return op.lse.as<float>()[token * op.lse.strides[0] + head * op.lse.strides[1]];
}

void attend(const MhaForward& op, const PackedBlock& block, Attention& attention) {
  const void* queries[kMaxRows];
  std::int64_t bounds[kMaxRows];
  const int count = static_cast<int>(block.end - block.begin);
  for (int row = 0; row < count; ++row) {
    queries[row] = packed_row(op.q, block.begin + row, block.head);
    bounds[row] = block.sequence.key_end(block.begin + row, op.causal);
  }
  attention.begin(queries, count, softmax_scale_or_default(op.softmax_scale, op.q.shape[2]));
  PackedKeys keys = keys_of(op, block);
  attention.attend(keys, op.causal ? bounds : nullptr);
  for (int row = 0; row < count; ++row) {
    finish_row(attention.engine(), attention.state(), row, op.v.shape[2],
               {.out = packed_row(op.out, block.begin + row, block.head),
                .type = op.out.type,
                .lse = &lse_of(op, block.begin + row, block.head),
                .max_logit = nullptr,
                .sink = nullptr});
  }
}

}  // namespace

std::size_t workspace_bytes(const MhaForward& op, const Execution& on) {
  Workspace workspace;
  const ThreadMemory memory(workspace, threads_of(on), [&](Workspace& mine) { attention_for(mine, op); });
  return workspace.bytes();
}

void run(const MhaForward& op, const Execution& on) {
  const MhaShape shape = shape_of(op);
  const int threads = threads_of(on);
  Workspace workspace(on);
  const ThreadMemory memory(workspace, threads, [&](Workspace& mine) { attention_for(mine, op); });
  const PackedBlocks blocks(op.cu_seqlens_q, shape.total_q, op.cu_seqlens_k, shape.total_k, Side::kQueries,
                            shape.h_q, kMaxRows);
  WorkQueue queue(blocks.count());
  parallel(threads, [&](int thread) {
    Workspace mine = memory.of(thread);
    Attention attention = attention_for(mine, op);
    PackedBlocks walk = blocks;
    for (std::int64_t item = queue.take(); item >= 0; item = queue.take())
      attend(op, walk.at(item), attention);
  });
  for_each_uncovered_row(op.cu_seqlens_q, shape.total_q, [&](std::int64_t token) {
    for (std::int64_t head = 0; head < shape.h_q; ++head) {
      std::memset(packed_row(op.out, token, head), 0, 2 * static_cast<std::size_t>(shape.d_v));
      lse_of(op, token, head) = std::numeric_limits<float>::infinity();
    }
  });
}

}  // namespace flashmla::cpu
