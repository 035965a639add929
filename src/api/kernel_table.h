// The kernel table: for each operation the kernels that compute it, in the order in which they are
// tried. Adding a kernel is one row in kernel_table.cpp.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "flashmla/execution.h"

namespace flashmla {

/// Yes, or the reason why not as half a sentence: "needs an NVIDIA GPU". Static text: asking does not
/// allocate.
struct Support {
  bool yes = true;
  std::string_view reason;
};

template <class Op>
struct Kernel {
  std::string_view backend;
  std::string_view name;  ///< backend and algorithm: `cpu/tiled`
  /// Whether this machine can run the kernel at all for tensors on this device.
  Support (*available)(Device device);
  /// Whether the kernel computes this case; `op` has been checked.
  Support (*supports)(const Op& op, const Execution& on);
  std::size_t (*workspace_bytes)(const Op& op, const Execution& on);
  void (*run)(const Op& op, const Execution& on);
};

template <class Op>
std::span<const Kernel<Op>> kernel_table();

}  // namespace flashmla
