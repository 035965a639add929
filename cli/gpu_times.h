// Times of work on a GPU.
#pragma once

#include <functional>

#include "cli/measurement.h"
#include "cuda/timing.h"

namespace flashmla::cli {

/// Warms the GPU up with `work`, then runs it again and again for about `seconds`, at least 20 times. `calls`
/// is what one run of `work` counts as: times are those of one call.
Times time_on_gpu(const cuda::Stream& stream, const std::function<void()>& work, int calls, double seconds);

}  // namespace flashmla::cli
