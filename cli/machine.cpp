// What this machine is: processor, cores, memory, and the instruction set that the kernels use.
#include "cli/machine.h"

#include <omp.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "flashmla/kernels.h"

namespace flashmla::cli {
namespace {

// Linux names the model of an x86 processor in /proc/cpuinfo; elsewhere the architecture has to do.
std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  utsname names{};
  return uname(&names) == 0 ? names.machine : "unknown";
}

std::string cpu_instruction_set() {
  for (const KernelInfo& kernel : kernels()) {
    if (kernel.backend == "cpu" && kernel.available) return kernel.reason;
  }
  return "";
}

std::uint64_t memory_bytes() {
  const long pages = sysconf(_SC_PHYS_PAGES);
  const long page_size = sysconf(_SC_PAGE_SIZE);
  return pages > 0 && page_size > 0
             ? static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(page_size)
             : 0;
}

/// Linux lists the caches of a core from the first level to the last, with sizes as in `2048K`.
std::uint64_t last_level_cache_bytes() {
  std::uint64_t kibibytes = 0;
  for (int level = 0;; ++level) {
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(level) + "/size");
    std::uint64_t size = 0;
    if (!(file >> size)) return kibibytes << 10;
    kibibytes = std::max(kibibytes, size);
  }
}

bool has_amx_bf16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("amx-bf16") != 0;
#else
  return false;
#endif
}

}  // namespace

Machine this_machine() {
  return {.cpu = cpu_model(),
          .cores = omp_get_num_procs(),
          .memory_bytes = memory_bytes(),
          .last_level_cache_bytes = last_level_cache_bytes(),
          .has_amx_bf16 = has_amx_bf16(),
          .cpu_instruction_set = cpu_instruction_set()};
}

nlohmann::ordered_json to_json(const Machine& machine) {
  return {{"cpu", machine.cpu},
          {"cores", machine.cores},
          {"memory_bytes", machine.memory_bytes},
          {"last_level_cache_bytes", machine.last_level_cache_bytes},
          {"amx_bf16", machine.has_amx_bf16},
          {"instruction_set", machine.cpu_instruction_set}};
}

}  // namespace flashmla::cli
