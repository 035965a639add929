// Times of work on a GPU.
#include "cli/gpu_times.h"

#include <algorithm>
#include <chrono>
#include <vector>

namespace flashmla::cli {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// An idle GPU takes this long to raise its clocks.
constexpr double kWarmUpSeconds = 0.3;
constexpr int kRunsAtOnce = 21;
constexpr std::size_t kMostRuns = 10'000;

}  // namespace

Times time_on_gpu(const cuda::Stream& stream, const std::function<void()>& work, int calls, double seconds) {
  for (const Clock::time_point start = Clock::now(); seconds_since(start) < kWarmUpSeconds;) {
    for (int i = 0; i < 3; ++i) work();
    stream.synchronize();
  }
  std::vector<double> times;
  const Clock::time_point start = Clock::now();
  do {
    const std::vector<double> found = cuda::time_each(stream, work, kRunsAtOnce);
    // The first run waited for its launch, on an idle GPU.
    for (std::size_t i = 1; i < found.size(); ++i) times.push_back(found[i] / calls);
  } while (seconds_since(start) < seconds && times.size() < kMostRuns);
  std::sort(times.begin(), times.end());
  return {.median = times[times.size() / 2], .min = times.front(), .max = times.back(), .runs = times.size()};
}

}  // namespace flashmla::cli
