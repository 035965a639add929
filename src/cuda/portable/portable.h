// The kernels that run on every NVIDIA GPU from SM80 on.
#pragma once

#include <cstddef>
#include <cstdint>

#include "api/kernel_table.h"
#include "flashmla/execution.h"
#include "flashmla/operations.h"

namespace flashmla::portable {

/// Whether there is a GPU behind `device` that runs these kernels.
Support available(Device device);

Support supports(const DenseDecode& op, const Execution& on);
std::size_t workspace_bytes(const DenseDecode& op, const Execution& on);
void run(const DenseDecode& op, const Execution& on);

/// Parts that a schedule for this operation should have; see flashmla::schedule_parts.
std::int64_t schedule_parts(const DenseDecode& op, const Execution& on);

Support supports(const MakeSchedule& op, const Execution& on);
std::size_t workspace_bytes(const MakeSchedule& op, const Execution& on);
void run(const MakeSchedule& op, const Execution& on);

}  // namespace flashmla::portable
