// Runs a kernel on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/ptx/target.h"

namespace flashmla::emulator {

/// A fault of a kernel. The text names kernel, block, thread, file and line, and what is wrong.
class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct LaunchConfig {
  ptx::Index3 grid = {};
  ptx::Index3 block = {};
  std::size_t shared_bytes = 0;  // begins as NaN: all bits set
  std::uint32_t cluster = 1;     // blocks along x
};

/// A kernel without its type.
struct KernelCall {
  using Function = void (*)();

  Function kernel;
  const void* params;
  std::size_t params_bytes;
  void (*call)(Function kernel, const void* params);

  void operator()() const { call(kernel, params); }
};

/// Runs all blocks, in clusters that share nothing but global memory, under the settings() of this host
/// thread.
void launch(const KernelCall& call, const std::string& name, const LaunchConfig& config);

/// Runs `kernel(params)` in each thread of the grid, and returns when all have ended. Throws Failure, the
/// first of the lowest cluster that failed.
template <class Params>
void launch(void (*kernel)(Params), const std::string& name, const LaunchConfig& config,
            const Params& params) {
  static_assert(std::is_trivially_copyable_v<Params>);
  const auto call = [](KernelCall::Function function, const void* bytes) {
    reinterpret_cast<void (*)(Params)>(function)(*static_cast<const Params*>(bytes));
  };
  launch(KernelCall{reinterpret_cast<KernelCall::Function>(kernel), &params, sizeof(Params), call}, name,
         config);
}

}  // namespace flashmla::emulator
