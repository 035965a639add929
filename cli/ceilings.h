// The ceilings of this machine that every measured rate is compared with.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "cli/machine.h"

namespace flashmla::cli {

/// What a team of threads reaches with one instruction that multiplies and adds.
struct DotPeak {
  std::string instruction;      ///< `vdpbf16ps`
  std::string instruction_set;  ///< of the `cpu` backend, the least that has it: `avx512_bf16`
  bool bf16_only = false;       ///< the factors are bf16; otherwise f32, which all types become
  double gflops = 0;
};

/// The most that `threads` threads together reach with each dot product of this machine, AMX tiles included
/// where the system allows them, but without vectors narrower than those of `instruction_set`: independent
/// accumulators in registers, nothing read from memory. The rates of the quickest rounds of the whole team,
/// of at least 100 and as many as `seconds` allow for each instruction. Best instruction set first; never
/// empty.
std::vector<DotPeak> measure_dot_peaks(int threads, std::string_view instruction_set, double seconds);

/// The fastest of them that a kernel of this instruction set of the `cpu` backend may use for factors that
/// are bf16, or that are not.
const DotPeak& fastest_dot(const std::vector<DotPeak>& peaks, std::string_view instruction_set, bool bf16);

/// The buffer of the read rate on this machine: 1 GiB or twice the last-level cache, whichever is more, but
/// at most a quarter of the memory.
std::size_t read_buffer_bytes(const Machine& machine);

/// GB/s (10^9 bytes) at which `threads` threads together read a buffer of this size: the rate of the
/// quickest of its pieces in several passes, four or as many as `seconds` allow. The buffer should be larger
/// than the last-level cache.
double measure_read_rate(int threads, std::size_t bytes, double seconds);

/// All ceilings of one number of threads.
struct Ceilings {
  std::vector<DotPeak> dots;
  double read_gbs = 0;
};

/// Takes `seconds` for each ceiling, but not more than are of use.
Ceilings measure_ceilings(int threads, const Machine& machine, double seconds);

/// Keeps the higher rates: other programs can make a measured ceiling too low, and none too high.
void raise(Ceilings& ceilings, const Ceilings& again);

}  // namespace flashmla::cli
