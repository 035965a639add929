// Which backend and kernel takes a case.
#include "cli/backends.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "flashmla/error.h"

namespace flashmla::cli {

std::vector<std::string> backend_names() {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : kernels()) {
    if (std::find(names.begin(), names.end(), kernel.backend) == names.end()) {
      names.emplace_back(kernel.backend);
    }
  }
  return names;
}

Execution execution(const ExecutionOptions& options) {
  const std::vector<std::string> names = backend_names();
  if (!options.backend.empty() && std::find(names.begin(), names.end(), options.backend) == names.end()) {
    throw Error(ErrorKind::kValue, fmt::format("--backend must be one of {}, got \"{}\"",
                                               fmt::join(names, ", "), options.backend));
  }
  if (options.threads < 0 || options.threads > kMostThreads) {
    throw Error(ErrorKind::kValue,
                fmt::format("--threads must be 0 to {}, got {}", kMostThreads, options.threads));
  }
  Execution on;
  on.backend = options.backend;
  on.threads = options.threads;
  return on;
}

KernelInfo kernel_for(const cases::Step& step, const Execution& on) {
  step.workspace_bytes(on);
  for (const KernelInfo& kernel : kernels()) {
    if (kernel.operation != step.name() || !kernel.available) continue;
    if (!on.backend.empty() && kernel.backend != on.backend) continue;
    Execution pinned = on;
    pinned.backend = kernel.backend;
    try {
      step.workspace_bytes(pinned);
      return kernel;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kUnsupported) throw;
    }
  }
  throw Error(ErrorKind::kUnsupported, fmt::format("{}: no kernel in the table", step.name()));
}

std::string backend_for(const cases::Case& what, const Execution& on) {
  const std::vector<cases::Step> steps = cases::prepare(what);
  try {
    return std::string(kernel_for(steps.front(), on).backend);
  } catch (const Error& error) {
    throw Error(error.kind(), fmt::format("{}: {}", what.source, error.what()));
  }
}

void require_kernel(const std::string& operation, const Shape& shape, const Execution& on) {
  const cases::Case what = random_case(operation, smallest_like(shape), Purpose::kBench, 0);
  kernel_for(cases::prepare(what).front(), on);
}

}  // namespace flashmla::cli
