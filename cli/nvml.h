// What the management library of NVIDIA's driver says of a GPU. Needs the library at run time alone.
#pragma once

#include <string>

namespace flashmla::cli {

/// Zero or empty where there is no such library, or where it does not tell.
struct GpuState {
  std::string driver;  ///< `580.159.03`
  int clock_mhz = 0;   ///< of the SMs, now
  int memory_clock_mhz = 0;
  int temperature = 0;  ///< in degrees Celsius
  double watts = 0;
};

/// The GPU is named by its place on the bus, as in cuda::DeviceProperties.
GpuState gpu_state(const std::string& pci_bus_id);

}  // namespace flashmla::cli
