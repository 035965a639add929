// flashmla bench: measures an operation and compares its rate with the ceilings of the machine.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cases/case.h"
#include "cases/output_file.h"
#include "cli/backends.h"
#include "cli/ceilings.h"
#include "cli/commands.h"
#include "cli/machine.h"
#include "cli/progress.h"
#include "cli/spot_check.h"
#include "cli/table.h"
#include "cli/work.h"
#include "flashmla/error.h"

namespace flashmla::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Ceilings {
  DotPeak dot;
  double read_gbs = 0;
};

struct Times {
  double median = 0;
  double min = 0;
  double max = 0;
  std::size_t runs = 0;
};

struct Measurement {
  Shape shape;
  KernelInfo kernel;
  std::string checked;
  Times seconds;
  Work work;
  bool in_cache = false;

  double gflops() const { return work.flops / seconds.median * 1e-9; }
  double gbs() const { return work.bytes / seconds.median * 1e-9; }

  /// Of the lower of peak and `read rate * FLOPs / bytes`.
  double fraction_of_roof(const Ceilings& ceilings) const {
    return std::max(gflops() / ceilings.dot.gflops, gbs() / ceilings.read_gbs);
  }
};

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

Measurement measure_case(const BenchOptions& options, const Shape& shape) {
  Execution on = execution(options.on);
  const cases::Case what = random_case(options.operation, shape, Purpose::kBench, options.seed);
  const std::vector<cases::Step> steps = cases::prepare(what);
  const cases::Step& step = steps.front();

  Measurement result{.shape = shape,
                     .kernel = kernel_for(step, on),
                     .checked = {},
                     .seconds = {},
                     .work = {},
                     .in_cache = false};
  cases::Tensor workspace(DataType::kU8, {static_cast<std::int64_t>(step.workspace_bytes(on))});
  on.workspace = workspace.view().data;
  on.workspace_size = workspace.memory().size();
  step.run(on);
  result.checked =
      result.kernel.backend == kReference ? "is the reference" : check_against_reference(what, step);
  result.work = work_of(step.operation);
  result.in_cache = fits_in_cache(result.work, this_machine());
  result.seconds = measure(step, on, options.seconds);
  return result;
}

Json to_json(const BenchOptions& options, const Measurement& result, const Ceilings& ceilings) {
  Json shape;
  for (const auto& [name, value] : values_of(options.operation, result.shape)) shape[name] = value;
  return {{"operation", options.operation},
          {"backend", result.kernel.backend},
          {"kernel", result.kernel.name},
          {"shape", shape},
          {"checked", result.checked},
          {"seconds",
           {{"median", result.seconds.median},
            {"min", result.seconds.min},
            {"max", result.seconds.max},
            {"runs", result.seconds.runs}}},
          {"gflops", result.gflops()},
          {"gbs", result.gbs()},
          {"in_cache", result.in_cache},
          {"fraction_of_peak", result.gflops() / ceilings.dot.gflops},
          {"fraction_of_read_rate", result.gbs() / ceilings.read_gbs},
          {"fraction_of_roof", result.fraction_of_roof(ceilings)}};
}

void write_json(const BenchOptions& options, const std::vector<Measurement>& results,
                const Ceilings& ceilings, int threads) {
  Json machine = to_json(this_machine());
  machine["threads"] = threads;
  Json json = {{"version", FLASHMLA_VERSION},
               {"machine", machine},
               {"ceilings",
                {{"dot_gflops", ceilings.dot.gflops},
                 {"dot_instruction", ceilings.dot.instruction},
                 {"read_gbs", ceilings.read_gbs}}},
               {"results", Json::array()}};
  for (const Measurement& result : results) json["results"].push_back(to_json(options, result, ceilings));
  cases::write_file(options.json, [&](std::ostream& file) { file << json.dump(2) << '\n'; });
}

std::string text_of(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

/// The dimensions in which the shapes differ, by position in values_of.
std::vector<std::size_t> swept(const std::string& operation, const std::vector<Shape>& shapes) {
  const auto first = values_of(operation, shapes.front());
  std::vector<std::size_t> found;
  for (std::size_t i = 0; i < first.size(); ++i) {
    const bool differs = std::any_of(shapes.begin(), shapes.end(), [&](const Shape& shape) {
      return values_of(operation, shape)[i].second != first[i].second;
    });
    if (differs) found.push_back(i);
  }
  return found;
}

/// What all shapes of a sweep have in common.
std::string fixed_values(const std::string& operation, const Shape& shape,
                         const std::vector<std::size_t>& varied) {
  const auto values = values_of(operation, shape);
  std::string text;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::find(varied.begin(), varied.end(), i) != varied.end()) continue;
    text += fmt::format(" {}={}", values[i].first, text_of(values[i].second));
  }
  return text;
}

