// A wait for a barrier that ends in any case, so that a mistake is a wrong output and not a GPU that hangs.
#pragma once

#include "cuda/ptx/mbarrier.h"

namespace flashmla::wrappers {

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

}  // namespace flashmla::wrappers
