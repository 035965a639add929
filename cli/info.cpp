// flashmla info: the machine, the backends, and the kernel table as it stands here.
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "cli/backends.h"
#include "cli/commands.h"
#include "cli/gpu_report.h"
#include "cli/machine.h"
#include "cli/table.h"
#include "cuda/device.h"
#include "flashmla/kernels.h"

namespace flashmla::cli {
namespace {

struct Backend {
  std::string name;
  int kernels = 0;
  int available = 0;
};

std::vector<Backend> backends(const std::vector<KernelInfo>& table) {
  std::vector<Backend> found;
  for (const std::string& name : backend_names()) {
    Backend backend{.name = name};
    for (const KernelInfo& kernel : table) {
      if (kernel.backend != name) continue;
      ++backend.kernels;
      if (kernel.available) ++backend.available;
    }
    found.push_back(backend);
  }
  return found;
}

void print_json(const Machine& machine, const std::vector<KernelInfo>& table) {
  nlohmann::ordered_json json = {{"version", FLASHMLA_VERSION}, {"machine", to_json(machine)}};
  json["gpus"] = nlohmann::ordered_json::array();
  for (int i = 0; i < cuda::device_count(); ++i) json["gpus"].push_back(gpu_json(i));
  json["backends"] = nlohmann::ordered_json::array();
  for (const Backend& backend : backends(table)) {
    json["backends"].push_back(
        {{"name", backend.name}, {"kernels", backend.kernels}, {"available", backend.available}});
  }
  json["kernels"] = nlohmann::ordered_json::array();
  for (const KernelInfo& kernel : table) {
    json["kernels"].push_back({{"operation", kernel.operation},
                               {"backend", kernel.backend},
                               {"name", kernel.name},
                               {"available", kernel.available},
                               {"reason", kernel.reason}});
  }
  fmt::print("{}\n", json.dump(2));
}

void print_text(const Machine& machine, const std::vector<KernelInfo>& table) {
  fmt::print("flashmla {}\n", FLASHMLA_VERSION);
  fmt::print("machine: {}, {} cores, {:.1f} GiB\n", machine.cpu, machine.cores,
             static_cast<double>(machine.memory_bytes) / (1 << 30));
  if (!machine.cpu_instruction_set.empty()) {
    fmt::print("instruction set: {}\n", machine.cpu_instruction_set);
  }
  if (machine.has_amx_bf16) {
    const bool used = machine.cpu_instruction_set == "amx_bf16";
    fmt::print("amx_bf16: yes, {}used by the cpu backend\n", used ? "" : "not ");
  }
  for (int i = 0; i < cuda::device_count(); ++i) {
    const cuda::DeviceProperties& gpu = cuda::device_properties(i);
    fmt::print("gpu {}: {}, sm_{}, {} multiprocessors, {:.1f} GiB, {} bytes of shared memory a block\n", i,
               gpu.name, gpu.architecture(), gpu.multiprocessors,
               static_cast<double>(gpu.memory_bytes) / (1 << 30), cuda::shared_memory_limit(i));
  }
  for (const Backend& backend : backends(table)) {
    fmt::print("backend {}: {} of {} kernels available\n", backend.name, backend.available, backend.kernels);
  }
  fmt::print("\n");
  Table text({{"operation"}, {"kernel"}, {"available"}, {"because"}});
  for (const KernelInfo& kernel : table) {
    text.add({std::string(kernel.operation), std::string(kernel.name), kernel.available ? "yes" : "no",
              kernel.reason});
  }
  text.print();
}

}  // namespace

int info(const InfoOptions& options) {
  const Machine machine = this_machine();
  const std::vector<KernelInfo> table = machine_kernels();
  options.json ? print_json(machine, table) : print_text(machine, table);
  return kSuccess;
}

}  // namespace flashmla::cli
