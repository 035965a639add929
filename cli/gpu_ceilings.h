// The ceilings of a GPU that every measured rate is compared with.
#pragma once

namespace flashmla::cli {

struct GpuCeilings {
  double copy_gbs = 0;         ///< bytes read and written by a copy that is much larger than the L2 cache
  double mma_tflops = 0;       ///< of a large bf16 matrix product with mma.sync
  double mma_peak_tflops = 0;  ///< of mma.sync on registers alone
};

/// Medians of at least 20 repetitions, over `seconds` for each. Throws Mismatch if the product is wrong.
GpuCeilings measure_gpu_ceilings(int ordinal, double seconds);

/// Keeps the higher rates: what else runs on a machine can make a measured ceiling too low, not too high.
void raise(GpuCeilings& ceilings, const GpuCeilings& again);

}  // namespace flashmla::cli
