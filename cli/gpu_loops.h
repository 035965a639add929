// Kernels whose rates are the ceilings of a GPU.
#pragma once

#include <cstdint>

namespace flashmla::cli {

/// `c = a * b^T` with f32 accumulation and a result rounded to bf16; row-major bf16 in the memory of a GPU,
/// rows aligned to 16 bytes.
struct MmaProduct {
  const void* a = nullptr;  ///< [m, k], m a multiple of kMmaProductM
  const void* b = nullptr;  ///< [n, k], n a multiple of kMmaProductN
  void* c = nullptr;        ///< [m, n]
  int m = 0;
  int n = 0;
  int k = 0;  ///< a multiple of kMmaProductK
};

inline constexpr int kMmaProductM = 128;
inline constexpr int kMmaProductN = 256;
inline constexpr int kMmaProductK = 64;

/// Multiplies with mma.sync, with at most `shared_memory` bytes a block, 99 KB at least; enqueued on
/// `stream`.
void launch_mma_product(const MmaProduct& product, int shared_memory, void* stream);

/// mma.sync on registers alone: every warp of `blocks` blocks multiplies `rounds` times. Writes
/// kMmaPeakThreads * blocks numbers to `out`, on a GPU.
void launch_mma_peak(float* out, int blocks, int rounds, void* stream);

inline constexpr int kMmaPeakThreads = 256;

/// Multiplications and additions of one block in one round.
double mma_peak_flops();

}  // namespace flashmla::cli
