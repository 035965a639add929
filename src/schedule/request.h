// The schedule request of each operation that uses a schedule.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "flashmla/dense_decode.h"
#include "flashmla/schedule.h"
#include "flashmla/sparse_decode.h"
#include "schedule/schedule.h"

namespace flashmla {

inline LengthsView lengths_of(const TensorView& tensor) {
  return {tensor.as<const std::int32_t>(), tensor.ndim > 0 ? tensor.strides[0] : 1};
}

/// Keys are counted in i32: no sequence has more, and a longer split is the same as this one.
inline constexpr std::int64_t kMostKeys = std::numeric_limits<std::int32_t>::max();

/// `request` with its sizes cut to what the schedule's numbers can count.
inline ScheduleRequest countable(ScheduleRequest request) {
  request.topk = std::min(request.topk, kMostKeys);
  request.extra_topk = std::min(request.extra_topk, kMostKeys - request.topk);
  request.split_size = std::min(request.split_size, kMostKeys);
  return request;
}

/// `tile`: keys that the kernel handles at a time.
inline ScheduleRequest schedule_request(const MakeSchedule& op, std::int64_t tile) {
  return countable({.cache_seqlens = lengths_of(op.cache_seqlens),
                    .topk_length = lengths_of(op.topk_length),
                    .extra_topk_length = lengths_of(op.extra_topk_length),
                    .batch = op.num_splits.shape[0] - 1,
                    .max_seqlen = op.max_seqlen,
                    .topk = op.topk,
                    .extra_topk = op.extra_topk,
                    .split_size = op.split_size,
                    .parts = op.schedule.shape[0],
                    .tile = tile});
}

inline ScheduleRequest schedule_request(const DenseDecode& op, std::int64_t parts, std::int64_t tile) {
  return countable({.cache_seqlens = lengths_of(op.cache_seqlens),
                    .batch = op.cache_seqlens.shape[0],
                    .max_seqlen = longest_sequence(op),
                    .split_size = op.split_size,
                    .parts = parts,
                    .tile = tile});
}

inline ScheduleRequest schedule_request(const SparseDecode& op, std::int64_t parts, std::int64_t tile) {
  return countable({.topk_length = lengths_of(op.topk_length),
                    .extra_topk_length = lengths_of(op.extra_topk_length),
                    .batch = op.indices.shape[0],
                    .topk = op.indices.shape[2],
                    .extra_topk = op.extra_indices.given() ? op.extra_indices.shape[2] : 0,
                    .split_size = op.split_size,
                    .parts = parts,
                    .tile = tile});
}

}  // namespace flashmla
