// Runs a case, compares it with the reference, and measures how long it takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cli/bench_cases.h"
#include "cli/commands.h"
#include "cli/work.h"
#include "flashmla/kernels.h"

namespace flashmla::cli {

/// Of one run, in seconds.
struct Times {
  double median = 0;
  double min = 0;
  double max = 0;
  std::size_t runs = 0;
};

struct Measurement {
  BenchCase what;
  int threads = 0;
  KernelInfo kernel;
  std::string checked;  ///< how much of it was compared with the reference
  Times seconds;
  Work work;
  bool in_cache = false;

  double gflops() const { return work.flops / seconds.median * 1e-9; }
  double gbs() const { return work.bytes / seconds.median * 1e-9; }
};

/// Measures for about `seconds`. Throws Mismatch if the case differs from the reference.
Measurement measure_case(const BenchCase& what, const ExecutionOptions& options, std::uint64_t seed,
                         double seconds);

}  // namespace flashmla::cli
