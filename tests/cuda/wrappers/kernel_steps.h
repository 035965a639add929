// Steps that kernels of the tests share. Waits end in any case, so that a mistake is a wrong output and not a
// GPU that hangs.
#pragma once

#include "cuda/ptx/fence.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/threads.h"

namespace flashmla::wrappers {

/// By one thread, before a barrier of all that use it.
FLASHMLA_DEVICE void make_barrier(ptx::Barrier& barrier, std::uint32_t count) {
  barrier.init(count);
  ptx::fence_barrier_init();
}

/// Whether the phase of this parity ended. Each try waits for some time by itself.
FLASHMLA_DEVICE bool phase_ended(ptx::Barrier& barrier, std::uint32_t parity) {
  for (int i = 0; i < 4096; ++i) {
    if (barrier.try_wait(parity)) {
      barrier.wait(parity);
      return true;
    }
  }
  return false;
}

/// The same for arrivals from other blocks of the cluster.
FLASHMLA_DEVICE bool phase_ended_in_cluster(ptx::Barrier& barrier, std::uint32_t parity) {
  if (!phase_ended(barrier, parity)) return false;
  barrier.wait_cluster(parity);
  return true;
}

/// The block writes what its shared memory holds.
FLASHMLA_DEVICE void write_out(std::uint32_t* out, const std::uint32_t* shared, std::uint32_t words) {
  for (std::uint32_t i = ptx::thread_index().x; i < words; i += ptx::block_size().x) out[i] = shared[i];
}

}  // namespace flashmla::wrappers
