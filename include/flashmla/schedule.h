// How the work of a decode step is split over the machine; computed once, used by every layer.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flashmla/dense_decode.h"
#include "flashmla/execution.h"
#include "flashmla/fields.h"
#include "flashmla/sparse_decode.h"
#include "flashmla/tensor.h"

namespace flashmla {

/// Splits the keys of a batch into parts of about equal cost. A decode operation without a schedule
/// computes the same one itself; with one it saves that time in every layer.
///
/// Lengths come from `cache_seqlens` (dense), or are `topk + extra_topk` for every sequence, cut by
/// `topk_length` and `extra_topk_length` where given (sparse).
struct MakeSchedule {
  /// Optional i32 `[batch]`; then `topk` and `extra_topk` are 0.
  TensorView cache_seqlens = {};
  /// Optional i32 `[batch]`.
  TensorView topk_length = {};
  /// Optional i32 `[batch]`.
  TensorView extra_topk_length = {};
  /// Upper bound of every entry of `cache_seqlens`, given together with it: `max_blocks * page`.
  std::int64_t max_seqlen = -1;
  std::int64_t topk = 0;
  std::int64_t extra_topk = 0;
  /// As in the decode operation that will use the schedule.
  std::int64_t split_size = 0;
  /// i32 `[parts, 8]`, any `parts >= 1` (schedule_parts has a good number). Row `p`: first sequence,
  /// its first key, last sequence, the end of its keys, number of the first sequence's split that
  /// begins here, `split_size`, 0, 0. A part without work has a first sequence behind its last.
  TensorView schedule = {};
  /// i32 `[batch + 1]`: splits of all sequences before this one.
  TensorView num_splits = {};

  static const Fields<MakeSchedule>& fields();
};

/// See workspace_bytes(const DenseDecode&, const Execution&).
std::size_t workspace_bytes(const MakeSchedule& op, const Execution& on);

/// See run(const DenseDecode&, const Execution&). Reads lengths where they live: on a GPU nothing is
/// copied to the host, and the call may be captured in a CUDA graph.
void run(const MakeSchedule& op, const Execution& on);

/// Rows that the `schedule` tensor of this operation should have on this machine. Only the shapes of
/// `op` are read; `op.schedule`, `op.num_splits` and the outputs need not be set.
std::int64_t schedule_parts(const DenseDecode& op, const Execution& on);
std::int64_t schedule_parts(const SparseDecode& op, const Execution& on);

/// Scratch that make_schedule needs for this operation, in bytes; `op.schedule` and `op.num_splits` are set.
std::size_t make_schedule_workspace_bytes(const DenseDecode& op, const Execution& on);
std::size_t make_schedule_workspace_bytes(const SparseDecode& op, const Execution& on);

/// Fills `op.schedule` and `op.num_splits` for `op` and every operation with the same lengths, shapes
/// and `split_size`. Outputs and `q` need not be set. Throws as `run` does.
void make_schedule(const DenseDecode& op, const Execution& on);
void make_schedule(const SparseDecode& op, const Execution& on);

}  // namespace flashmla
