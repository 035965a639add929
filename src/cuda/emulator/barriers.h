// Barriers of a block, of a cluster, and those that kernels keep in shared memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "cuda/emulator/origin.h"
#include "cuda/emulator/race_checks.h"

namespace flashmla::emulator {

struct Block;
struct Thread;

/// bar.sync, bar.arrive and bar.red of one block.
class NamedBarriers {
 public:
  static constexpr int kCount = 16;

  /// Counts the thread. If it is not the last and `waits`, suspends it until the last has come. `predicate`
  /// is or-ed over all threads that come; the result is for those that wait.
  bool arrive(Thread& thread, int id, std::uint32_t expected, bool waits, bool predicate,
              const Location& place);

  /// Fails if others wait in sync_block for this thread, which is about to end.
  void check_exit(const Thread& thread) const;

 private:
  struct Waiting {
    Thread* thread;
    bool* result;
  };
  struct Barrier {
    std::uint32_t expected = 0;  // 0: nobody has come
    std::uint32_t arrived = 0;
    Location place;  // of the first
    std::vector<Waiting> waiting;
    std::array<std::uint32_t, 32> lanes = {};  // that have come, of each warp
    bool any = false;
    SyncPoint point;
  };

  void count(Barrier& barrier, Thread& thread, int id, const Location& place);
  void complete(Barrier& barrier, Thread& last, const Location& place);

  std::array<Barrier, kCount> barriers_;
};

/// barrier.cluster.
class ClusterBarrier {
 public:
  void arrive(Thread& thread, const Location& place);
  void wait(Thread& thread, const Location& place);
  /// A thread that has ended is not waited for.
  void on_exit(Thread& thread);

 private:
  void complete_if_all_arrived(Thread& thread);

  std::uint32_t phase_ = 0;  // how many have ended
  std::uint32_t arrived_ = 0;
  std::uint32_t ended_ = 0;
  std::vector<Thread*> waiting_;
  SyncPoint arriving_;
  SyncPoint complete_;
};

/// An mbarrier. Its state is kept here; the 8 bytes in shared memory only mark its place.
struct MemoryBarrier {
  std::uint32_t count = 0;
  std::uint32_t pending = 0;  // arrivals that the phase waits for
  std::int64_t bytes = 0;     // that it waits for; negative if they came before they were expected
  std::uint32_t parity = 0;   // of the phase
  std::vector<Thread*> waiting;

  // Since when others may use it.
  const Thread* initialized_by = nullptr;
  Location initialized_at;
  Time initialized = 0;  // on the clock of that thread
  bool fenced = false;

  Location expected_at;  // bytes, last
  const Thread* expected_by = nullptr;

  SyncPoint arriving;
  SyncPoint complete;
  // Bulk copies that it counts have a clock of their own, which goes one step with each.
  Owner copies_owner = kNoOwner;
  Time copies_started = 0;
  std::vector<Time> copies_pending;
};

/// The mbarriers of one block by their offset in its shared memory.
class MemoryBarriers {
 public:
  /// Null if there is none.
  MemoryBarrier* find(std::uint32_t offset);
  MemoryBarrier& add(std::uint32_t offset) { return barriers_[offset]; }
  void remove(std::uint32_t offset) { barriers_.erase(offset); }
  /// Of barriers that `thread` has initialized: others may use them from now on.
  void fence(Thread& thread);

 private:
  std::unordered_map<std::uint32_t, MemoryBarrier> barriers_;
};

/// The barrier at this address. Fails unless it is initialized and its initialization is visible to this
/// thread, and to asynchronous units if one of them will use it.
MemoryBarrier& barrier_at(const Thread& thread, const void* address, Proxy proxy, const Location& place);

/// Counts the bytes of a copy that has been carried out; `time` is that of its start on the barrier's clock.
void count_copy(Block& block, const void* barrier, Time time, std::uint32_t bytes, const Origin& origin);

/// One arrival when copies of a thread are over; `time` is the latest of them on their clock.
void count_arrival(const void* barrier, Owner copies, Time time, const Origin& origin);

/// The same object in the shared memory of block `rank` of the cluster.
void* in_block(const Thread& thread, const void* address, std::uint32_t rank, const Location& place);

}  // namespace flashmla::emulator
