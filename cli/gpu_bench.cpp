// Measures the cases of `bench` on a GPU.
#include "cli/gpu_bench.h"

#include <fmt/format.h>

#include "cli/gpu_report.h"
#include "cli/progress.h"
#include "cli/spot_check.h"

namespace flashmla::cli {
namespace {

void measure_all(const BenchOptions& options, const std::vector<BenchCase>& all, const Execution& on,
                 GpuReport& report) {
  // A card that has become warm, or that others use, is slower: ceilings from both ends of the run.
  Progress progress(static_cast<int>(all.size()) + 2);
  progress.step("measuring the ceilings");
  report.ceilings = measure_gpu_ceilings(on.device.index, options.seconds);
  for (const BenchCase& what : all) {
    progress.step(fmt::format("{} {}", what.operation, to_string(what.operation, what.shape)));
    report.results.push_back(measure_gpu_case(what, on, options.seed, options.seconds));
  }
  progress.step("measuring the ceilings again");
  raise(report.ceilings, measure_gpu_ceilings(on.device.index, options.seconds));
}

/// Prints the table and writes the JSON, also of a run that an error ended.
void show(const BenchOptions& options, const GpuReport& report) {
  if (report.results.empty()) return;
  print_report(report);
  if (!options.json.empty()) write_report(report, options.json);
}

}  // namespace

int bench_on_gpu(const BenchOptions& options, const std::vector<BenchCase>& all, const Execution& on) {
  GpuReport report;
  report.gpu = gpu_json(on.device.index);
  try {
    measure_all(options, all, on, report);
  } catch (const Mismatch& mismatch) {
    show(options, report);
    fmt::print(stderr, "flashmla: differs from the reference, not measured: {}\n", mismatch.what());
    return kComparisonFailed;
  } catch (...) {
    show(options, report);
    throw;
  }
  show(options, report);
  return kSuccess;
}

}  // namespace flashmla::cli
