// Who a thread is, and how threads of a warp and a block meet.
#pragma once

#include "cuda/ptx/target.h"
#ifndef FLASHMLA_ON_GPU
#include "cuda/emulator/instructions.h"
#endif

namespace flashmla::ptx {

#ifdef FLASHMLA_ON_GPU
FLASHMLA_DEVICE Index3 thread_index() { return {threadIdx.x, threadIdx.y, threadIdx.z}; }
FLASHMLA_DEVICE Index3 block_index() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
FLASHMLA_DEVICE Index3 block_size() { return {blockDim.x, blockDim.y, blockDim.z}; }
FLASHMLA_DEVICE Index3 grid_size() { return {gridDim.x, gridDim.y, gridDim.z}; }
#else
inline Index3 thread_index() { return emulator::thread_index(); }
inline Index3 block_index() { return emulator::block_index(); }
inline Index3 block_size() { return emulator::block_size(); }
inline Index3 grid_size() { return emulator::grid_size(); }
#endif

/// Of blocks with one dimension, as all kernels here have.
FLASHMLA_DEVICE int lane_index() { return static_cast<int>(thread_index().x % kWarpSize); }
FLASHMLA_DEVICE int warp_index() { return static_cast<int>(thread_index().x / kWarpSize); }

/// `%tid.x`, read anew: what is computed from it is not kept in registers from before. For kernels that have
/// none to spare.
FLASHMLA_DEVICE std::uint32_t reread_thread_index() {
#ifdef FLASHMLA_ON_GPU
  std::uint32_t index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
#else
  return thread_index().x;
#endif
}

/// The block's dynamic shared memory, seen as a `T`. Begins at a multiple of 1024 bytes.
template <class T>
FLASHMLA_DEVICE T& shared_memory() {
#ifdef FLASHMLA_ON_GPU
  extern __shared__ __align__(1024) unsigned char flashmla_shared_memory[];
  return *reinterpret_cast<T*>(flashmla_shared_memory);
#else
  return *static_cast<T*>(emulator::shared_memory());
#endif
}

/// The address of shared memory as instructions take it: an offset in the block's window.
FLASHMLA_DEVICE std::uint32_t shared_address(const void* shared) {
#ifdef FLASHMLA_ON_GPU
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
#else
  return emulator::shared_address(shared);
#endif
}

/// `bar.sync 0`: waits for all threads of the block; makes their writes visible to each other.
FLASHMLA_DEVICE void sync_block(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("bar.sync 0;" ::: "memory");
#else
  emulator::sync_block(place);
#endif
}

/// `bar.sync id, threads`: waits for `threads` threads (whole warps) at barrier `id`, 1 to 15.
FLASHMLA_DEVICE void barrier_sync(int id, int threads FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emulator::barrier_sync(id, threads, place);
#endif
}

/// `bar.arrive id, threads`: counts this warp at barrier `id` and does not wait.
FLASHMLA_DEVICE void barrier_arrive(int id, int threads FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emulator::barrier_arrive(id, threads, place);
#endif
}

/// `bar.warp.sync`: waits for all lanes of the warp; makes their writes visible to each other.
FLASHMLA_DEVICE void sync_warp(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
  __syncwarp();
#else
  emulator::sync_warp(place);
#endif
}

/// `shfl.sync.idx`: the `value` of lane `lane`. `T` has 4 bytes.
template <class T>
FLASHMLA_DEVICE T shuffle(T value, int lane FLASHMLA_PLACE) {
  static_assert(sizeof(T) == 4);
#ifdef FLASHMLA_ON_GPU
  return __shfl_sync(kAllLanes, value, lane);
#else
  return __builtin_bit_cast(T, emulator::shuffle(__builtin_bit_cast(std::uint32_t, value), lane, place));
#endif
}

/// `shfl.sync.bfly`: the `value` of lane `lane_index() ^ mask`.
template <class T>
FLASHMLA_DEVICE T shuffle_xor(T value, int mask FLASHMLA_PLACE) {
  static_assert(sizeof(T) == 4);
#ifdef FLASHMLA_ON_GPU
  return __shfl_xor_sync(kAllLanes, value, mask);
#else
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);
  return __builtin_bit_cast(T, emulator::shuffle(bits, lane_index() ^ mask, place));
#endif
}

/// `vote.sync.ballot`: bit `i` is the predicate of lane `i`.
FLASHMLA_DEVICE std::uint32_t warp_ballot(bool predicate FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  return __ballot_sync(kAllLanes, predicate);
#else
  return emulator::ballot(predicate, place);
#endif
}

/// `vote.sync.any`.
FLASHMLA_DEVICE bool warp_any(bool predicate FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  return __any_sync(kAllLanes, predicate) != 0;
#else
  return emulator::ballot(predicate, place) != 0;
#endif
}

/// `bar.red.or`: waits as sync_block() does; true if the predicate of any thread of the block was.
FLASHMLA_DEVICE bool sync_block_or(bool predicate FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  return __syncthreads_or(predicate) != 0;
#else
  return emulator::sync_block_or(predicate, place);
#endif
}

/// `elect.sync`: true in one lane of the warp. From SM90 on; before, the first lane.
FLASHMLA_DEVICE bool elect_one(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
#if __CUDA_ARCH__ >= 900
  std::uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(elected));
  return elected != 0;
#else
  return lane_index() == 0;
#endif
#else
  return emulator::elect_one(place);
#endif
}

}  // namespace flashmla::ptx
