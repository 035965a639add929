// What `bench` measured, as a table and as JSON.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "cli/ceilings.h"
#include "cli/measurement.h"

namespace flashmla::cli {

struct BenchReport {
  int threads = 0;                   ///< of the cases that name no number
  std::map<int, Ceilings> ceilings;  ///< by number of threads
  std::vector<Measurement> results;
};

/// The ceilings of one measurement.
struct Roof {
  DotPeak dot;  ///< the fastest that the instruction set in use has for the types of the case
  double read_gbs = 0;

  double of_peak(const Measurement& result) const { return result.gflops() / dot.gflops; }
  double of_read_rate(const Measurement& result) const { return result.gbs() / read_gbs; }

  /// Of the lower of peak and `read rate * FLOPs / bytes`.
  double of_roof(const Measurement& result) const;
};

Roof roof_of(const Measurement& result, const BenchReport& report);

/// One table for each section.
void print_report(const BenchReport& report);

void write_report(const BenchReport& report, const std::string& path);

}  // namespace flashmla::cli
