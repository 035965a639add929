// Prints what `bench` measured on a GPU, and writes it as JSON.
#include "cli/gpu_report.h"

#include <fmt/format.h>

#include <algorithm>

#include "cases/output_file.h"
#include "cli/bench_cases.h"
#include "cli/escape.h"
#include "cli/machine.h"
#include "cli/shape.h"
#include "cli/table.h"
#include "cuda/device.h"

namespace flashmla::cli {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const Times& times) {
  return {{"median", times.median}, {"min", times.min}, {"max", times.max}, {"runs", times.runs}};
}

Json to_json(const GpuState& state) {
  return {{"clock_mhz", state.clock_mhz},
          {"memory_clock_mhz", state.memory_clock_mhz},
          {"temperature", state.temperature},
          {"watts", state.watts}};
}

Json to_json(const GpuMeasurement& result, const GpuCeilings& ceilings) {
  Json shape;
  for (const auto& [key, value] : values_of(result.what.operation, result.what.shape)) shape[key] = value;
  const GpuRoof roof = roof_of(result, ceilings);
  Json json = {{"section", result.what.section},
               {"name", result.what.name},
               {"swept", result.what.swept},
               {"operation", result.what.operation},
               {"backend", result.kernel.backend},
               {"kernel", result.kernel.name},
               {"shape", shape},
               {"checked", result.checked},
               {"schedule_made_before", result.has_schedule},
               {"seconds", to_json(result.graph)},
               {"eager_seconds", to_json(result.eager)}};
  if (result.unscheduled.runs > 0) json["unscheduled_seconds"] = to_json(result.unscheduled);
  json.update({{"tflops", result.tflops()},
               {"gbs", result.gbs()},
               {"copies", result.copies},
               {"calls_in_graph", result.calls},
               {"fraction_of_copy", roof.of_copy},
               {"fraction_of_product", roof.of_product},
               {"fraction_of_roof", roof.of_roof()},
               {"state_after", to_json(result.state_after)}});
  return json;
}

std::string microseconds(double seconds) { return fmt::format("{:.2f}", seconds * 1e6); }
std::string percent(double fraction) { return fmt::format("{:.1f}%", fraction * 100); }

std::vector<Column> columns() {
  std::vector<Column> all = {{"operation"}, {"case"}, {"kernel"}};
  for (const char* title : {"us", "min", "max", "eager us", "with own schedule us", "TFLOP/s", "GB/s",
                            "of copy", "of product", "of roof"}) {
    all.push_back({title, Align::kRight});
  }
  all.push_back({"checked"});
  return all;
}

std::string label(const BenchCase& what) {
  const std::string values = swept_values(what);
  return escaped(what.name) + (what.name.empty() || values.empty() ? "" : " ") + values;
}

std::vector<std::string> cells_of(const GpuMeasurement& result, const GpuCeilings& ceilings) {
  const GpuRoof roof = roof_of(result, ceilings);
  const bool computes = result.work.flops > 0;
  return {result.what.operation,
          label(result.what),
          std::string(result.kernel.name),
          microseconds(result.graph.median),
          microseconds(result.graph.min),
          microseconds(result.graph.max),
          microseconds(result.eager.median),
          result.unscheduled.runs > 0 ? microseconds(result.unscheduled.median) : "-",
          computes ? fmt::format("{:.1f}", result.tflops()) : "-",
          fmt::format("{:.0f}", result.gbs()),
          percent(roof.of_copy),
          computes ? percent(roof.of_product) : "-",
          percent(roof.of_roof()),
          result.checked};
}

}  // namespace

double GpuRoof::of_roof() const { return std::max(of_copy, of_product); }

GpuRoof roof_of(const GpuMeasurement& result, const GpuCeilings& ceilings) {
  return {.of_copy = result.gbs() / ceilings.copy_gbs, .of_product = result.tflops() / ceilings.mma_tflops};
}

nlohmann::ordered_json gpu_json(int ordinal) {
  const cuda::DeviceProperties& gpu = cuda::device_properties(ordinal);
  return {{"name", gpu.name},
          {"compute_capability", fmt::format("{}.{}", gpu.compute_major, gpu.compute_minor)},
          {"multiprocessors", gpu.multiprocessors},
          {"shared_memory", gpu.shared_memory},
          {"shared_memory_used", cuda::shared_memory_limit(ordinal)},
          {"l2_bytes", gpu.l2_bytes},
          {"memory_bytes", gpu.memory_bytes},
          {"highest_clock_mhz", gpu.clock_khz / 1000},
          {"highest_memory_clock_mhz", gpu.memory_clock_khz / 1000},
          {"driver", gpu_state(gpu.pci_bus_id).driver}};
}

void print_report(const GpuReport& report) {
  fmt::print(
      "{}: copy {:.0f} GB/s, mma.sync matrix product {:.1f} TFLOP/s, mma.sync in registers {:.1f} TFLOP/s\n",
      report.gpu.at("name").get<std::string>(), report.ceilings.copy_gbs, report.ceilings.mma_tflops,
      report.ceilings.mma_peak_tflops);
  std::vector<std::string> sections;
  for (const GpuMeasurement& result : report.results) {
    if (std::ranges::find(sections, result.what.section) == sections.end())
      sections.push_back(result.what.section);
  }
  for (const std::string& section : sections) {
    fmt::print("\n{}\n", section.empty() ? "cases" : escaped(section));
    Table table(columns());
    for (const GpuMeasurement& result : report.results) {
      if (result.what.section == section) table.add(cells_of(result, report.ceilings));
    }
    table.print();
  }
}

nlohmann::ordered_json to_json(const GpuReport& report) {
  Json json = {{"version", FLASHMLA_VERSION},
               {"commit", FLASHMLA_COMMIT},
               {"machine", to_json(this_machine())},
               {"gpu", report.gpu},
               {"ceilings",
                {{"copy_gbs", report.ceilings.copy_gbs},
                 {"mma_product_tflops", report.ceilings.mma_tflops},
                 {"mma_registers_tflops", report.ceilings.mma_peak_tflops}}},
               {"results", Json::array()}};
  for (const GpuMeasurement& result : report.results) {
    json["results"].push_back(to_json(result, report.ceilings));
  }
  return json;
}

void write_report(const GpuReport& report, const std::string& path) {
  cases::write_file(path, [&](std::ostream& file) { file << to_json(report).dump(2) << '\n'; });
}

}  // namespace flashmla::cli
