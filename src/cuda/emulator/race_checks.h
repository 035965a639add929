// The clocks of a cluster's threads and engines, and the shadow of its shared memory, in checked mode.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "cuda/emulator/origin.h"
#include "cuda/emulator/place.h"
#include "cuda/emulator/shadow_memory.h"
#include "cuda/emulator/vector_clock.h"

namespace flashmla::emulator {

class Cluster;
struct Block;
struct Thread;

/// What synchronization hands on. Empty unless accesses are checked.
using SyncPoint = Knowledge;

/// Not an owner: nothing is checked.
inline constexpr Owner kNoOwner = 0xffff;

/// What works for threads beside them, at one time of its clock.
struct Engine {
  Owner owner = kNoOwner;
  Time time = 0;
  Proxy proxy = Proxy::kAsync;
};

class RaceChecks {
 public:
  explicit RaceChecks(Cluster& cluster);

  ThreadClock& clock(const Thread& thread);
  Sites& sites() { return sites_; }

  /// A clock for an engine that `thread` works with; `what` must live as long as the program.
  Owner add_engine(const Thread& thread, const char* what);

  /// Checks and records an access of a thread to shared memory of a block; returns what is wrong.
  std::optional<std::string> access(const Thread& thread, const Block& block, const void* address,
                                    std::size_t bytes, Access access, Site site);
  /// The same for an engine, at the time when `thread` starts it.
  std::optional<std::string> access(const Thread& thread, const Engine& engine, const Block& block,
                                    const void* address, std::size_t bytes, Access access, Site site);

 private:
  struct OwnerName {
    const Thread* thread;
    const char* what;  // null for the thread itself
  };

  std::optional<std::string> access(const Accessor& by, const Block& block, const void* address,
                                    std::size_t bytes, Access access);
  std::string describe(const Conflict& conflict, const Block& block, std::size_t bytes) const;

  std::vector<std::size_t> first_owner_;  // of each block
  std::deque<ThreadClock> clocks_;
  std::vector<OwnerName> owners_;
  std::vector<ShadowMemory> shadows_;
  Sites sites_;
};

// Each does nothing unless accesses are checked.

/// Hands on what the thread did so far.
void release(Thread& thread, SyncPoint& into);
void acquire(Thread& thread, const SyncPoint& from);
/// The thread has waited for what an engine did up to this time.
void acquire(Thread& thread, Owner engine, Time time);
void join(SyncPoint& into, const SyncPoint& from);
/// What the thread itself, or its engine, wrote can be seen by asynchronous units.
void publish(Thread& thread, Owner source);
Owner add_engine(const Thread& thread, const char* what);

}  // namespace flashmla::emulator
