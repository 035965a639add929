// flashmla check: runs case files and compares each output with what the file expects and with the
// reference backend.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string>
#include <vector>

#include "cases/case.h"
#include "cases/compare.h"
#include "cases/on_device.h"
#include "cli/backends.h"
#include "cli/commands.h"
#include "cli/escape.h"
#include "cli/table.h"
#include "flashmla/error.h"

namespace flashmla::cli {
namespace {

/// Gathers comparisons and prints them.
class Report {
 public:
  void add(const std::string& source, const std::string& backend, const std::string& against,
           const cases::Result& result, const TensorView& expected) {
    const cases::Comparison found =
        cases::compare(result.operation, result.output, result.got.view(), expected);
    const std::string name = file_name(source);
    table_.add({name, backend, result.output, against, fmt::format("{:.2e}", found.max_error),
                cases::to_string(found.max_error_position),
                found.position == found.max_error_position ? "" : cases::to_string(found.position),
                fmt::format("{:.1e}", found.cosine_difference), found.passed ? "ok" : "FAILED"});
    ++compared_;
    if (!found.passed)
      failures_.push_back(fmt::format("{}: {}, {}: {}", name, backend, against, found.description));
  }

  void note_unsupported(const Error& error) { notes_.emplace_back(error.what()); }

  int compared() const { return compared_; }
  bool failed() const { return !failures_.empty(); }

  void print() const {
    table_.print();
    fmt::print("\n");
    for (const std::string& note : notes_) fmt::print("not run: {}\n", note);
    for (const std::string& failure : failures_) fmt::print("{}\n", failure);
    fmt::print("{} of {} comparisons passed\n", compared_ - static_cast<int>(failures_.size()), compared_);
  }

 private:
  Table table_{{{"case"},
                {"backend"},
                {"output"},
                {"against"},
                {"largest error", Align::kRight},
                {"position"},
                {"worst, if elsewhere"},
                {"1 - cosine", Align::kRight},
                {"result"}}};
  std::vector<std::string> failures_;
  std::vector<std::string> notes_;
  int compared_ = 0;
};

void compare_all(Report& report, const cases::Case& what, const std::string& backend,
                 const std::vector<cases::Result>& results, const std::vector<cases::Result>& truth) {
  for (std::size_t i = 0; i < results.size(); ++i) {
    if (results[i].expected.given())
      report.add(what.source, backend, "file", results[i], results[i].expected);
    if (backend != kReference) {
      report.add(what.source, backend, "reference", results[i], truth.at(i).got.view());
    }
  }
}

/// Runs the case on one backend; with `all`, a combination that the backend lacks is only noted.
void check_on(Report& report, const cases::Case& what, const Execution& on, bool all,
              const std::vector<cases::Result>& truth) {
  try {
    const std::string backend = backend_for(what, on);
    if (backend == kReference) return compare_all(report, what, backend, truth, truth);
    compare_all(report, what, backend, cases::run_case(what, on), truth);
  } catch (const Error& error) {
    if (!all || error.kind() != ErrorKind::kUnsupported) throw;
    report.note_unsupported(error);
  }
}

void check_case(Report& report, const std::string& path, const Execution& on,
                const std::vector<std::string>& backends) {
  const cases::Case what = cases::read_case(path);
  Execution reference = on;
  reference.backend = kReference;
  reference.device = {};
  const std::vector<cases::Result> truth = cases::run_case(what, reference);
  const int before = report.compared();
  for (const std::string& backend : backends) {
    Execution pinned = on;
    pinned.backend = backend;
    if (backends.size() > 1) pinned.device = cases::device_of(backend);
    check_on(report, what, pinned, backends.size() > 1, truth);
  }
  if (report.compared() == before) {
    throw Error(ErrorKind::kValue,
                fmt::format("{}: nothing to compare with: the file has no expected outputs", path));
  }
}

}  // namespace

int check(const CheckOptions& options) {
  const bool all = options.on.backend == "all";
  ExecutionOptions chosen = options.on;
  if (all) chosen.backend.clear();
  const Execution on = execution(chosen);
  const std::vector<std::string> backends = all ? available_backends() : std::vector{options.on.backend};

  Report report;
  try {
    for (const std::string& path : options.cases) check_case(report, path, on, backends);
  } catch (...) {
    if (report.compared() > 0) report.print();
    throw;
  }
  report.print();
  return report.failed() ? kComparisonFailed : kSuccess;
}

}  // namespace flashmla::cli
