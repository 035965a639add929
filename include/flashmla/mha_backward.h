// Gradients of multi-head attention over packed sequences.
#pragma once

#include <cstddef>
#include <optional>

#include "flashmla/execution.h"
#include "flashmla/fields.h"
#include "flashmla/tensor.h"

namespace flashmla {

/// Gradients of MhaForward. With `P = exp(l - lse)`, `delta_i = <d_out_i, out_i>` and
/// `dS = P * (d_out v^T - delta)`: `d_v = P^T d_out`, `d_q = softmax_scale * dS k`,
/// `d_k = softmax_scale * dS^T q`; grouped heads add up in `d_k` and `d_v`.
/// Rows that no sequence covers, and rows that see nothing, get and give zero gradient.
/// Source: FlashAttention-2 (arXiv 2307.08691), section 3.1.2.
struct MhaBackward {
  /// As in MhaForward.
  TensorView q = {};
  TensorView k = {};
  TensorView v = {};
  /// The outputs of MhaForward.
  TensorView out = {};
  TensorView lse = {};
  /// Type of `q`, `[total_q, h_q, d_v]`.
  TensorView d_out = {};
  TensorView cu_seqlens_q = {};
  TensorView cu_seqlens_k = {};
  std::optional<float> softmax_scale = std::nullopt;
  bool causal = false;
  /// Ask for the same bits of `d_q` in every run too; `d_k` and `d_v` always have them.
  bool deterministic = false;
  /// Type of `q`, `[total_q, h_q, d_qk]`.
  TensorView d_q = {};
  /// Type of `q`, `[total_k, h_kv, d_qk]`.
  TensorView d_k = {};
  /// Type of `q`, `[total_k, h_kv, d_v]`.
  TensorView d_v = {};

  static const Fields<MhaBackward>& fields();
};

/// See workspace_bytes(const DenseDecode&, const Execution&).
std::size_t workspace_bytes(const MhaBackward& op, const Execution& on);

/// See run(const DenseDecode&, const Execution&).
void run(const MhaBackward& op, const Execution& on);

}  // namespace flashmla
