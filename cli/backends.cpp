// Which backend and kernel takes a case.
#include "cli/backends.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "cases/on_device.h"
#include "cuda/device.h"
#include "flashmla/error.h"

namespace flashmla::cli {

namespace {

void add_once(std::vector<std::string>& names, std::string_view name) {
  if (std::find(names.begin(), names.end(), name) == names.end()) names.emplace_back(name);
}

Device device_named(const std::string& name) {
  if (name == "cpu") return {};
  const std::string_view text(name);
  int ordinal = 0;
  bool known = text == "cuda";
  if (text.starts_with("cuda:")) {
    const auto [end, error] = std::from_chars(text.data() + 5, text.data() + text.size(), ordinal);
    known = error == std::errc() && end == text.data() + text.size() && ordinal >= 0;
  }
  if (!known) {
    throw Error(ErrorKind::kValue, fmt::format("--device must be cpu, cuda or cuda:N, got \"{}\"", name));
  }
  if (ordinal >= cuda::device_count()) {
    throw Error(ErrorKind::kValue, fmt::format("--device {}: this machine has {} GPUs that CUDA finds", name,
                                               cuda::device_count()));
  }
  return {DeviceType::kCuda, ordinal};
}

}  // namespace

std::vector<KernelInfo> machine_kernels() {
  std::vector<KernelInfo> list = kernels();
  const std::vector<KernelInfo> on_gpu = kernels({DeviceType::kCuda, 0});
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (!list[i].available) list[i] = on_gpu[i];
  }
  return list;
}

std::vector<std::string> backend_names() {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : kernels()) add_once(names, kernel.backend);
  return names;
}

std::vector<std::string> available_backends() {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : machine_kernels()) {
    if (kernel.available) add_once(names, kernel.backend);
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
  on.device = options.device.empty() ? cases::device_of(options.backend) : device_named(options.device);
  return on;
}

KernelInfo kernel_for(const cases::Step& step, const Execution& on) {
  step.workspace_bytes(on);
  for (const KernelInfo& kernel : kernels(on.device)) {
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
