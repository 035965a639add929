// Counts arrivals, and wakes those that wait.
#include "cuda/emulator/barriers.h"

#include <algorithm>
#include <string>
#include <utility>

#include "cuda/emulator/failure.h"
#include "cuda/emulator/instructions.h"
#include "cuda/emulator/scheduler.h"
#include "cuda/emulator/shared_memory.h"

namespace flashmla::emulator {
namespace {

std::string barrier_name(int id) { return id == 0 ? "sync_block" : "barrier " + std::to_string(id); }

constexpr std::size_t kBarrierBytes = 8;

std::uint32_t threads_of(Cluster& cluster) { return cluster.size() * cluster.block(0).size; }

/// Ends the phase if nothing is missing. `thread` and `place` are of the last arrival or copy.
void complete_phase_if_due(MemoryBarrier& barrier, const Thread& thread, const Location& place) {
  if (barrier.pending > 0 || barrier.bytes > 0) return;
  if (barrier.bytes < 0) {
    const bool known = barrier.expected_by != nullptr;
    fail(known ? *barrier.expected_by : thread, known ? barrier.expected_at : place,
         "copies bring " + std::to_string(-barrier.bytes) +
             " bytes more than the mbarrier expects; the last is at " + describe(place));
  }
  // Copies that are not over yet are not part of what a wait makes visible.
  const auto oldest = std::ranges::min_element(barrier.copies_pending);
  const Time over = oldest == barrier.copies_pending.end() ? barrier.copies_started : *oldest - 1;
  if (barrier.copies_owner != kNoOwner) barrier.arriving.seen.raise(barrier.copies_owner, over);
  join(barrier.complete, barrier.arriving);
  barrier.pending = barrier.count;
  barrier.parity ^= 1;
  for (Thread* waiting : std::exchange(barrier.waiting, {})) waiting->cluster->wake(*waiting);
}

/// Whether the thread comes after the initialization, and fences let it reach whoever uses the barrier.
void check_initialization(const Thread& thread, const MemoryBarrier& barrier, Proxy proxy, const Block& block,
                          const Location& place) {
  RaceChecks* races = thread.cluster->races();
  if (races == nullptr) return;
  const Owner initializer = races->clock(*barrier.initialized_by).owner();
  const std::string by = describe(*barrier.initialized_by) + " at " + describe(barrier.initialized_at);
  if (&thread != barrier.initialized_by &&
      races->clock(thread).knowledge().seen[initializer] < barrier.initialized) {
    fail(thread, place, "the use of an mbarrier races with its initialization by " + by);
  }
  const bool needs_fence = proxy == Proxy::kAsync || thread.block != &block;
  if (needs_fence && !barrier.fenced) {
    fail(thread, place, "an mbarrier without fence_barrier_init after its initialization by " + by);
  }
}

/// Takes one arrival off the phase.
void count_down(MemoryBarrier& barrier, const Thread& thread, const Location& place) {
  if (barrier.pending == 0) {
    fail(thread, place, "an arrival too many: " + std::to_string(barrier.count) + " are counted in a phase");
  }
  --barrier.pending;
  complete_phase_if_due(barrier, thread, place);
}

void arrive_at_barrier(Thread& thread, const void* address, const Location& place) {
  MemoryBarrier& barrier = barrier_at(thread, address, Proxy::kGeneric, place);
  release(thread, barrier.arriving);
  count_down(barrier, thread, place);
}

MemoryBarrier& still_there(Block& block, const void* address, const Origin& origin) {
  MemoryBarrier* barrier = block.memory_barriers.find(offset_in(block, address));
  if (barrier == nullptr) {
    fail(*origin.thread, origin.place, "the mbarrier of this copy was invalidated before its end");
  }
  return *barrier;
}

}  // namespace

// --- of a block ---

bool NamedBarriers::arrive(Thread& thread, int id, std::uint32_t expected, bool waits, bool predicate,
                           const Location& place) {
  Barrier& barrier = barriers_.at(static_cast<std::size_t>(id));
  if (barrier.expected == 0) {
    barrier.expected = expected;
    barrier.place = place;
  } else if (barrier.expected != expected) {
    fail(thread, place,
         barrier_name(id) + " for " + std::to_string(expected) + " threads, but for " +
             std::to_string(barrier.expected) + " at " + describe(barrier.place));
  }
  count(barrier, thread, id, place);
  barrier.any |= predicate;
  release(thread, barrier.point);
  bool result = false;
  const bool last = barrier.arrived == barrier.expected;
  if (waits) barrier.waiting.push_back({&thread, &result});
  if (last) {
    complete(barrier, thread, place);
  } else if (waits) {
    thread.cluster->park(id == 0 ? "sync_block" : "a named barrier", place);
  }
  return result;
}

void NamedBarriers::count(Barrier& barrier, Thread& thread, int id, const Location& place) {
  std::uint32_t& lanes = barrier.lanes[thread.index / kWarpSize];
  if ((lanes & thread.lane_bit()) != 0) {
    fail(thread, place, barrier_name(id) + " for the second time before the others have come");
  }
  lanes |= thread.lane_bit();
  ++barrier.arrived;
}

void NamedBarriers::complete(Barrier& barrier, Thread& last, const Location& place) {
  for (const Warp& warp : last.block->warps) {
    std::uint32_t& lanes = barrier.lanes[warp.threads->index / kWarpSize];
    if (lanes != 0 && std::popcount(lanes) != static_cast<int>(warp.size)) {
      fail(last, place,
           "a barrier is complete with " + std::to_string(std::popcount(lanes)) + " lanes of the warp of " +
               describe(*warp.threads) + ": lanes have diverged");
    }
    lanes = 0;
  }
  for (const Waiting& waiting : barrier.waiting) {
    *waiting.result = barrier.any;
    acquire(*waiting.thread, barrier.point);
    if (waiting.thread != &last) last.cluster->wake(*waiting.thread);
  }
  barrier.waiting.clear();
  barrier.point = {};
  barrier.expected = 0;
  barrier.arrived = 0;
  barrier.any = false;
}

void NamedBarriers::check_exit(const Thread& thread) const {
  const Barrier& barrier = barriers_[0];
  if (barrier.expected == 0) return;
  fail(thread, barrier.place, "this thread ends while others wait for it in sync_block");
}

void sync_block(Location place) { sync_block_or(false, place); }

bool sync_block_or(bool predicate, Location place) {
  Thread& thread = current_thread();
  Block& block = *thread.block;
  if (block.ended > 0) fail(thread, place, "sync_block, but a thread of the block has ended");
  return block.barriers.arrive(thread, 0, block.size, true, predicate, place);
}

namespace {

void meet_at_named_barrier(int id, int threads, bool waits, const Location& place) {
  Thread& thread = current_thread();
  const auto expected = static_cast<std::uint32_t>(threads);
  if (id < 1 || id >= NamedBarriers::kCount) fail(thread, place, "there is no barrier " + std::to_string(id));
  if (threads <= 0 || expected % kWarpSize != 0 || expected > thread.block->size) {
    fail(thread, place,
         barrier_name(id) + " for " + std::to_string(threads) + " threads of a block of " +
             std::to_string(thread.block->size));
  }
  thread.block->barriers.arrive(thread, id, expected, waits, false, place);
}

}  // namespace

void barrier_sync(int id, int threads, Location place) { meet_at_named_barrier(id, threads, true, place); }

void barrier_arrive(int id, int threads, Location place) { meet_at_named_barrier(id, threads, false, place); }

// --- of a cluster ---

void ClusterBarrier::arrive(Thread& thread, const Location& place) {
  if (thread.in_cluster_barrier) fail(thread, place, "cluster_arrive twice without cluster_wait");
  thread.in_cluster_barrier = true;
  thread.cluster_arrived_at = place;
  ++thread.cluster_arrivals;
  ++arrived_;
  release(thread, arriving_);
  complete_if_all_arrived(thread);
}

void ClusterBarrier::wait(Thread& thread, const Location& place) {
  if (!thread.in_cluster_barrier) fail(thread, place, "cluster_wait without cluster_arrive");
  thread.in_cluster_barrier = false;
  if (thread.cluster_arrivals > phase_) {
    waiting_.push_back(&thread);
    thread.cluster->park("cluster_wait", place);
  }
  acquire(thread, complete_);
}

void ClusterBarrier::on_exit(Thread& thread) {
  if (thread.in_cluster_barrier) {
    fail(thread, thread.cluster_arrived_at, "this thread ends between cluster_arrive and cluster_wait");
  }
  ++ended_;
  complete_if_all_arrived(thread);
}

void ClusterBarrier::complete_if_all_arrived(Thread& thread) {
  if (arrived_ == 0 || arrived_ + ended_ < threads_of(*thread.cluster)) return;
  ++phase_;
  arrived_ = 0;
  complete_ = std::exchange(arriving_, {});
  for (Thread* waiting : std::exchange(waiting_, {})) thread.cluster->wake(*waiting);
}

void cluster_arrive(Location place) {
  Thread& thread = current_thread();
  thread.cluster->barrier().arrive(thread, place);
}

void cluster_wait(Location place) {
  Thread& thread = current_thread();
  thread.cluster->barrier().wait(thread, place);
}

// --- in shared memory ---

MemoryBarrier* MemoryBarriers::find(std::uint32_t offset) {
  const auto found = barriers_.find(offset);
  return found == barriers_.end() ? nullptr : &found->second;
}

// Barriers that are initialized are few: each has a handful of places in shared memory.
void MemoryBarriers::fence(Thread& thread) {
  RaceChecks* races = thread.cluster->races();
  if (races == nullptr) return;
  for (auto& [offset, barrier] : barriers_) {
    if (barrier.initialized_by != &thread || barrier.fenced) continue;
    barrier.fenced = true;
    barrier.initialized = races->clock(thread).now();
  }
}

MemoryBarrier& barrier_at(const Thread& thread, const void* address, Proxy proxy, const Location& place) {
  Block& block = check_shared(thread, address, kBarrierBytes, place);
  MemoryBarrier* barrier = block.memory_barriers.find(offset_in(block, address));
  if (barrier == nullptr) fail(thread, place, "an mbarrier that is not initialized");
  check_initialization(thread, *barrier, proxy, block, place);
  return *barrier;
}

void count_copy(Block& block, const void* address, Time time, std::uint32_t bytes, const Origin& origin) {
  MemoryBarrier& barrier = still_there(block, address, origin);
  std::erase(barrier.copies_pending, time);
  barrier.bytes -= bytes;
  complete_phase_if_due(barrier, *origin.thread, origin.place);
}

void count_arrival(const void* address, Owner copies, Time time, const Origin& origin) {
  MemoryBarrier& barrier = still_there(*origin.thread->block, address, origin);
  if (copies != kNoOwner) barrier.arriving.seen.raise(copies, time);
  count_down(barrier, *origin.thread, origin.place);
}

void* in_block(const Thread& thread, const void* address, std::uint32_t rank, const Location& place) {
  Cluster& cluster = *thread.cluster;
  if (rank >= cluster.size()) {
    fail(thread, place,
         "block " + std::to_string(rank) + " of a cluster of " + std::to_string(cluster.size()) + " blocks");
  }
  return cluster.block(rank).shared + offset_in(check_shared(thread, address, 1, place), address);
}

void barrier_init(void* barrier, std::uint32_t count, Location place) {
  Thread& thread = current_thread();
  check_aligned(thread, barrier, kBarrierBytes, place);
  Block& block = check_shared(thread, barrier, kBarrierBytes, place);
  if (&block != thread.block) fail(thread, place, "an mbarrier of another block can't be initialized");
  if (count == 0 || count >= 1u << 20)
    fail(thread, place, "an mbarrier for " + std::to_string(count) + " arrivals");
  const std::uint32_t offset = offset_in(block, barrier);
  if (block.memory_barriers.find(offset) != nullptr) {
    fail(thread, place, "an mbarrier is initialized again without being invalidated");
  }
  check_access(thread, barrier, kBarrierBytes, Access::kWrite, place);
  MemoryBarrier& state = block.memory_barriers.add(offset);
  state.count = count;
  state.pending = count;
  state.initialized_by = &thread;
  state.initialized_at = place;
  if (RaceChecks* races = thread.cluster->races()) state.initialized = races->clock(thread).now();
  state.copies_owner = add_engine(thread, "a bulk copy that is counted at an mbarrier");
}

void barrier_invalidate(void* barrier, Location place) {
  Thread& thread = current_thread();
  MemoryBarrier& state = barrier_at(thread, barrier, Proxy::kGeneric, place);
  if (!state.waiting.empty()) fail(thread, place, "an mbarrier is invalidated while threads wait");
  thread.block->memory_barriers.remove(offset_in(*thread.block, barrier));
}

void barrier_arrive(void* barrier, Location place) { arrive_at_barrier(current_thread(), barrier, place); }

void barrier_arrive_at(void* barrier, std::uint32_t rank, Location place) {
  Thread& thread = current_thread();
  arrive_at_barrier(thread, in_block(thread, barrier, rank, place), place);
}

void barrier_expect_bytes(void* barrier, std::uint32_t bytes, Location place) {
  Thread& thread = current_thread();
  MemoryBarrier& state = barrier_at(thread, barrier, Proxy::kGeneric, place);
  state.bytes += bytes;
  state.expected_at = place;
  state.expected_by = &thread;
}

// Hardware may say no for a while after the phase has ended, so the caller's loop is put to the test.
bool barrier_try_wait(void* barrier, std::uint32_t parity, Location place) {
  Thread& thread = current_thread();
  MemoryBarrier& state = barrier_at(thread, barrier, Proxy::kGeneric, place);
  if (state.parity == (parity & 1)) {
    if (thread.cluster->random().one_in(4)) {
      thread.cluster->yield("an mbarrier", place);
      return false;
    }
    state.waiting.push_back(&thread);
    thread.cluster->park("an mbarrier", place);
    if (state.parity == (parity & 1)) return false;
  }
  acquire(thread, state.complete);
  return true;
}

}  // namespace flashmla::emulator
