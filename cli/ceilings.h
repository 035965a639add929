// The two ceilings of this machine that every measured rate is compared with.
#pragma once

#include <cstddef>
#include <string>

#include "cli/machine.h"

namespace flashmla::cli {

struct DotPeak {
  double gflops = 0;
  std::string instruction;  ///< `vdpbf16ps`
};

/// The most that `threads` threads together reach with the faster of the vector dot products of this machine,
/// bf16 pairs or f32 FMA: independent accumulators in registers, nothing read from memory. Matrix units (AMX)
/// are not counted, as no kernel uses them. The rate of the quickest round of the whole team.
/// Takes about a second.
DotPeak measure_dot_peak(int threads);

/// The buffer of the read rate on this machine: 1 GiB or twice the last-level cache, whichever is more, but
/// at most a quarter of the memory.
std::size_t read_buffer_bytes(const Machine& machine);

/// GB/s (10^9 bytes) at which `threads` threads together read a buffer of this size: the rate of the
/// quickest of its pieces in several passes. The buffer should be larger than the last-level cache.
/// Takes about a second.
double measure_read_rate(int threads, std::size_t bytes);

}  // namespace flashmla::cli