std::string milliseconds(double seconds) { return fmt::format("{:.4g}", seconds * 1e3); }

std::string percent(double fraction) { return fmt::format("{:.1f}%", fraction * 100); }

void print_table(const BenchOptions& options, const std::vector<Measurement>& results,
                 const Ceilings& ceilings) {
  std::vector<Shape> shapes;
  for (const Measurement& result : results) shapes.push_back(result.shape);
  const std::vector<std::size_t> varied = swept(options.operation, shapes);
  fmt::print("{} on {}:{}\n", options.operation, results.front().kernel.name,
             fixed_values(options.operation, shapes.front(), varied));
  std::vector<Column> columns;
  for (const std::size_t i : varied) {
    columns.push_back({values_of(options.operation, shapes.front())[i].first, Align::kRight});
  }
  for (const char* title :
       {"median ms", "min", "max", "runs", "GFLOP/s", "GB/s", "of peak", "of read", "of roof"}) {
    columns.push_back({title, Align::kRight});
  }
  columns.push_back({"memory"});
  columns.push_back({"checked"});
  Table table(columns);
  for (const Measurement& result : results) {
    std::vector<std::string> cells;
    for (const std::size_t i : varied) {
      cells.push_back(text_of(values_of(options.operation, result.shape)[i].second));
    }
    const bool computes = result.work.flops > 0;
    for (const double time : {result.seconds.median, result.seconds.min, result.seconds.max}) {
      cells.push_back(milliseconds(time));
    }
    cells.push_back(std::to_string(result.seconds.runs));
    cells.push_back(computes ? fmt::format("{:.1f}", result.gflops()) : "-");
    cells.push_back(fmt::format("{:.2f}", result.gbs()));
    cells.push_back(computes ? percent(result.gflops() / ceilings.dot.gflops) : "-");
    cells.push_back(percent(result.gbs() / ceilings.read_gbs));
    cells.push_back(percent(result.fraction_of_roof(ceilings)));
    cells.push_back(result.in_cache ? "in cache" : "");
    cells.push_back(result.checked);
    table.add(std::move(cells));
  }
  table.print();
}

/// What was measured so far.
struct Session {
  int threads = 0;
  Ceilings ceilings = {};
  std::vector<Measurement> results = {};
};

void measure_all(const BenchOptions& options, const std::vector<Shape>& shapes, Session& session) {
  Progress progress(static_cast<int>(shapes.size()) + 1);
  progress.step("measuring the ceilings");
  session.ceilings = {.dot = measure_dot_peak(session.threads),
                      .read_gbs = measure_read_rate(session.threads, read_buffer_bytes(this_machine()))};
  for (const Shape& shape : shapes) {
    progress.step(fmt::format("{} {}", options.operation, to_string(options.operation, shape)));
    session.results.push_back(measure_case(options, shape));
  }
}

/// Prints the table and writes the JSON, also of a sweep that an error ended.
void report(const BenchOptions& options, const Session& session) {
  if (session.results.empty()) return;
  const Ceilings& ceilings = session.ceilings;
  fmt::print("ceilings of {} threads: {:.1f} GFLOP/s ({}), {:.2f} GB/s read\n", session.threads,
             ceilings.dot.gflops, ceilings.dot.instruction, ceilings.read_gbs);
  print_table(options, session.results, ceilings);
  if (!options.json.empty()) write_json(options, session.results, ceilings, session.threads);
}

}  // namespace

int bench(const BenchOptions& options) {
  const std::vector<Shape> shapes = sweep(options.operation, options.shape, Purpose::kBench);
  const Execution on = execution(options.on);
  if (!(options.seconds >= 0 && options.seconds <= 3600)) {
    throw Error(ErrorKind::kValue, fmt::format("--seconds must be 0 to 3600, got {}", options.seconds));
  }
  // Before minutes of measuring.
  if (!options.json.empty()) cases::require_writable(options.json);
  for (const Shape& shape : shapes) require_kernel(options.operation, shape, on);

  Session session{.threads = on.threads > 0 ? on.threads : omp_get_max_threads()};
  try {
    measure_all(options, shapes, session);
  } catch (const Mismatch& mismatch) {
    report(options, session);
    fmt::print(stderr, "flashmla: differs from the reference, not measured: {}\n", mismatch.what());
    return kComparisonFailed;
  } catch (...) {
    report(options, session);
    throw;
  }
  report(options, session);
  return kSuccess;
}

}  // namespace flashmla::cli
