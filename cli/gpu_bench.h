// Measures the cases of `bench` on a GPU.
#pragma once

#include <vector>

#include "cli/bench_cases.h"
#include "cli/commands.h"
#include "flashmla/execution.h"

namespace flashmla::cli {

/// Returns the exit code.
int bench_on_gpu(const BenchOptions& options, const std::vector<BenchCase>& all, const Execution& on);

}  // namespace flashmla::cli
