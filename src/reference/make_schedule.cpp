// The schedule of a decode batch.
#include "flashmla/schedule.h"
#include "reference/reference.h"
#include "schedule/request.h"

namespace flashmla::reference {

std::size_t workspace_bytes(const MakeSchedule&, const Execution&) { return 0; }

void run(const MakeSchedule& op, const Execution&) {
  flashmla::make_schedule(schedule_request(op, kCpuScheduleTile), op.schedule.as<std::int32_t>(),
                          op.schedule.strides[0], op.num_splits.as<std::int32_t>(), op.num_splits.strides[0]);
}

}  // namespace flashmla::reference
