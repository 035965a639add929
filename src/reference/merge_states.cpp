// Attention results over disjoint keys into one, in float64.
#include <algorithm>
#include <cmath>

#include "reference/attention_rows.h"
#include "reference/reference.h"

namespace flashmla::reference {
namespace {

/// One row of the result. All of it is read before any of it is written, so outputs may be inputs.
void merge_row(const MergeStates& op, std::int64_t b, std::int64_t i, std::int64_t head, double* value,
               double* merged) {
  const std::int64_t d_v = op.out.shape[3];
  const auto lse_of = [&](std::size_t s) -> double { return element<float>(op.lses[s], b, head, i); };
  double max = -kInfinity;
  for (std::size_t s = 0; s < op.lses.size(); ++s) {
    if (!std::isinf(lse_of(s))) max = max_or_nan(max, lse_of(s));
  }
  double sum = 0;
  std::fill_n(merged, d_v, 0.0);
  for (std::size_t s = 0; s < op.lses.size(); ++s) {
    if (std::isinf(lse_of(s))) continue;
    const double weight = std::exp(lse_of(s) - max);
    load_row(address(op.outs[s], b, i, head), op.outs[s].type, d_v, value);
    add_scaled(weight, value, d_v, merged);
    sum += weight;
  }
  const bool lonely = sum == 0;
  for (std::int64_t d = 0; d < d_v; ++d) merged[d] = lonely ? 0 : merged[d] / sum;
  store_row(merged, op.out.type, d_v, address(op.out, b, i, head));
  element<float>(op.lse, b, head, i) = static_cast<float>(lonely ? kInfinity : max + std::log(sum));
}

}  // namespace

std::size_t workspace_bytes(const MergeStates& op, const Execution& on) {
  Workspace workspace;
  workspace.take<double>(static_cast<std::size_t>(2 * op.out.shape[3] * threads_of(on)));
  return workspace.bytes();
}

void run(const MergeStates& op, const Execution& on) {
  const std::int64_t s_q = op.out.shape[1];
  const std::int64_t h_q = op.out.shape[2];
  const std::int64_t d_v = op.out.shape[3];
  double* scratch = Workspace(on).take<double>(static_cast<std::size_t>(2 * d_v * threads_of(on)));
  const std::int64_t rows = op.out.shape[0] * s_q * h_q;
  parallel_for(threads_of(on), rows, [&](int thread, std::int64_t row) {
    double* value = scratch + 2 * d_v * thread;
    merge_row(op, row / h_q / s_q, row / h_q % s_q, row % h_q, value, value + d_v);
  });
}

}  // namespace flashmla::reference
