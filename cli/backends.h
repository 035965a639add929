// Which backend and kernel takes a case.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cases/case.h"
#include "cli/commands.h"
#include "flashmla/execution.h"
#include "flashmla/kernels.h"

namespace flashmla::cli {

inline constexpr std::string_view kReference = "reference";

inline constexpr int kMostThreads = 1024;

/// The kernel table as it stands on this machine: what runs on the CPU or on the first GPU is available.
std::vector<KernelInfo> machine_kernels();

/// The backends of the kernel table, in its order.
std::vector<std::string> backend_names();

/// Those of which this machine can run a kernel.
std::vector<std::string> available_backends();

/// `options` as the library takes it, on the device that they name or else on the backend's; `options` must
/// outlive the result. Throws Error for a backend that the kernel table does not have, for a device that is
/// not there, and for a number of threads that makes no sense.
Execution execution(const ExecutionOptions& options);

/// The row of the kernel table that takes this step. Throws what the library throws for a case that is
/// wrong or that no kernel supports.
KernelInfo kernel_for(const cases::Step& step, const Execution& on);

/// The backend that takes the first step of the case; names the case's source in errors.
std::string backend_for(const cases::Case& what, const Execution& on);

/// Throws what the library throws for a shape that is wrong or that no kernel supports. Takes hardly any
/// memory or time, however large the shape.
void require_kernel(const std::string& operation, const Shape& shape, const Execution& on);

}  // namespace flashmla::cli
