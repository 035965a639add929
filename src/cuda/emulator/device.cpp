// Lets the library see one GPU: the one that the emulator imitates for the calling host thread.
#include "cuda/device.h"

#include <cstdlib>

#include "api/message.h"
#include "cuda/emulator/settings.h"
#include "cuda/shared_memory_limit.h"

namespace flashmla::cuda {

int device_count() { return 1; }

const DeviceProperties& device_properties(int ordinal) {
  if (ordinal != 0) fail(ErrorKind::kValue, text("cuda:", ordinal), "the emulator has one GPU");
  thread_local DeviceProperties properties;
  const emulator::Device& device = emulator::settings().device;
  properties = {.name = "emulator",
                .compute_major = device.compute_major,
                .compute_minor = device.compute_minor,
                .multiprocessors = device.sm_count,
                .shared_memory = static_cast<int>(device.shared_bytes_per_block),
                .pci_bus_id = {}};
  return properties;
}

int shared_memory_limit(int ordinal) {
  return limited_shared_memory(std::getenv("FLASHMLA_CUDA_SHARED_MEMORY"),
                               device_properties(ordinal).shared_memory);
}

}  // namespace flashmla::cuda
