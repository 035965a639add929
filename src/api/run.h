// The way of every operation: check, take the first kernel of the table that supports the case, run it.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <string>
#include <string_view>

#include "api/check.h"
#include "api/kernel_table.h"
#include "api/rules.h"
#include "flashmla/execution.h"

namespace flashmla {

template <class Op>
void check(const Op& op, const Execution& on, Checked what) {
  const std::string_view operation = Op::fields().operation;
  if (on.threads < 0 || on.threads > kMaxThreads) {
    fail(ErrorKind::kValue, operation, "Execution.threads must be in [0, ", kMaxThreads, "], got ",
         on.threads);
  }
  check_fields(operation, BoundFields<Op>(op).view(), on.device, what);
  check_rules(op);
}

/// "No kernel" as a sentence with every kernel's reason; or that the backend's name is unknown.
template <class Op>
[[noreturn]] void fail_no_kernel(const Op& op, const Execution& on) {
  std::string reasons;
  std::string backends;
  for (const Kernel<Op>& kernel : kernel_table<Op>()) {
    backends += text(backends.empty() ? "" : ", ", kernel.backend);
    if (!on.backend.empty() && kernel.backend != on.backend) continue;
    Support support = kernel.available(on.device);
    if (support.yes) support = kernel.supports(op, on);
    reasons += text(reasons.empty() ? "" : "; ", kernel.name, " ", support.reason);
  }
  if (reasons.empty()) {
    fail(ErrorKind::kValue, Op::fields().operation, "Execution.backend must be one of ", backends, ", got \"",
         on.backend, "\"");
  }
  fail(ErrorKind::kUnsupported, Op::fields().operation, "no kernel supports this case: ", reasons);
}

template <class Op>
const Kernel<Op>& select_kernel(const Op& op, const Execution& on) {
  for (const Kernel<Op>& kernel : kernel_table<Op>()) {
    const bool wanted = on.backend.empty() || kernel.backend == on.backend;
    if (wanted && kernel.available(on.device).yes && kernel.supports(op, on).yes) return kernel;
  }
  fail_no_kernel(op, on);
}

inline bool checks_indices(const Execution& on) {
  const char* variable = std::getenv("FLASHMLA_CHECK");
  return on.check_indices || (variable != nullptr && std::string_view(variable) == "1");
}

template <class Op>
std::size_t checked_workspace_bytes(const Op& op, const Execution& on) {
  check(op, on, Checked::kShapes);
  return select_kernel(op, on).workspace_bytes(op, on);
}

template <class Op>
void checked_run(const Op& op, const Execution& on) {
  check(op, on, Checked::kShapesAndMemory);
  const Kernel<Op>& kernel = select_kernel(op, on);
  const std::size_t needed = kernel.workspace_bytes(op, on);
  const std::size_t given = on.workspace == nullptr ? 0 : on.workspace_size;
  if (given < needed) {
    fail(ErrorKind::kValue, Op::fields().operation, "Execution.workspace must hold ", needed, " bytes, got ",
         given);
  }
  if (on.device.type == DeviceType::kCpu && checks_indices(on)) check_indices(op);
  kernel.run(op, on);
}

}  // namespace flashmla
