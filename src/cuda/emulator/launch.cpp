// Checks a launch, and shares out its clusters to host threads.
#include "cuda/emulator/launch.h"

#include <sys/mman.h>

#include <atomic>
#include <exception>
#include <mutex>
#include <new>
#include <sstream>
#include <thread>
#include <vector>

#include "cuda/emulator/scheduler.h"

namespace flashmla::emulator {
namespace {

constexpr std::uint32_t kMaxThreadsPerBlock = 1024;
constexpr std::uint32_t kMaxBlocksPerCluster = 16;

std::uint64_t count(const Index3& size) { return std::uint64_t{size.x} * size.y * size.z; }

void check(const std::string& name, const LaunchConfig& config, const Device& device) {
  std::ostringstream wrong;
  if (count(config.grid) == 0 || count(config.grid) > 0x7fffffff) {
    wrong << "the grid has " << count(config.grid) << " blocks";
  } else if (count(config.block) == 0 || count(config.block) > kMaxThreadsPerBlock) {
    wrong << "a block has " << count(config.block) << " threads, 1 to " << kMaxThreadsPerBlock
          << " are allowed";
  } else if (config.shared_bytes > device.shared_bytes_per_block) {
    wrong << "a block needs " << config.shared_bytes << " bytes of shared memory, this device has "
          << device.shared_bytes_per_block;
  } else if (config.cluster == 0 || config.cluster > kMaxBlocksPerCluster ||
             config.grid.x % config.cluster != 0) {
    wrong << "clusters of " << config.cluster << " blocks in a grid " << config.grid.x << " wide";
  } else if (config.cluster > 1 && device.compute_major < 9) {
    wrong << "clusters on a device of compute capability " << device.compute_major << '.'
          << device.compute_minor;
  }
  if (!wrong.str().empty()) throw Failure("kernel " + name + ": " + wrong.str());
}

/// The shared memory of one cluster at a time.
class SharedWindows {
 public:
  explicit SharedWindows(std::uint32_t blocks) : bytes_(blocks * kSharedWindowBytes) {
    void* memory =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<std::byte*>(memory);
  }
  ~SharedWindows() { munmap(base_, bytes_); }
  SharedWindows(const SharedWindows&) = delete;
  SharedWindows& operator=(const SharedWindows&) = delete;

  std::byte* base() { return base_; }

 private:
  std::size_t bytes_;
  std::byte* base_;
};

/// The clusters of a launch: who takes the next one, and what went wrong first.
class Clusters {
 public:
  explicit Clusters(const Launch& launch)
      : launch_(launch),
        count_(static_cast<std::uint32_t>(count(launch.config.grid) / launch.config.cluster)) {}

  std::uint32_t count_of_clusters() const { return count_; }

  /// Runs clusters until none is left or one has failed.
  void work() {
    SharedWindows windows(launch_.config.cluster);
    for (;;) {
      const std::uint32_t number = next_.fetch_add(1);
      if (number >= count_) return;
      try {
        Cluster(launch_, number, windows.base()).run();
      } catch (...) {
        next_ = count_;
        keep(number, std::current_exception());
      }
    }
  }

  void rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  void keep(std::uint32_t number, std::exception_ptr failure) {
    const std::lock_guard lock(mutex_);
    if (failure_ && failed_ < number) return;
    failed_ = number;
    failure_ = std::move(failure);
  }

  const Launch& launch_;
  std::uint32_t count_;
  std::atomic<std::uint32_t> next_{0};
  std::mutex mutex_;
  std::uint32_t failed_ = 0;
  std::exception_ptr failure_;
};

}  // namespace

void launch(const KernelCall& call, const std::string& name, const LaunchConfig& config) {
  check(name, config, settings().device);
  if (settings().checked && !kSeesAccesses) throw std::logic_error("this build can't check accesses");
  Launch launch{.call = call, .name = name, .config = config, .settings = settings(), .memory = {}};
  launch.memory.allow(call.params, call.params_bytes);

  Clusters clusters(launch);
  std::vector<std::jthread> helpers;
  const auto threads =
      std::min<std::uint32_t>(std::max(1, launch.settings.threads), clusters.count_of_clusters());
  for (std::uint32_t i = 1; i < threads; ++i) helpers.emplace_back([&] { clusters.work(); });
  clusters.work();
  helpers.clear();
  clusters.rethrow();
}

}  // namespace flashmla::emulator
