// make_schedule on a GPU.
#include <algorithm>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/portable/portable.h"
#include "cuda/portable/schedule.h"
#include "cuda/ptx/control.h"
#include "cuda/schedule_kernel.h"

namespace flashmla::portable {
namespace {

__global__ void __launch_bounds__(cuda::kScheduleThreads)
    schedule_kernel(const __grid_constant__ cuda::ScheduleParams params) {
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  cuda::ScheduleBlock(params).run();
}

}  // namespace

std::int64_t parts_for(std::int64_t blocks_per_part, int blocks_per_multiprocessor, std::int64_t batch,
                       Device device) {
  const std::int64_t blocks =
      std::int64_t{blocks_per_multiprocessor} * cuda::device_properties(device.index).multiprocessors;
  const std::int64_t most = std::max<std::int64_t>(blocks / std::max<std::int64_t>(blocks_per_part, 1), 1);
  const std::int64_t least = most - most / 16;
  for (std::int64_t parts = most; parts >= least && batch > 0; --parts) {
    if (parts % batch == 0 || batch % parts == 0) return parts;
  }
  return most;
}

void launch_schedule(const ScheduleRequest& request, const ScheduleOutput& output,
                     const ScheduleScratch& scratch, const Execution& on) {
  const cuda::ScheduleParams params{.request = request,
                                    .rows = output.rows,
                                    .row_stride = output.row_stride,
                                    .num_splits = output.num_splits,
                                    .num_splits_stride = output.num_splits_stride,
                                    .costs = scratch.costs,
                                    .cuts = scratch.cuts,
                                    .inner_cuts = scratch.inner_cuts};
  cuda::launch(schedule_kernel, "make_schedule",
               {.grid = {1},
                .block = {cuda::kScheduleThreads},
                .shared_bytes = sizeof(cuda::ScheduleShared),
                .overlaps_previous = cuda::kernels_overlap(on.device.index),
                .stream = on.stream},
               params);
}

Support supports(const MakeSchedule&, const Execution&) { return {}; }

namespace {

ScheduleScratch scratch_of(Workspace& workspace, const MakeSchedule& op) {
  return ScheduleScratch(workspace, op.num_splits.shape[0] - 1, op.schedule.shape[0]);
}

}  // namespace

std::size_t workspace_bytes(const MakeSchedule& op, const Execution&) {
  Workspace workspace;
  scratch_of(workspace, op);
  return workspace.bytes();
}

void run(const MakeSchedule& op, const Execution& on) {
  const cuda::CurrentDevice current(on.device.index);
  Workspace workspace(on);
  launch_schedule(schedule_request(op, kScheduleTile),
                  {op.schedule.as<std::int32_t>(), op.schedule.strides[0], op.num_splits.as<std::int32_t>(),
                   op.num_splits.strides[0]},
                  scratch_of(workspace, op), on);
}

}  // namespace flashmla::portable
