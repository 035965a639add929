// Runs a case on a GPU, compares it with the reference, and measures how long it takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cli/bench_cases.h"
#include "cli/measurement.h"
#include "cli/nvml.h"
#include "flashmla/execution.h"

namespace flashmla::cli {

struct GpuMeasurement {
  BenchCase what;
  KernelInfo kernel;
  std::string checked;        ///< how much of it was compared with the reference
  bool has_schedule = false;  ///< a decode step whose schedule was made before
  Times graph;                ///< of one call among others in a graph; with a schedule if there is one
  Times eager;                ///< the same, each call launched by itself
  Times unscheduled;          ///< in a graph, each call making its own schedule; no runs where there is none
  Work work;
  int copies = 1;        ///< sets of tensors that took turns, more than the L2 cache holds twice
  int calls = 1;         ///< in one graph
  GpuState state_after;  ///< clocks, temperature and power right after the last run

  double tflops() const { return work.flops / graph.median * 1e-12; }
  double gbs() const { return work.bytes / graph.median * 1e-9; }
};

/// Sets of tensors of `bytes` each that must take turns so that no call finds its tensors in an L2 cache of
/// `l2_bytes`.
int copies_needed(std::size_t bytes, std::size_t l2_bytes);

/// Measures for about `seconds` each way, on `on.device`. Throws Mismatch if the case differs from the
/// reference.
GpuMeasurement measure_gpu_case(const BenchCase& what, const Execution& on, std::uint64_t seed,
                                double seconds);

}  // namespace flashmla::cli
