// merge_states: rows are handed out to threads.
#include <algorithm>
#include <cmath>
#include <limits>

#include "api/workspace.h"
#include "cpu/cpu.h"
#include "cpu/engine.h"
#include "cpu/thread_memory.h"
#include "host/threads.h"

namespace flashmla::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t kRowsAtOnce = 16;

struct Row {
  std::int64_t batch;
  std::int64_t query;
  std::int64_t head;

  Row(const TensorView& out, std::int64_t number)
      : batch(number / (out.shape[2] * out.shape[1])),
        query(number / out.shape[2] % out.shape[1]),
        head(number % out.shape[2]) {}

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

/// A thread's buffers: one row as f32, and the sum.
struct MergeBuffers {
  float* row;
  float* sum;

  MergeBuffers(Workspace& workspace, std::size_t d_v)
      : row(workspace.take<float>(d_v)), sum(workspace.take<float>(d_v)) {}
};

bool saw_nothing(float lse) { return std::isinf(lse); }

void merge_row(const MergeStates& op, const Engine& engine, const Row& row, const MergeBuffers& buffers) {
  const auto d_v = static_cast<int>(op.out.shape[3]);
  float max = -kInfinity;
  for (const TensorView& lse : op.lses) {
    if (!saw_nothing(row.lse(lse))) max = std::max(row.lse(lse), max);
  }
  double total = 0;
  std::fill_n(buffers.sum, d_v, 0.0f);
  for (std::size_t state = 0; state < op.outs.size(); ++state) {
    const float lse = row.lse(op.lses[state]);
    if (saw_nothing(lse)) continue;
    const double weight = std::exp(static_cast<double>(lse) - max);
    total += weight;
    engine.widen(row.out(op.outs[state]), op.outs[state].type, d_v, buffers.row);
    const auto factor = static_cast<float>(weight);
    for (int i = 0; i < d_v; ++i) buffers.sum[i] += factor * buffers.row[i];
  }
  const float scale = total == 0 ? 0.0f : static_cast<float>(1 / total);
  engine.narrow(buffers.sum, scale, d_v, op.out.type, row.out(op.out));
  row.lse(op.lse) = total == 0 ? kInfinity : static_cast<float>(max + std::log(total));
}

}  // namespace

std::size_t workspace_bytes(const MergeStates& op, const Execution& on) {
  Workspace workspace;
  const auto d_v = static_cast<std::size_t>(op.out.shape[3]);
  const ThreadMemory memory(workspace, threads_of(on), [&](Workspace& mine) { MergeBuffers(mine, d_v); });
  return workspace.bytes();
}

void run(const MergeStates& op, const Execution& on) {
  const int threads = threads_of(on);
  const auto d_v = static_cast<std::size_t>(op.out.shape[3]);
  Workspace workspace(on);
  const ThreadMemory memory(workspace, threads, [&](Workspace& mine) { MergeBuffers(mine, d_v); });
  const Engine& engine = engine_for(DataType::kBf16, DataType::kBf16);
  const std::int64_t rows = op.out.shape[0] * op.out.shape[1] * op.out.shape[2];
  parallel_for(threads, (rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int thread, std::int64_t item) {
    Workspace mine = memory.of(thread);
    const MergeBuffers buffers(mine, d_v);
    const std::int64_t end = std::min(rows, (item + 1) * kRowsAtOnce);
    for (std::int64_t row = item * kRowsAtOnce; row < end; ++row) {
      merge_row(op, engine, Row(op.out, row), buffers);
    }
  });
}

}  // namespace flashmla::cpu
