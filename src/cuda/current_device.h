// The GPU that calls of the CUDA runtime mean. For host code of a build with CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/error.h"

namespace flashmla::cuda {

/// Makes a GPU the current one of this thread, and the old one current again at the end of the scope.
class CurrentDevice {
 public:
  explicit CurrentDevice(int ordinal) {
    check(cudaGetDevice(&before_), "the current GPU");
    if (ordinal == before_) return;
    check(cudaSetDevice(ordinal), text("GPU ", ordinal));
    changed_ = true;
  }
  ~CurrentDevice() {
    if (changed_) (void)cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace flashmla::cuda
