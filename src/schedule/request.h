// The schedule request of each operation that uses a schedule.
#pragma once

#include <algorithm>
#include <cstdint>

#include "api/shapes.h"
#include "flashmla/dense_decode.h"
#include "flashmla/schedule.h"
#include "flashmla/sparse_decode.h"
#include "schedule/schedule.h"

namespace flashmla {

inline LengthsView lengths_of(const TensorView& tensor) {
  return {tensor.as<const std::int32_t>(), tensor.ndim > 0 ? tensor.strides[0] : 1};
}

/// Rows of a schedule for kernels on the CPU. A constant, so that the bits of a result do not depend on the
/// number of threads; enough to keep them busy, few enough that merging partial results stays cheap.
inline constexpr std::int64_t kCpuScheduleParts = 32;

/// Keys at whose multiples kernels on the CPU split a sequence, four of them apart at least: a split must be
/// long against its merge.
inline constexpr std::int64_t kCpuScheduleTile = 128;

/// A split longer than any sequence is the same as one that is just as long, and fits an i32.
inline std::int64_t counted_split_size(std::int64_t split_size) {
  return std::min(split_size, kLargestLength);
}

/// `tile`: keys at whose multiples sequences are split.
inline ScheduleRequest schedule_request(const MakeSchedule& op, std::int64_t tile) {
  return {.cache_seqlens = lengths_of(op.cache_seqlens),
          .topk_length = lengths_of(op.topk_length),
          .extra_topk_length = lengths_of(op.extra_topk_length),
          .batch = op.num_splits.shape[0] - 1,
          .max_seqlen = op.max_seqlen,
          .topk = op.topk,
          .extra_topk = op.extra_topk,
          .split_size = counted_split_size(op.split_size),
          .parts = op.schedule.shape[0],
          .tile = tile};
}

inline ScheduleRequest schedule_request(const DenseDecode& op, std::int64_t parts, std::int64_t tile) {
  return {.cache_seqlens = lengths_of(op.cache_seqlens),
          .batch = op.cache_seqlens.shape[0],
          .max_seqlen = longest_sequence(op),
          .split_size = counted_split_size(op.split_size),
          .parts = parts,
          .tile = tile};
}

inline ScheduleRequest schedule_request(const SparseDecode& op, std::int64_t parts, std::int64_t tile) {
  return {.topk_length = lengths_of(op.topk_length),
          .extra_topk_length = lengths_of(op.extra_topk_length),
          .batch = op.indices.shape[0],
          .topk = op.indices.shape[2],
          .extra_topk = op.extra_indices.given() ? op.extra_indices.shape[2] : 0,
          .split_size = counted_split_size(op.split_size),
          .parts = parts,
          .tile = tile};
}

}  // namespace flashmla
