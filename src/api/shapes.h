// The sizes of a checked operation as plain numbers, and the defaults that follow from them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

#include "flashmla/operations.h"

namespace flashmla {

struct DecodeShape {
  std::int64_t batch, s_q, h_q, h_kv, d_qk, d_v;
  std::int64_t group() const { return h_q / h_kv; }  ///< query heads that share a kv head
};

inline DecodeShape shape_of(const DenseDecode& op) {
  return {op.q.shape[0], op.q.shape[1], op.q.shape[2], op.kv_cache.shape[2], op.q.shape[3], op.out.shape[3]};
}

inline DecodeShape shape_of(const SparseDecode& op) {
  return {op.q.shape[0], op.q.shape[1], op.q.shape[2], op.kv_cache.shape[2], op.q.shape[3], op.out.shape[3]};
}

/// Tokens that a paged cache `[blocks, page, h_kv, row]` holds.
inline std::int64_t tokens_in(const TensorView& kv_cache) { return kv_cache.shape[0] * kv_cache.shape[1]; }

/// A length is an i32.
inline constexpr std::int64_t kLargestLength = std::numeric_limits<std::int32_t>::max();

/// Tokens that a row of `block_table` can name, as far as a length can count them.
inline std::int64_t longest_sequence(const DenseDecode& op) {
  const std::int64_t page = std::max<std::int64_t>(op.kv_cache.shape[1], 1);
  const std::int64_t max_blocks = op.block_table.shape[1];
  return max_blocks > kLargestLength / page ? kLargestLength : max_blocks * page;
}

struct PrefillShape {
  std::int64_t s_q, s_kv, h_q, h_kv, topk, d_qk, d_v;
  std::int64_t group() const { return h_q / h_kv; }
};

inline PrefillShape shape_of(const SparsePrefill& op) {
  return {op.q.shape[0],       op.kv.shape[0], op.q.shape[1],  op.kv.shape[1],
          op.indices.shape[2], op.q.shape[2],  op.out.shape[2]};
}

struct MhaShape {
  std::int64_t batch, total_q, total_k, h_q, h_kv, d_qk, d_v;
  std::int64_t group() const { return h_q / h_kv; }
};

template <class Mha>  // MhaForward or MhaBackward
  requires requires(const Mha& op) { op.cu_seqlens_q; }
MhaShape shape_of(const Mha& op) {
  return {op.cu_seqlens_q.shape[0] - 1,
          op.q.shape[0],
          op.k.shape[0],
          op.q.shape[1],
          op.k.shape[1],
          op.q.shape[2],
          op.v.shape[2]};
}

/// The factor of the logits: as given, or `1 / sqrt(d_qk)`.
inline double softmax_scale_or_default(std::optional<float> given, std::int64_t d_qk) {
  return given ? *given : 1.0 / std::sqrt(static_cast<double>(d_qk));
}

}  // namespace flashmla
