// mbarrier: a barrier in shared memory that counts arrivals and bytes of asynchronous copies. From SM90 on.
// PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier".
#pragma once

#include "cuda/ptx/target.h"
#ifndef FLASHMLA_ON_GPU
#include "cuda/emulator/instructions.h"
#endif

namespace flashmla::ptx {

/// Lives in shared memory. A phase ends when `count` arrivals and all expected bytes have come; the next one
/// begins at once. Phases alternate between parity 0, the first, and 1.
class Barrier {
 public:
  /// `mbarrier.init`, by one thread; others may use it after fence_barrier_init() or fence_async_proxy() and
  /// a barrier of the block or cluster.
  FLASHMLA_DEVICE void init(std::uint32_t count FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(count) : "memory");
#else
    emulator::barrier_init(this, count, place);
#endif
  }

  /// `mbarrier.inval`: the memory may be used for something else afterwards.
  FLASHMLA_DEVICE void invalidate(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(address()) : "memory");
#else
    emulator::barrier_invalidate(this, place);
#endif
  }

  /// `mbarrier.arrive`: one arrival; what this thread did before is visible to those that wait.
  FLASHMLA_DEVICE void arrive(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address()) : "memory");
#else
    emulator::barrier_arrive(this, place);
#endif
  }

  /// `mbarrier.arrive` at the same barrier of block `rank` of the cluster.
  FLASHMLA_DEVICE void arrive_at(std::uint32_t rank FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
        "}\n" ::"r"(address()),
        "r"(rank)
        : "memory");
#else
    emulator::barrier_arrive_at(this, rank, place);
#endif
  }

  /// `mbarrier.arrive.expect_tx`: one arrival; the phase also waits for so many more bytes.
  FLASHMLA_DEVICE void arrive_expect_bytes(std::uint32_t bytes FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes)
                 : "memory");
#else
    emulator::barrier_expect_bytes(this, bytes, place);
    emulator::barrier_arrive(this, place);
#endif
  }

  /// `mbarrier.expect_tx`: no arrival; the phase also waits for so many more bytes.
  FLASHMLA_DEVICE void expect_bytes(std::uint32_t bytes FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(bytes)
                 : "memory");
#else
    emulator::barrier_expect_bytes(this, bytes, place);
#endif
  }

  /// `cp.async.mbarrier.arrive.noinc`: one arrival when all copies that this thread started with
  /// copy_async_16() and copy_async_4() so far have ended.
  FLASHMLA_DEVICE void arrive_after_copies(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(address()) : "memory");
#else
    emulator::barrier_arrive_after_copies(this, place);
#endif
  }

  /// `mbarrier.try_wait.parity`: whether the phase of this parity has ended. May say no for a while after it
  /// has.
  FLASHMLA_DEVICE bool try_wait(std::uint32_t parity FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
    std::uint32_t ended;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(ended)
        : "r"(address()), "r"(parity)
        : "memory");
    return ended != 0;
#else
    return emulator::barrier_try_wait(this, parity, place);
#endif
  }

  /// Waits until the phase of this parity has ended. What was done before the arrivals, and the bytes of the
  /// copies, are visible afterwards.
  FLASHMLA_DEVICE void wait(std::uint32_t parity FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
    while (!try_wait(parity)) {
    }
#else
    while (!try_wait(parity, place)) {
    }
#endif
  }

  /// `mbarrier.try_wait.parity.acquire.cluster` until the phase has ended: for arrivals from other blocks of
  /// the cluster, whose writes are then visible.
  FLASHMLA_DEVICE void wait_cluster(std::uint32_t parity FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
    std::uint32_t ended = 0;
    while (ended == 0) {
      asm volatile(
          "{\n"
          ".reg .pred p;\n"
          "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n"
          "}\n"
          : "=r"(ended)
          : "r"(address()), "r"(parity)
          : "memory");
    }
#else
    while (!try_wait(parity, place)) {
    }
#endif
  }

#ifdef FLASHMLA_ON_GPU
  FLASHMLA_DEVICE std::uint32_t address() const {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(&state_));
  }
#endif

 private:
  [[maybe_unused]] std::uint64_t state_;
};

}  // namespace flashmla::ptx
