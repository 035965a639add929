// Prints what `bench` measured, and writes it as JSON.
#include "cli/bench_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cases/output_file.h"
#include "cli/escape.h"
#include "cli/machine.h"
#include "cli/table.h"

namespace flashmla::cli {
namespace {

using Json = nlohmann::ordered_json;

Json shape_json(const Measurement& result) {
  Json shape;
  for (const auto& [key, value] : values_of(result.what.operation, result.what.shape)) shape[key] = value;
  return shape;
}

Json to_json(const Measurement& result, const Roof& roof) {
  return {{"section", result.what.section},
          {"name", result.what.name},
          {"swept", result.what.swept},
          {"operation", result.what.operation},
          {"backend", result.kernel.backend},
          {"kernel", result.kernel.name},
          {"shape", shape_json(result)},
          {"threads", result.threads},
          {"checked", result.checked},
          {"seconds",
           {{"median", result.seconds.median},
            {"min", result.seconds.min},
            {"max", result.seconds.max},
            {"runs", result.seconds.runs}}},
          {"gflops", result.gflops()},
          {"gbs", result.gbs()},
          {"in_cache", result.in_cache},
          {"dot_instruction", roof.dot.instruction},
          {"dot_gflops", roof.dot.gflops},
          {"read_gbs", roof.read_gbs},
          {"fraction_of_peak", roof.of_peak(result)},
          {"fraction_of_read_rate", roof.of_read_rate(result)},
          {"fraction_of_roof", roof.of_roof(result)}};
}

Json to_json(int threads, const Ceilings& ceilings) {
  Json json = {{"threads", threads}, {"read_gbs", ceilings.read_gbs}, {"dot", Json::array()}};
  for (const DotPeak& peak : ceilings.dots) {
    json["dot"].push_back({{"instruction", peak.instruction},
                           {"instruction_set", peak.instruction_set},
                           {"gflops", peak.gflops}});
  }
  return json;
}

/// Those of bf16 on all threads, and everything that was measured.
Json ceilings_json(const BenchReport& report) {
  const Ceilings& all_threads = report.ceilings.at(report.threads);
  const DotPeak& dot = fastest_dot(all_threads.dots, this_machine().cpu_instruction_set, true);
  Json json = {{"dot_gflops", dot.gflops},
               {"dot_instruction", dot.instruction},
               {"read_gbs", all_threads.read_gbs},
               {"measured", Json::array()}};
  for (const auto& [threads, ceilings] : report.ceilings) {
    json["measured"].push_back(to_json(threads, ceilings));
  }
  return json;
}

/// What a table of several rows says of each of them, behind the columns that tell them apart.
std::vector<Column> measured_columns() {
  std::vector<Column> columns;
  for (const char* title :
       {"median ms", "min", "max", "runs", "GFLOP/s", "GB/s", "of peak", "of read", "of roof"}) {
    columns.push_back({title, Align::kRight});
  }
  for (const char* title : {"peak is of", "memory", "checked"}) columns.push_back({title});
  return columns;
}

std::string percent(double fraction) { return fmt::format("{:.1f}%", fraction * 100); }

std::vector<std::string> measured_cells(const Measurement& result, const Roof& roof) {
  const bool computes = result.work.flops > 0;
  std::vector<std::string> cells;
  for (const double time : {result.seconds.median, result.seconds.min, result.seconds.max}) {
    cells.push_back(fmt::format("{:.4g}", time * 1e3));
  }
  cells.push_back(std::to_string(result.seconds.runs));
  cells.push_back(computes ? fmt::format("{:.1f}", result.gflops()) : "-");
  cells.push_back(fmt::format("{:.2f}", result.gbs()));
  cells.push_back(computes ? percent(roof.of_peak(result)) : "-");
  cells.push_back(percent(roof.of_read_rate(result)));
  cells.push_back(percent(roof.of_roof(result)));
  cells.push_back(computes ? roof.dot.instruction : "-");
  cells.emplace_back(result.in_cache ? "in cache" : "");
  cells.push_back(result.checked);
  return cells;
}

std::string text_of(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

/// What all cases of a sweep have in common.
std::string fixed_values(const BenchCase& what) {
  std::string text;
  for (const auto& [key, value] : values_of(what.operation, what.shape)) {
    const bool varies = std::find(what.swept.begin(), what.swept.end(), key) != what.swept.end();
    if (!varies) text += fmt::format(" {}={}", key, text_of(value));
  }
  return text;
}

/// Cases of one operation, told apart by the values of the sweep.
void print_sweep(const BenchReport& report) {
  const Measurement& first = report.results.front();
  fmt::print("{} on {}:{}\n", first.what.operation, first.kernel.name, fixed_values(first.what));
  std::vector<Column> columns;
  for (const std::string& key : first.what.swept) columns.push_back({key, Align::kRight});
  const std::vector<Column> measured = measured_columns();
  columns.insert(columns.end(), measured.begin(), measured.end());
  Table table(columns);
  for (const Measurement& result : report.results) {
    const Json shape = shape_json(result);
    std::vector<std::string> cells;
    for (const std::string& key : result.what.swept) cells.push_back(text_of(shape.at(key)));
    for (std::string& cell : measured_cells(result, roof_of(result, report))) cells.push_back(cell);
    table.add(std::move(cells));
  }
  table.print();
}

/// `h=128 seqlen=4096`: what the entry is called, and the values of its sweep.
std::string label(const BenchCase& what) {
  const std::string values = swept_values(what);
  return escaped(what.name) + (what.name.empty() || values.empty() ? "" : " ") + values;
}

/// Cases of a file that belong together.
void print_section(const BenchReport& report, const std::string& section) {
  fmt::print("\n{}\n", section.empty() ? "cases" : escaped(section));
  std::vector<Column> columns = {{"operation"}, {"case"}, {"kernel"}, {"threads", Align::kRight}};
  const std::vector<Column> measured = measured_columns();
  columns.insert(columns.end(), measured.begin(), measured.end());
  Table table(columns);
  for (const Measurement& result : report.results) {
    if (result.what.section != section) continue;
    std::vector<std::string> cells = {result.what.operation, label(result.what),
                                      std::string(result.kernel.name), std::to_string(result.threads)};
    for (std::string& cell : measured_cells(result, roof_of(result, report))) cells.push_back(cell);
    table.add(std::move(cells));
  }
  table.print();
}

/// In the order in which they come up.
std::vector<std::string> sections(const BenchReport& report) {
  std::vector<std::string> found;
  for (const Measurement& result : report.results) {
    if (std::find(found.begin(), found.end(), result.what.section) == found.end()) {
      found.push_back(result.what.section);
    }
  }
  return found;
}

void print_ceilings(int threads, const Ceilings& ceilings) {
  std::string text;
  for (const DotPeak& peak : ceilings.dots) {
    text += fmt::format(" {:.1f} GFLOP/s ({}),", peak.gflops, peak.instruction);
  }
  fmt::print("ceilings of {} thread{}:{} {:.2f} GB/s read\n", threads, threads == 1 ? "" : "s", text,
             ceilings.read_gbs);
}

}  // namespace

double Roof::of_roof(const Measurement& result) const {
  return std::max(of_peak(result), of_read_rate(result));
}

Roof roof_of(const Measurement& result, const BenchReport& report) {
  const Ceilings& ceilings = report.ceilings.at(result.threads);
  const bool bf16 = result.what.shape.format != KvFormat::kF16;  // FP8 rows become bf16
  return {.dot = fastest_dot(ceilings.dots, this_machine().cpu_instruction_set, bf16),
          .read_gbs = ceilings.read_gbs};
}

void print_report(const BenchReport& report) {
  for (const auto& [threads, ceilings] : report.ceilings) print_ceilings(threads, ceilings);
  const bool from_file = !report.results.front().what.where.empty();
  if (!from_file) return print_sweep(report);
  for (const std::string& section : sections(report)) print_section(report, section);
}

void write_report(const BenchReport& report, const std::string& path) {
  Json machine = to_json(this_machine());
  machine["threads"] = report.threads;
  Json json = {{"version", FLASHMLA_VERSION},
               {"machine", machine},
               {"ceilings", ceilings_json(report)},
               {"results", Json::array()}};
  for (const Measurement& result : report.results) {
    json["results"].push_back(to_json(result, roof_of(result, report)));
  }
  cases::write_file(path, [&](std::ostream& file) { file << json.dump(2) << '\n'; });
}

}  // namespace flashmla::cli
