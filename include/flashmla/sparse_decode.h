// Attention of a few new query tokens over selected tokens of a paged, usually FP8, cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "flashmla/execution.h"
#include "flashmla/fields.h"
#include "flashmla/tensor.h"

namespace flashmla {

/// Token-sparse decode: each query token attends over the cache rows that its `indices` name, and, if
/// given, over rows of a second cache with a page size of its own, in one softmax.
///
/// An index counts tokens of its cache: block `index / page`, row `index % page`. One outside
/// `[0, blocks * page)` is skipped; a duplicate counts as often as it appears. A query without any
/// valid index gets `out = 0`, `lse = +inf`.
/// Source: DeepSeek-V3.2 (DeepSeek Sparse Attention); formulas as for DenseDecode.
struct SparseDecode {
  /// bf16 or f16 `[batch, s_q, h_q, d_qk]`.
  TensorView q = {};
  /// u8 `[blocks, page, 1, row]` in an FP8 format that `row`, in bytes, tells (kv_format.h), or the
  /// type of `q`, `[blocks, page, h_kv, d_qk]`.
  TensorView kv_cache = {};
  /// i32 `[batch, s_q, topk]`; shared by all heads.
  TensorView indices = {};
  /// Optional i32 `[batch]`: only the leftmost entries of `indices` count; the rest is never read.
  TensorView topk_length = {};
  /// Optional f32 `[h_q]`: scales `out` by `exp(lse) / (exp(lse) + exp(attn_sink))`; not `lse`.
  TensorView attn_sink = {};
  /// Optional second cache: format and kv heads of `kv_cache`, `[extra_blocks, extra_page, h_kv, row]`.
  TensorView extra_kv_cache = {};
  /// i32 `[batch, s_q, extra_topk]`, given together with `extra_kv_cache`.
  TensorView extra_indices = {};
  /// Optional i32 `[batch]`.
  TensorView extra_topk_length = {};
  /// Optional, both or none: from make_schedule (see schedule.h), i32 `[parts, 8]`.
  TensorView schedule = {};
  /// i32 `[batch + 1]`.
  TensorView num_splits = {};
  /// Factor of the logits; default `1 / sqrt(d_qk)`.
  std::optional<float> softmax_scale = std::nullopt;
  /// As in DenseDecode; counts entries of `indices`, then of `extra_indices`.
  std::int64_t split_size = 0;
  /// Type of `q`, `[batch, s_q, h_q, d_v]`, `d_v <= d_qk`.
  TensorView out = {};
  /// f32 `[batch, h_q, s_q]`, natural logarithm; without the sink.
  TensorView lse = {};

  static const Fields<SparseDecode>& fields();
};

/// See workspace_bytes(const DenseDecode&, const Execution&).
std::size_t workspace_bytes(const SparseDecode& op, const Execution& on);

/// See run(const DenseDecode&, const Execution&).
void run(const SparseDecode& op, const Execution& on);

}  // namespace flashmla
