// Errors of the CUDA runtime as exceptions. For host code of a build with CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <string_view>

#include "api/message.h"

namespace flashmla::cuda {

/// Throws Error (kDevice) with the text `what: error` unless the call succeeded: `check(cudaMalloc(&p, n),
/// "512 bytes of GPU memory")`. Clears the error, so that the next call is not blamed for it.
inline void check(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  fail(ErrorKind::kDevice, what, cudaGetErrorString(error), " (", cudaGetErrorName(error), ")");
}

}  // namespace flashmla::cuda
