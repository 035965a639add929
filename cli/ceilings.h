// The two ceilings of this machine that every measured rate is compared with.
#pragma once

#include <cstddef>
#include <string>

namespace flashmla::cli {

struct DotPeak {
  double gflops = 0;
  std::string instruction;  ///< `vdpbf16ps`
};

/// The most that `threads` threads together reach with the best dot-product instruction of this machine:
/// independent accumulators in registers, nothing read from memory. Takes half a second.
DotPeak measure_dot_peak(int threads);

/// The buffer of the read rate on this machine: 1 GiB, or less where that is much of the memory.
std::size_t read_buffer_bytes();

/// GB/s (10^9 bytes) at which `threads` threads together read a buffer of this size: the best of its pieces
/// in several passes. The buffer should be much larger than the last-level cache.
double measure_read_rate(int threads, std::size_t bytes);

}  // namespace flashmla::cli
