// Attention of many query tokens, each over its own selection of latent rows.
#pragma once

#include <cstddef>
#include <optional>

#include "flashmla/execution.h"
#include "flashmla/fields.h"
#include "flashmla/tensor.h"

namespace flashmla {

/// Token-sparse prefill: query token `i` attends over the rows of `kv` that `indices[i]` names, in MQA
/// mode. Indices outside `[0, s_kv)` are skipped; a duplicate counts as often as it appears. A query
/// without any valid index gets `out = 0`, `lse = +inf`, `max_logits = -inf`.
/// Source: DeepSeek-V3.2 (DeepSeek Sparse Attention); formulas as for DenseDecode.
struct SparsePrefill {
  /// bf16 or f16 `[s_q, h_q, d_qk]`.
  TensorView q = {};
  /// Type of `q`, `[s_kv, h_kv, d_qk]`.
  TensorView kv = {};
  /// i32 `[s_q, h_kv, topk]`.
  TensorView indices = {};
  /// Optional f32 `[h_q]`: scales `out` by `exp(lse) / (exp(lse) + exp(attn_sink))`; not `lse`.
  TensorView attn_sink = {};
  /// Optional i32 `[s_q]`: only the leftmost entries of `indices` count; the rest is never read.
  TensorView topk_length = {};
  /// Factor of the logits; default `1 / sqrt(d_qk)`.
  std::optional<float> softmax_scale = std::nullopt;
  /// Type of `q`, `[s_q, h_q, d_v]`, `d_v <= d_qk`.
  TensorView out = {};
  /// f32 `[s_q, h_q]`: the largest logit, `softmax_scale` included; without the sink.
  TensorView max_logits = {};
  /// f32 `[s_q, h_q]`, natural logarithm; without the sink.
  TensorView lse = {};

  static const Fields<SparsePrefill>& fields();
};

/// See workspace_bytes(const DenseDecode&, const Execution&).
std::size_t workspace_bytes(const SparsePrefill& op, const Execution& on);

/// See run(const DenseDecode&, const Execution&).
void run(const SparsePrefill& op, const Execution& on);

}  // namespace flashmla
