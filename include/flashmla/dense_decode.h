// Attention of a few new query tokens over a paged cache of latent rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "flashmla/execution.h"
#include "flashmla/fields.h"
#include "flashmla/tensor.h"

namespace flashmla {

/// Decode with multi-head latent attention in MQA mode: one cached row per token and kv head is the
/// key (all `d_qk` columns) and the value (its first `d_v` columns). Query head `j` reads kv head
/// `j / (h_q / h_kv)`.
///
/// With `l_t = softmax_scale * <q, k_t>` over the visible tokens `t`: `lse = log(sum exp l_t)` and
/// `out = sum exp(l_t - lse) v_t`. A query that sees nothing gets `out = 0` and `lse = +inf`.
///
/// A cache of bytes holds e4m3 codes `c_t`. With the two factors of the sequence, `l_t = softmax_scale *
/// descale_q * descale_k * <q, c_t>` and `out = descale_k * sum exp(l_t - lse) c_t`, where `c_t` stands for
/// `v_t` too. The codes 0x7f and 0xff are NaN. Factors may be any f32 and take part as numbers do: with 0
/// all logits are 0, a negative one turns their sign, NaN makes `out` and `lse` NaN wherever a token is
/// visible. The product of the three factors must be an f32; beyond that range results are unspecified.
/// Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.2, with the up-projections absorbed.
struct DenseDecode {
  /// bf16 or f16 `[batch, s_q, h_q, d_qk]`.
  TensorView q = {};
  /// Type of `q`, or u8 for e4m3 codes, `[blocks, page, h_kv, d_qk]`: blocks of `page` tokens. `d_qk` is a
  /// multiple of 8, of 16 for u8.
  TensorView kv_cache = {};
  /// i32 `[batch, max_blocks]`: the blocks of each sequence in order. Entries behind the last used
  /// block are never read. Tokens of a block outside `[0, blocks)` are masked.
  TensorView block_table = {};
  /// i32 `[batch]`: tokens in the cache, the `s_q` new ones included; clamped to
  /// `[0, max_blocks * page]`.
  TensorView cache_seqlens = {};
  /// Optional, both or none: from make_schedule (see schedule.h), i32 `[parts, 8]`. One that was made for
  /// other lengths is an error on a CPU; on a GPU `out` and `lse` are then unspecified, and nothing else is
  /// touched.
  TensorView schedule = {};
  /// i32 `[batch + 1]`.
  TensorView num_splits = {};
  /// Optional, for a u8 cache only; default 1. f32 `[batch]`: what the true queries are over those in `q`.
  TensorView descale_q = {};
  /// Optional, for a u8 cache only; default 1. f32 `[batch]`: what the true keys and values are over their
  /// codes.
  TensorView descale_k = {};
  /// Factor of the logits; default `1 / sqrt(d_qk)`.
  std::optional<float> softmax_scale = std::nullopt;
  /// Query `i` of `s_q` sees tokens `t <= cache_seqlens - s_q + i` instead of all.
  bool causal = false;
  /// Keys after which a sequence is split, a positive number, makes the bits of a row independent of
  /// the rest of the batch (batch-invariant). 0 balances the work over the machine instead.
  std::int64_t split_size = 0;
  /// Type of `q`, `[batch, s_q, h_q, d_v]`, `d_v <= d_qk`.
  TensorView out = {};
  /// f32 `[batch, h_q, s_q]`, natural logarithm.
  TensorView lse = {};

  static const Fields<DenseDecode>& fields();
};

/// Bytes of scratch memory that `run` needs for these shapes. Only shapes, types and strides are read:
/// tensors may have null data yet. Throws Error as `run` does, but for memory and workspace.
std::size_t workspace_bytes(const DenseDecode& op, const Execution& on);

/// Runs the operation. Allocates nothing; on a GPU only enqueues. Throws Error before any work starts
/// if an argument is wrong, the workspace is too small, or no kernel supports the case.
void run(const DenseDecode& op, const Execution& on);

}  // namespace flashmla
