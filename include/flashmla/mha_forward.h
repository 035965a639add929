// Multi-head attention over packed sequences of different lengths.
#pragma once

#include <cstddef>
#include <optional>

#include "flashmla/execution.h"
#include "flashmla/fields.h"
#include "flashmla/tensor.h"

namespace flashmla {

/// Attention in MHA mode (not absorbed): keys and values of their own, sequences packed one behind the
/// other. Sequence `b` has query rows `[cu_seqlens_q[b], cu_seqlens_q[b + 1])` and key rows
/// `[cu_seqlens_k[b], cu_seqlens_k[b + 1])`. Query head `j` reads kv head `j / (h_q / h_kv)`.
///
/// Bounds outside the tensors are clamped and a bound smaller than the one before it counts as equal.
/// A row that no sequence covers, or that sees nothing, gets `out = 0`, `lse = +inf`.
struct MhaForward {
  /// bf16 or f16 `[total_q, h_q, d_qk]`.
  TensorView q = {};
  /// Type of `q`, `[total_k, h_kv, d_qk]`.
  TensorView k = {};
  /// Type of `q`, `[total_k, h_kv, d_v]`.
  TensorView v = {};
  /// i32 `[batch + 1]`.
  TensorView cu_seqlens_q = {};
  /// i32 `[batch + 1]`.
  TensorView cu_seqlens_k = {};
  /// Factor of the logits; default `1 / sqrt(d_qk)`.
  std::optional<float> softmax_scale = std::nullopt;
  /// Query `i` of a sequence sees keys `t <= len_k - len_q + i` instead of all.
  bool causal = false;
  /// Type of `q`, `[total_q, h_q, d_v]`.
  TensorView out = {};
  /// f32 `[total_q, h_q]`, natural logarithm.
  TensorView lse = {};

  static const Fields<MhaForward>& fields();
};

/// See workspace_bytes(const DenseDecode&, const Execution&).
std::size_t workspace_bytes(const MhaForward& op, const Execution& on);

/// See run(const DenseDecode&, const Execution&).
void run(const MhaForward& op, const Execution& on);

}  // namespace flashmla
