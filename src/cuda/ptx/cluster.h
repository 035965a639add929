// Clusters: blocks that run at the same time on neighbouring multiprocessors and reach each other's shared
// memory. From SM90 on.
#pragma once

#include "cuda/ptx/target.h"
#ifndef FLASHMLA_ON_GPU
#include "cuda/emulator/instructions.h"
#endif

namespace flashmla::ptx {

/// This block's number in its cluster, and the blocks of a cluster.
FLASHMLA_DEVICE std::uint32_t cluster_rank() {
#ifdef FLASHMLA_ON_GPU
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return emulator::cluster_rank();
#endif
}
FLASHMLA_DEVICE std::uint32_t cluster_blocks() {
#ifdef FLASHMLA_ON_GPU
  std::uint32_t blocks;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
#else
  return emulator::cluster_blocks();
#endif
}

/// `barrier.cluster.arrive.release`: counts this thread; what it wrote is visible to those that wait.
FLASHMLA_DEVICE void cluster_arrive(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#else
  emulator::cluster_arrive(place);
#endif
}

/// `barrier.cluster.wait.acquire`: waits until all threads of the cluster have arrived.
FLASHMLA_DEVICE void cluster_wait(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  emulator::cluster_wait(place);
#endif
}

/// `mapa`: where block `rank` of the cluster has the same object in its shared memory. Plain loads and stores
/// take the pointer.
template <class T>
FLASHMLA_DEVICE T* peer_shared(T* shared, std::uint32_t rank) {
#ifdef FLASHMLA_ON_GPU
  std::uint64_t peer;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(peer) : "l"(reinterpret_cast<std::uint64_t>(shared)), "r"(rank));
  return reinterpret_cast<T*>(peer);
#else
  return static_cast<T*>(emulator::peer_shared(shared, rank));
#endif
}

}  // namespace flashmla::ptx
