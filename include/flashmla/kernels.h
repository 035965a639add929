// The list of kernels, and which of them this machine can run.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "flashmla/tensor.h"

namespace flashmla {

struct KernelInfo {
  std::string_view operation;  ///< `dense_decode`
  std::string_view backend;    ///< `cpu`
  std::string_view name;       ///< `cpu/tiled`
  bool available = false;      ///< this machine can run it
  std::string reason;          ///< why not, or what it would use (`avx512_bf16`)
};

/// Every kernel of the library in the order in which they are tried, for tensors on `device`.
std::vector<KernelInfo> kernels(Device device = {});

}  // namespace flashmla
