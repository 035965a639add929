// make_schedule on the CPU: one thread, a few microseconds.
#include "cpu/cpu.h"
#include "schedule/request.h"

namespace flashmla::cpu {

std::size_t workspace_bytes(const MakeSchedule&, const Execution&) { return 0; }

void run(const MakeSchedule& op, const Execution&) {
  make_schedule(schedule_request(op, kCpuScheduleTile), op.schedule.as<std::int32_t>(),
                op.schedule.strides[0], op.num_splits.as<std::int32_t>(), op.num_splits.strides[0]);
}

}  // namespace flashmla::cpu
