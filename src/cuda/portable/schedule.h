// Making schedules on a GPU.
#pragma once

#include <cstdint>

#include "api/workspace.h"
#include "flashmla/execution.h"
#include "schedule/request.h"
#include "schedule/schedule.h"

namespace flashmla::portable {

/// Keys at whose multiples sequences are divided: a tile of the kernels.
inline constexpr std::int64_t kScheduleTile = 32;

/// Parts of a schedule whose every part is the work of `blocks_per_part` blocks: as many as run at the same
/// time, or up to 1/16 fewer, if sequences of equal length then need not be divided unevenly: a sequence in
/// two parts costs a store and a load of its sums.
std::int64_t parts_for(std::int64_t blocks_per_part, int blocks_per_multiprocessor, std::int64_t batch,
                       Device device);

struct ScheduleScratch {
  std::int64_t* costs;
  schedule::Position* cuts;
  std::int32_t* inner_cuts;

  ScheduleScratch(Workspace& workspace, std::int64_t batch, std::int64_t parts)
      : costs(workspace.take<std::int64_t>(static_cast<std::size_t>(batch) + 1)),
        cuts(workspace.take<schedule::Position>(static_cast<std::size_t>(parts) + 1)),
        inner_cuts(workspace.take<std::int32_t>(static_cast<std::size_t>(parts) + 1)) {}
};

/// Where a schedule is written; strides in elements.
struct ScheduleOutput {
  std::int32_t* rows;
  std::int64_t row_stride;
  std::int32_t* num_splits;
  std::int64_t num_splits_stride;
};

/// Enqueues the kernel. The GPU of `on` is the current one.
void launch_schedule(const ScheduleRequest& request, const ScheduleOutput& output,
                     const ScheduleScratch& scratch, const Execution& on);

}  // namespace flashmla::portable
