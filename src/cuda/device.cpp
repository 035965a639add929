// Asks the CUDA runtime what the GPUs of this machine are.
#include "cuda/device.h"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda/error.h"
#include "cuda/shared_memory_limit.h"

namespace flashmla::cuda {
namespace {

int attribute(cudaDeviceAttr which, int ordinal) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, ordinal), text("GPU ", ordinal));
  return value;
}

DeviceProperties read_properties(int ordinal) {
  cudaDeviceProp all{};
  check(cudaGetDeviceProperties(&all, ordinal), text("GPU ", ordinal));
  char pci_bus_id[32] = {};
  check(cudaDeviceGetPCIBusId(pci_bus_id, sizeof(pci_bus_id), ordinal), text("GPU ", ordinal));
  return {
      .name = all.name,
      .compute_major = all.major,
      .compute_minor = all.minor,
      .multiprocessors = all.multiProcessorCount,
      .shared_memory = static_cast<int>(all.sharedMemPerBlockOptin),
      .clock_khz = attribute(cudaDevAttrClockRate, ordinal),
      .memory_clock_khz = attribute(cudaDevAttrMemoryClockRate, ordinal),
      .l2_bytes = static_cast<std::size_t>(all.l2CacheSize),
      .memory_bytes = all.totalGlobalMem,
      .pci_bus_id = pci_bus_id,
  };
}

/// What is known of one GPU.
struct Known {
  std::once_flag read;
  DeviceProperties properties;
};

}  // namespace

int device_count() {
  // Neither a driver nor a GPU comes or goes while a program runs.
  static const int kCount = [] {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    (void)cudaGetLastError();
    return 0;
  }();
  return kCount;
}

const DeviceProperties& device_properties(int ordinal) {
  static const std::unique_ptr<Known[]> kKnown =
      std::make_unique<Known[]>(static_cast<std::size_t>(device_count()));
  if (ordinal < 0 || ordinal >= device_count()) {
    fail(ErrorKind::kValue, text("cuda:", ordinal), "this machine has ", device_count(), " GPUs");
  }
  Known& known = kKnown[static_cast<std::size_t>(ordinal)];
  std::call_once(known.read, [&] { known.properties = read_properties(ordinal); });
  return known.properties;
}

int shared_memory_limit(int ordinal) {
  return limited_shared_memory(std::getenv("FLASHMLA_CUDA_SHARED_MEMORY"),
                               device_properties(ordinal).shared_memory);
}

}  // namespace flashmla::cuda
