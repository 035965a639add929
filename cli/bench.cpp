// flashmla bench: measures operations and compares their rates with the ceilings of the machine.
#include <fmt/format.h>
#include <omp.h>

#include <string>
#include <vector>

#include "cases/output_file.h"
#include "cli/backends.h"
#include "cli/bench_cases.h"
#include "cli/bench_report.h"
#include "cli/commands.h"
#include "cli/gpu_bench.h"
#include "cli/machine.h"
#include "cli/progress.h"
#include "cli/spot_check.h"
#include "flashmla/error.h"

namespace flashmla::cli {
namespace {

[[noreturn]] void fail(const std::string& message) { throw Error(ErrorKind::kValue, message); }

std::vector<BenchCase> read_cases(const BenchOptions& options) {
  if (options.cases.empty()) {
    if (options.operation.empty()) fail("OP is required, or --cases with a file; --help says more");
    return cases_of(options.operation, options.shape);
  }
  if (!options.operation.empty()) {
    fail(
        fmt::format("bench takes OP or --cases, got OP {} and --cases {}", options.operation, options.cases));
  }
  if (!options.shape.empty()) {
    fail(fmt::format("--cases takes shapes from its file, got --{}", options.shape.begin()->first));
  }
  return read_bench_cases(options.cases);
}

/// Before minutes of measuring.
void require_kernels(const std::vector<BenchCase>& all, const Execution& on) {
  for (const BenchCase& what : all) {
    try {
      require_kernel(what.operation, what.shape, on);
    } catch (const Error& error) {
      if (what.where.empty()) throw;
      throw Error(error.kind(), fmt::format("{}: {}", what.where, error.what()));
    }
  }
}

void measure_all_ceilings(BenchReport& report, double seconds) {
  for (auto& [threads, ceilings] : report.ceilings) {
    const Ceilings found = measure_ceilings(threads, this_machine(), seconds);
    ceilings.dots.empty() ? void(ceilings = found) : raise(ceilings, found);
  }
}

void measure_all(const BenchOptions& options, const std::vector<BenchCase>& all, BenchReport& report) {
  // A machine may be busy for a while: what was measured in the first seconds of a long run is checked.
  const bool again = all.size() > 1;
  Progress progress(static_cast<int>(all.size()) + 1 + (again ? 1 : 0));
  report.ceilings[report.threads];
  for (const BenchCase& what : all) report.ceilings[what.threads];
  progress.step("measuring the ceilings");
  measure_all_ceilings(report, options.seconds);
  for (const BenchCase& what : all) {
    progress.step(fmt::format("{} {}", what.operation, to_string(what.operation, what.shape)));
    ExecutionOptions on = options.on;
    on.threads = what.threads;
    report.results.push_back(measure_case(what, on, options.seed, options.seconds));
  }
  if (!again) return;
  progress.step("measuring the ceilings again");
  measure_all_ceilings(report, options.seconds);
}

/// Prints the table and writes the JSON, also of a run that an error ended.
void show(const BenchOptions& options, const BenchReport& report) {
  if (report.results.empty()) return;
  print_report(report);
  if (!options.json.empty()) write_report(report, options.json);
}

}  // namespace

int bench(const BenchOptions& options) {
  std::vector<BenchCase> all = read_cases(options);
  const Execution on = execution(options.on);
  if (!(options.seconds >= 0 && options.seconds <= 3600)) {
    fail(fmt::format("--seconds must be 0 to 3600, got {}", options.seconds));
  }
  if (!options.json.empty()) cases::require_writable(options.json);
  require_kernels(all, on);
  if (on.device.type == DeviceType::kCuda) return bench_on_gpu(options, all, on);

  BenchReport report;
  report.threads = on.threads > 0 ? on.threads : omp_get_max_threads();
  for (BenchCase& what : all) {
    if (what.threads == 0) what.threads = report.threads;
  }
  try {
    measure_all(options, all, report);
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
