// Fences: what makes writes visible to other threads, and to the units that read memory past the threads.
#pragma once

#include "cuda/ptx/target.h"
#ifndef FLASHMLA_ON_GPU
#include "cuda/emulator/instructions.h"
#endif

namespace flashmla::ptx {

/// `fence.proxy.async.shared::cta`: what this thread wrote to shared memory by ordinary stores is visible to
/// later asynchronous units (wgmma, bulk copies). Needed in each writing thread, before the barrier that
/// tells the thread which starts them. From SM90 on.
FLASHMLA_DEVICE void fence_async_proxy(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  emulator::fence_async_proxy(place);
#endif
}

/// `fence.mbarrier_init.release.cluster`: barriers that this thread initialized are visible to the cluster
/// after a cluster barrier that follows. From SM90 on.
FLASHMLA_DEVICE void fence_barrier_init(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  emulator::fence_barrier_init(place);
#endif
}

/// `fence.acq_rel.gpu`: orders this thread's accesses before and behind it for all threads of the GPU.
FLASHMLA_DEVICE void fence_gpu(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
#else
  emulator::fence_gpu(place);
#endif
}

}  // namespace flashmla::ptx
