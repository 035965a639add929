// Who a thread is, and fences.
#include <atomic>

#include "cuda/emulator/failure.h"
#include "cuda/emulator/instructions.h"
#include "cuda/emulator/scheduler.h"

namespace flashmla::emulator {

Index3 thread_index() { return current_thread().position; }
Index3 block_index() { return current_thread().block->index; }
Index3 block_size() { return current_thread().cluster->launch().config.block; }
Index3 grid_size() { return current_thread().cluster->launch().config.grid; }
std::uint32_t cluster_rank() { return current_thread().block->rank; }
std::uint32_t cluster_blocks() { return current_thread().cluster->size(); }

// cp.async writes as the thread does; the fence is for its copies too, as far as they were waited for.
void fence_async_proxy(Location) {
  Thread& thread = current_thread();
  thread.block->memory_barriers.fence(thread);
  publish(thread, thread.copies.owner());
  if (RaceChecks* races = thread.cluster->races()) publish(thread, races->clock(thread).owner());
}

void fence_barrier_init(Location) {
  Thread& thread = current_thread();
  thread.block->memory_barriers.fence(thread);
}

// Order between blocks is that of the host's atomic operations.
void fence_gpu(Location) { std::atomic_thread_fence(std::memory_order_acq_rel); }

void set_max_registers(int, Location place) {
  const Thread& thread = current_thread();
  if (thread.block->size % Warpgroup::kThreads != 0) {
    fail(thread, place, "setmaxnreg in a block that does not consist of warpgroups");
  }
}

}  // namespace flashmla::emulator
