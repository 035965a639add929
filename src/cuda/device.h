// The GPUs of this machine. Includes no CUDA header; without CUDA there are no GPUs.
#pragma once

#include <cstddef>
#include <string>

namespace flashmla::cuda {

struct DeviceProperties {
  std::string name;              ///< `NVIDIA H200`
  int compute_major = 0;         ///< 9 of sm_90
  int compute_minor = 0;         ///< 0 of sm_90
  int multiprocessors = 0;       ///< SMs
  int shared_memory = 0;         ///< bytes that one block may have, if it asks for them
  int clock_khz = 0;             ///< of the SMs, the highest
  int memory_clock_khz = 0;      ///< the highest
  std::size_t l2_bytes = 0;      ///< of the cache that all SMs share
  std::size_t memory_bytes = 0;  ///< of the GPU
  std::string pci_bus_id;        ///< `0000:01:00.0`; other libraries know the GPU by it

  /// 90 of sm_90.
  int architecture() const { return compute_major * 10 + compute_minor; }
};

/// 0 without a driver, without a GPU, and in a library built without CUDA.
int device_count();

/// Read once for each GPU; waits for nothing that runs there. Throws Error for a number that no GPU has.
const DeviceProperties& device_properties(int ordinal);

/// Whether a kernel may start before the one in front of it has ended (programmatic dependent launch): from
/// SM90 on.
inline bool kernels_overlap(int ordinal) { return device_properties(ordinal).architecture() >= 90; }

/// Bytes of shared memory that a block of our kernels may have: those of the GPU, or fewer, if the
/// environment variable FLASHMLA_CUDA_SHARED_MEMORY says so. 101376 chooses the tiles that a GeForce or RTX
/// PRO card runs. Throws Error for a value that is no number from 49152 on.
int shared_memory_limit(int ordinal);

}  // namespace flashmla::cuda
