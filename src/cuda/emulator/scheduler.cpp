// Picks the next warp by seed, carries out asynchronous work in between, and finds out when nothing can go
// on.
#include "cuda/emulator/scheduler.h"

#include <exception>
#include <utility>

#include "cuda/emulator/failure.h"

namespace flashmla::emulator {
namespace {

// A round lets every thread that spins try once more. Nothing outside of the cluster can help it.
constexpr std::uint32_t kMaxFruitlessRounds = 10000;

thread_local Cluster* cluster_of_host_thread = nullptr;

/// Ends a fiber whose launch has failed elsewhere.
struct Abort : std::exception {};

/// Threads are numbered along x first, like blocks.
Index3 position(std::uint32_t linear, const Index3& size) {
  return {linear % size.x, linear / size.x % size.y, linear / size.x / size.y};
}

std::uint64_t seed_of(const Launch& launch, std::uint32_t cluster) {
  return launch.settings.seed * 0x2545f4914f6cdd1du + cluster;
}

}  // namespace

Cluster* current_cluster() { return cluster_of_host_thread; }

Thread& current_thread() {
  if (cluster_of_host_thread == nullptr || cluster_of_host_thread->running() == nullptr) {
    throw std::logic_error("an instruction of a GPU was called outside of a kernel");
  }
  return *cluster_of_host_thread->running();
}

Cluster::Cluster(const Launch& launch, std::uint32_t number, std::byte* windows)
    : launch_(launch), windows_(windows), random_(seed_of(launch, number)) {
  for (std::uint32_t rank = 0; rank < launch.config.cluster; ++rank) {
    make_block(rank, number * launch.config.cluster + rank);
  }
  if (launch.settings.checked) races_ = std::make_unique<RaceChecks>(*this);
}

Cluster::~Cluster() = default;

void Cluster::make_block(std::uint32_t rank, std::uint32_t linear_index) {
  const Index3 size = launch_.config.block;
  const std::uint32_t count = size.x * size.y * size.z;
  auto block = std::make_unique<Block>();
  block->index = position(linear_index, launch_.config.grid);
  block->rank = rank;
  block->size = count;
  block->shared = windows_ + rank * kSharedWindowBytes;
  std::fill_n(block->shared, launch_.config.shared_bytes, std::byte{0xff});
  block->threads = std::make_unique<Thread[]>(count);
  block->warps = std::vector<Warp>((count + kWarpSize - 1) / kWarpSize);
  block->warpgroups = std::vector<Warpgroup>((count + Warpgroup::kThreads - 1) / Warpgroup::kThreads);
  for (std::uint32_t i = 0; i < block->warps.size(); ++i) {
    block->warps[i].threads = &block->threads[i * kWarpSize];
    block->warps[i].size = std::min(kWarpSize, count - i * kWarpSize);
  }
  for (std::uint32_t i = 0; i < count; ++i) {
    Thread& thread = block->threads[i];
    thread.cluster = this;
    thread.block = block.get();
    thread.warp = &block->warps[i / kWarpSize];
    thread.position = position(i, size);
    thread.index = i;
    thread.lane = i % kWarpSize;
    thread.fiber.start(thread_main, &thread);
    wake(thread);
  }
  unfinished_ += count;
  blocks_.push_back(std::move(block));
}

Block* Cluster::block_at(const void* address) {
  const auto offset = static_cast<std::size_t>(static_cast<const std::byte*>(address) - windows_);
  return offset < blocks_.size() * kSharedWindowBytes ? blocks_[offset / kSharedWindowBytes].get() : nullptr;
}

void Cluster::thread_main(void* argument) {
  Thread& thread = *static_cast<Thread*>(argument);
  Cluster& cluster = *thread.cluster;
  if (!cluster.failure_) {
    try {
      cluster.launch_.call();
      check_exit(thread);
    } catch (...) {
      if (!cluster.failure_) cluster.failure_ = std::current_exception();
    }
  }
  thread.state = Thread::State::kEnded;
  thread.warp->ended |= thread.lane_bit();
  ++thread.block->ended;
  --cluster.unfinished_;
  cluster.fruitless_rounds_ = 0;
}

void Cluster::suspend_running(Thread::State state, const char* what, const Location& place) {
  Thread& thread = *running_;
  thread.state = state;
  thread.waits_for = what;
  thread.waits_at = place;
  thread.fiber.suspend();
  thread.waits_for = nullptr;
  if (failure_) throw Abort{};
}

void Cluster::park(const char* what, const Location& place) {
  fruitless_rounds_ = 0;
  suspend_running(Thread::State::kParked, what, place);
}

void Cluster::yield(const char* what, const Location& place) {
  yielded_.push_back(running_);
  suspend_running(Thread::State::kYielded, what, place);
}

void Cluster::wake(Thread& thread) {
  Warp& warp = *thread.warp;
  thread.state = Thread::State::kReady;
  warp.ready |= thread.lane_bit();
  if (warp.in_ready_list) return;
  warp.in_ready_list = true;
  ready_.push_back(&warp);
}

void Cluster::abandon_running(std::exception_ptr failure) {
  failure_ = std::move(failure);
  running_->fiber.abandon();
}

void Cluster::wake_yielded() {
  for (Thread* thread : std::exchange(yielded_, {})) wake(*thread);
}

void Cluster::run_thread(Thread& thread) {
  running_ = &thread;
  thread.fiber.resume();
  running_ = nullptr;
}

void Cluster::run_warp() {
  const std::uint32_t picked = random_.below(static_cast<std::uint32_t>(ready_.size()));
  Warp& warp = *std::exchange(ready_[picked], ready_.back());
  ready_.pop_back();
  warp.in_ready_list = false;
  std::uint32_t lanes = std::exchange(warp.ready, 0);
  // No lane is always the first.
  const std::uint32_t first = random_.below(kWarpSize);
  for (lanes = std::rotr(lanes, static_cast<int>(first)); lanes != 0 && !failure_; lanes &= lanes - 1) {
    run_thread(warp.threads[(static_cast<std::uint32_t>(std::countr_zero(lanes)) + first) % kWarpSize]);
  }
}

// Work happens now and then, in bursts: one operation between two warps would leave nearly all of it to the
// waits.
void Cluster::perform_some_work() {
  if (launch_.settings.mode != Mode::kRandom || !random_.one_in(4)) return;
  for (std::uint32_t i = 1u << random_.below(8); i > 0 && !agenda_.empty(); --i) agenda_.perform_one(random_);
}

bool Cluster::unblock() {
  if (!agenda_.empty()) {
    agenda_.perform_one(random_);
    fruitless_rounds_ = 0;
    return true;
  }
  if (yielded_.empty() || ++fruitless_rounds_ > kMaxFruitlessRounds) return false;
  wake_yielded();
  return true;
}

void Cluster::run_until_done() {
  while (unfinished_ > 0 && !failure_) {
    perform_some_work();
    if (!yielded_.empty() && random_.one_in(4)) wake_yielded();
    if (!ready_.empty()) {
      run_warp();
    } else if (!unblock()) {
      throw Failure(describe_deadlock(*this));
    }
  }
  while (!failure_ && !agenda_.empty()) agenda_.perform_one(random_);
}

// Fibers end only by themselves: each comes back from its suspension with an exception.
void Cluster::abort_threads() {
  for (const auto& block : blocks_) {
    for (std::uint32_t i = 0; i < block->size; ++i) {
      if (!block->threads[i].fiber.ended()) run_thread(block->threads[i]);
    }
  }
}

void Cluster::run() {
  Cluster* const before = std::exchange(cluster_of_host_thread, this);
  try {
    run_until_done();
  } catch (...) {
    failure_ = std::current_exception();
  }
  if (failure_) abort_threads();
  cluster_of_host_thread = before;
  if (failure_) std::rethrow_exception(failure_);
}

}  // namespace flashmla::emulator
