// Launches kernels: on a GPU, or on the emulator.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/ptx/target.h"
#ifdef FLASHMLA_ON_GPU
#include <cuda_runtime.h>

#include "cuda/current_device.h"
#else
#include "cuda/emulator/launch.h"
#endif

namespace flashmla::cuda {

struct LaunchConfig {
  ptx::Index3 grid = {};
  ptx::Index3 block = {};
  std::size_t shared_bytes = 0;
  /// Blocks of a cluster, along x; SM90 on.
  std::uint32_t cluster = 1;
  /// May start before the kernel in front of it has ended, and calls wait_for_previous_kernel() before it
  /// touches what that one reads or writes. For GPUs where kernels_overlap() of device.h says so.
  bool overlaps_previous = false;
  void* stream = nullptr;  ///< cudaStream_t
};

#ifndef FLASHMLA_ON_GPU
/// As in current_device.h: the emulator has one GPU.
class CurrentDevice {
 public:
  explicit CurrentDevice(int) {}
};
#endif

/// Enqueues `kernel(params)`. `name` is for error messages. Throws Error if the launch fails.
template <class Params>
void launch(void (*kernel)(Params), const char* name, const LaunchConfig& config, const Params& params) {
#ifdef FLASHMLA_ON_GPU
  constexpr std::size_t kAlwaysAllowed = 48 * 1024;
  if (config.shared_bytes > kAlwaysAllowed) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(config.shared_bytes)),
          name);
  }
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (config.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim = {config.cluster, 1, 1};
    ++count;
  }
  if (config.overlaps_previous) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count].val.programmaticStreamSerializationAllowed = 1;
    ++count;
  }
  cudaLaunchConfig_t launched = {};
  launched.gridDim = {config.grid.x, config.grid.y, config.grid.z};
  launched.blockDim = {config.block.x, config.block.y, config.block.z};
  launched.dynamicSmemBytes = config.shared_bytes;
  launched.stream = static_cast<cudaStream_t>(config.stream);
  launched.attrs = attributes;
  launched.numAttrs = count;
  check(cudaLaunchKernelEx(&launched, kernel, params), name);
#else
  emulator::launch(kernel, name,
                   {.grid = config.grid,
                    .block = config.block,
                    .shared_bytes = config.shared_bytes,
                    .cluster = config.cluster},
                   params);
#endif
}

}  // namespace flashmla::cuda
