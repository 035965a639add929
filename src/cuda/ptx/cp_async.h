// cp.async: copies of a few bytes from global to shared memory that a thread starts and later waits for.
// PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy", non-bulk. From SM80 on.
#pragma once

#include "cuda/ptx/target.h"
#ifndef FLASHMLA_ON_GPU
#include "cuda/emulator/instructions.h"
#endif

namespace flashmla::ptx {

/// `cp.async.cg.shared.global 16`: copies the first `bytes` (0 to 16) of 16 and fills the rest with zeros.
/// With 0 nothing is read, and `global` may be any number. Both aligned to 16 bytes.
FLASHMLA_DEVICE void copy_async_16(void* shared, const void* global, int bytes FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
               : "memory");
#else
  emulator::copy_async(shared, global, 16, bytes, place);
#endif
}

/// `cp.async.ca.shared.global 4`: the same for 4 bytes.
FLASHMLA_DEVICE void copy_async_4(void* shared, const void* global, int bytes FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#else
  emulator::copy_async(shared, global, 4, bytes, place);
#endif
}

/// `cp.async.commit_group`: the copies that this thread started since its last group form a group.
FLASHMLA_DEVICE void copy_async_commit(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulator::copy_async_commit(place);
#endif
}

/// `cp.async.wait_group`: waits until at most `kPending` of this thread's latest groups are under way. Other
/// threads see the bytes after a barrier that follows.
template <int kPending>
FLASHMLA_DEVICE void copy_async_wait(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emulator::copy_async_wait(kPending, place);
#endif
}

}  // namespace flashmla::ptx
