// merge_states: rows are handed out to threads.
#include <algorithm>
#include <cmath>
#include <limits>

#include "api/workspace.h"
#include "cpu/cpu.h"
#include "cpu/engine.h"
#include "cpu/rows.h"
#include "cpu/thread_memory.h"
#include "host/threads.h"

namespace flashmla::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t kRowsAtOnce = 64;

/// How far ahead rows are fetched: the processor's own prefetcher stops at the end of each page.
constexpr std::int64_t kRowsAhead = 4;

/// A row, to be counted up: that is quicker than divisions each.
struct Row {
  std::int64_t batch;
  std::int64_t query;
  std::int64_t head;

  Row(const TensorView& out, std::int64_t number)
      : batch(number / (out.shape[2] * out.shape[1])),
        query(number / out.shape[2] % out.shape[1]),
        head(number % out.shape[2]) {}

  void advance(const TensorView& out) {
    if (++head < out.shape[2]) return;
    head = 0;
    if (++query < out.shape[1]) return;
    query = 0;
    ++batch;
  }

  void* out(const TensorView& tensor) const {
    const std::int64_t element =
        batch * tensor.strides[0] + query * tensor.strides[1] + head * tensor.strides[2];
    return tensor.as<std::uint8_t>() + element * static_cast<std::int64_t>(size_of(tensor.type));
  }
  float& lse(const TensorView& tensor) const {
    return tensor
        .as<float>()[batch * tensor.strides[0] + head * tensor.strides[1] + query * tensor.strides[2]];
  }
};

/// What a thread needs.
struct Merger {
  const Engine& engine;
  const void** rows;     ///< those of the states that saw something
  float* weights;        ///< their lse, and then their weights
  std::uint8_t* merged;  ///< a row that is streamed from here; null: rows are written where they belong

  Merger(Workspace& workspace, const MergeStates& op)
      : engine(engine_for(DataType::kBf16, DataType::kBf16)),  // multiplies no pairs: any types will do
        rows(workspace.take<const void*>(op.outs.size())),
        weights(workspace.take<float>(op.outs.size())),
        merged(is_streamed(engine, bytes_of(op.out))
                   ? workspace.take<std::uint8_t>(static_cast<std::size_t>(row_bytes(op.out)))
                   : nullptr) {}
};

ThreadMemory thread_memory(Workspace& workspace, const MergeStates& op, const Execution& on) {
  return ThreadMemory(workspace, threads_of(on), [&](Workspace& mine) { Merger(mine, op); });
}

void fetch(const MergeStates& op, const Row& row) {
  for (const TensorView& out : op.outs) fetch_row(row.out(out), row_bytes(out));
}

void merge_row(const MergeStates& op, const Row& row, const Merger& merger) {
  int count = 0;
  float max = -kInfinity;
  for (std::size_t state = 0; state < op.outs.size(); ++state) {
    const float lse = row.lse(op.lses[state]);
    if (std::isinf(lse)) continue;  // it saw nothing
    merger.rows[count] = row.out(op.outs[state]);
    merger.weights[count] = lse;
    max = std::max(lse, max);
    ++count;
  }
  double total = 0;
  for (int i = 0; i < count; ++i) {
    const double weight = std::exp(static_cast<double>(merger.weights[i]) - max);
    total += weight;
    merger.weights[i] = static_cast<float>(weight);
  }
  const auto share = static_cast<float>(1 / total);
  for (int i = 0; i < count; ++i) merger.weights[i] *= share;
  void* out = row.out(op.out);
  merger.engine.weighted_sum({.rows = merger.rows,
                              .weights = merger.weights,
                              .count = count,
                              .type = op.outs[0].type,
                              .width = static_cast<int>(op.out.shape[3]),
                              .out_type = op.out.type,
                              .out = merger.merged != nullptr ? merger.merged : out});
  if (merger.merged != nullptr) {
    merger.engine.streams.copy(merger.merged, row_bytes(op.out), out);
  }
  row.lse(op.lse) = count == 0 ? kInfinity : static_cast<float>(max + std::log(total));
}

}  // namespace

std::size_t workspace_bytes(const MergeStates& op, const Execution& on) {
  Workspace workspace;
  thread_memory(workspace, op, on);
  return workspace.bytes();
}

void run(const MergeStates& op, const Execution& on) {
  Workspace workspace(on);
  const ThreadMemory memory = thread_memory(workspace, op, on);
  const std::int64_t rows = op.out.shape[0] * op.out.shape[1] * op.out.shape[2];
  parallel_for(threads_of(on), (rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int thread, std::int64_t item) {
    Workspace mine = memory.of(thread);
    const Merger merger(mine, op);
    const std::int64_t end = std::min(rows, (item + 1) * kRowsAtOnce);
    Row place(op.out, item * kRowsAtOnce);
    Row next(op.out, item * kRowsAtOnce + kRowsAhead);
    for (std::int64_t row = item * kRowsAtOnce; row < end; ++row) {
      if (row + kRowsAhead < rows) fetch(op, next);
      merge_row(op, place, merger);
      place.advance(op.out);
      next.advance(op.out);
    }
    if (merger.merged != nullptr) merger.engine.streams.fence();
  });
}

}  // namespace flashmla::cpu
