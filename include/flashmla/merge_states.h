// Attention results over disjoint keys into one.
#pragma once

#include <cstddef>
#include <span>

#include "flashmla/execution.h"
#include "flashmla/fields.h"
#include "flashmla/tensor.h"

namespace flashmla {

/// Merges two or more `(out, lse)` pairs over disjoint sets of keys, as in context parallelism, cascade
/// attention or chunked prefill: `lse = log(sum exp lse_s)`, `out = sum exp(lse_s - lse) out_s`.
///
/// A state that saw nothing (`lse` +inf, as this library writes it, or -inf, as others do) has no
/// weight and its `out` is not read; if all are so, `out = 0` and `lse = +inf`. The layout is that of
/// the decode operations; `[tokens, h, d]` and `[tokens, h]` results of prefill and MHA are seen as
/// `[tokens, 1, h, d]` and `[tokens, h, 1]`.
struct MergeStates {
  /// Two or more of bf16, f16 or f32 `[batch, s_q, h_q, d_v]`, all of one type.
  std::span<const TensorView> outs = {};
  /// As many of f32 `[batch, h_q, s_q]`.
  std::span<const TensorView> lses = {};
  /// bf16, f16 or f32 `[batch, s_q, h_q, d_v]`. May be one of `outs` (same type and strides).
  TensorView out = {};
  /// f32 `[batch, h_q, s_q]`. May be one of `lses` (same strides).
  TensorView lse = {};

  static const Fields<MergeStates>& fields();
};

/// See workspace_bytes(const DenseDecode&, const Execution&).
std::size_t workspace_bytes(const MergeStates& op, const Execution& on);

/// See run(const DenseDecode&, const Execution&).
void run(const MergeStates& op, const Execution& on);

}  // namespace flashmla
