// Measures one case.
#include "cli/measurement.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "cases/case.h"
#include "cli/backends.h"
#include "cli/machine.h"
#include "cli/spot_check.h"

namespace flashmla::cli {
namespace {

/// Runs for about `seconds`, and often enough for a median that means something. The step has run before, so
/// memory is warm.
Times measure(const cases::Step& step, const Execution& on, double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr std::size_t kLeastRuns = 10;
  constexpr std::size_t kLeastLongRuns = 3;
  constexpr double kLong = 1;
  constexpr std::size_t kMostRuns = 100'000;
  std::vector<double> times;
  const Clock::time_point end =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  const auto least = [&] { return !times.empty() && times.front() >= kLong ? kLeastLongRuns : kLeastRuns; };
  while (times.size() < least() || (Clock::now() < end && times.size() < kMostRuns)) {
    const Clock::time_point start = Clock::now();
    step.run(on);
    times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  return {.median = times[times.size() / 2], .min = times.front(), .max = times.back(), .runs = times.size()};
}

}  // namespace

Measurement measure_case(const BenchCase& what, const ExecutionOptions& options, std::uint64_t seed,
                         double seconds) {
  Execution on = execution(options);
  const cases::Case random = random_case(what.operation, what.shape, Purpose::kBench, seed);
  const std::vector<cases::Step> steps = cases::prepare(random);
  const cases::Step& step = steps.front();

  Measurement result;
  result.what = what;
  result.threads = options.threads;
  result.kernel = kernel_for(step, on);
  cases::Tensor workspace(DataType::kU8, {static_cast<std::int64_t>(step.workspace_bytes(on))});
  on.workspace = workspace.view().data;
  on.workspace_size = workspace.memory().size();
  step.run(on);
  result.checked =
      result.kernel.backend == kReference ? "is the reference" : check_against_reference(random, step);
  result.work = work_of(step.operation);
  result.in_cache = fits_in_cache(result.work, this_machine());
  result.seconds = measure(step, on, seconds);
  return result;
}

}  // namespace flashmla::cli
