// What `bench` measured on a GPU, as a table and as JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/gpu_ceilings.h"
#include "cli/gpu_measurement.h"

namespace flashmla::cli {

struct GpuReport {
  nlohmann::ordered_json gpu;  ///< as gpu_json says
  GpuCeilings ceilings;
  std::vector<GpuMeasurement> results;
};

/// Parts of the ceilings that a case reaches.
struct GpuRoof {
  double of_copy = 0;     ///< of the bytes that a copy moves in the same time
  double of_product = 0;  ///< of what an mma.sync matrix product computes in the same time

  /// Of the roof: the larger one.
  double of_roof() const;
};

GpuRoof roof_of(const GpuMeasurement& result, const GpuCeilings& ceilings);

/// One table for each section.
void print_report(const GpuReport& report);

nlohmann::ordered_json to_json(const GpuReport& report);

void write_report(const GpuReport& report, const std::string& path);

/// What a GPU is: name, architecture, sizes, driver and clocks.
nlohmann::ordered_json gpu_json(int ordinal);

}  // namespace flashmla::cli
