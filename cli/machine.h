// What this machine is: processor, cores, memory, and the instruction set that the kernels use.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace flashmla::cli {

struct Machine {
  std::string cpu;                           ///< model name
  int cores = 0;                             ///< hardware threads that this process may use
  std::uint64_t memory_bytes = 0;            ///< physical
  std::uint64_t last_level_cache_bytes = 0;  ///< that one core reaches; 0 if the system does not tell
  bool has_amx_bf16 = false;                 ///< tiles that multiply bf16
  std::string cpu_instruction_set;           ///< what the `cpu` backend chose; empty without that backend
};

Machine this_machine();

nlohmann::ordered_json to_json(const Machine& machine);

}  // namespace flashmla::cli
