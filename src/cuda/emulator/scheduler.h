// The threads of a cluster: who they are, who runs next, what they wait for, and how a failure ends them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/emulator/agenda.h"
#include "cuda/emulator/barriers.h"
#include "cuda/emulator/collectives.h"
#include "cuda/emulator/copies.h"
#include "cuda/emulator/fiber.h"
#include "cuda/emulator/global_memory.h"
#include "cuda/emulator/launch.h"
#include "cuda/emulator/random.h"
#include "cuda/emulator/settings.h"
#include "cuda/emulator/warpgroup.h"
#include "cuda/ptx/target.h"

namespace flashmla::emulator {

using ptx::Index3;

class Cluster;
struct Block;
struct Warp;

/// What all clusters of a launch share.
struct Launch {
  KernelCall call;
  std::string name;
  LaunchConfig config;
  Settings settings;
  GlobalMemory memory;
};

/// Shared memory of a block, as far as its 32-bit addresses reach.
inline constexpr std::size_t kSharedWindowBytes = 256 * 1024;
inline constexpr std::uint32_t kWarpSize = 32;

/// One CUDA thread.
struct Thread {
  enum class State { kReady, kYielded, kParked, kEnded };

  Fiber fiber;
  Cluster* cluster = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  Index3 position;          // in the block
  std::uint32_t index = 0;  // the same as one number
  std::uint32_t lane = 0;
  State state = State::kReady;
  const char* waits_for = nullptr;
  Location waits_at;
  std::uint32_t cluster_arrivals = 0;
  bool in_cluster_barrier = false;  // between cluster_arrive and cluster_wait
  Location cluster_arrived_at;
  ThreadCopies copies;
  ThreadStores stores;
  ThreadProducts products;

  std::uint32_t lane_bit() const { return 1u << lane; }
};

/// 32 threads; the last warp of a block may have fewer.
struct Warp {
  Thread* threads = nullptr;
  std::uint32_t size = 0;
  std::uint32_t ready = 0;  // a bit for each lane
  std::uint32_t ended = 0;
  bool in_ready_list = false;
  std::optional<Rendezvous> rendezvous;
};

struct Block {
  Index3 index;
  std::uint32_t rank = 0;  // in the cluster
  std::uint32_t size = 0;
  std::uint32_t ended = 0;
  std::byte* shared = nullptr;
  std::unique_ptr<Thread[]> threads;
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  NamedBarriers barriers;
  MemoryBarriers memory_barriers;
};

/// Blocks that run together, on one host thread.
class Cluster {
 public:
  /// `windows` is the shared memory of the blocks, one window behind the other.
  Cluster(const Launch& launch, std::uint32_t number, std::byte* windows);
  ~Cluster();

  /// Runs all threads to their end. Throws Failure.
  void run();

  const Launch& launch() const { return launch_; }
  std::uint32_t size() const { return static_cast<std::uint32_t>(blocks_.size()); }
  Block& block(std::uint32_t rank) { return *blocks_[rank]; }
  Random& random() { return random_; }
  Agenda& agenda() { return agenda_; }
  BulkCopies& bulk_copies() { return bulk_copies_; }
  ClusterBarrier& barrier() { return barrier_; }
  /// Null unless accesses are checked.
  RaceChecks* races() { return races_.get(); }

  /// The thread that runs; null between threads.
  Thread* running() { return running_; }

  /// Suspends the running thread until somebody calls wake(). `what` must live as long as the program.
  void park(const char* what, const Location& place);
  /// Suspends the running thread until others have had a chance to run.
  void yield(const char* what, const Location& place);
  void wake(Thread& thread);
  /// Ends the launch from where no exception may be thrown.
  [[noreturn]] void abandon_running(std::exception_ptr failure);

  /// The block in whose window of shared memory this address is, or null.
  Block* block_at(const void* address);

 private:
  void make_block(std::uint32_t rank, std::uint32_t linear_index);
  static void thread_main(void* argument);
  void run_thread(Thread& thread);
  void run_warp();
  void suspend_running(Thread::State state, const char* what, const Location& place);
  void wake_yielded();
  void perform_some_work();
  bool unblock();
  void run_until_done();
  void abort_threads();

  const Launch& launch_;
  std::byte* windows_;
  Random random_;
  Agenda agenda_;
  ClusterBarrier barrier_;
  BulkCopies bulk_copies_;
  std::unique_ptr<RaceChecks> races_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Warp*> ready_;
  std::vector<Thread*> yielded_;
  Thread* running_ = nullptr;
  std::uint32_t unfinished_ = 0;
  std::uint32_t fruitless_rounds_ = 0;
  std::exception_ptr failure_;
};

/// The cluster that the calling host thread runs; null outside of a launch.
Cluster* current_cluster();

/// The running thread. Throws std::logic_error outside of a kernel.
Thread& current_thread();

}  // namespace flashmla::emulator
