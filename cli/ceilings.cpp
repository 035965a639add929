// The ceilings of this machine that every measured rate is compared with.
#include "cli/ceilings.h"

#include <omp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "cli/processor_loops.h"

namespace flashmla::cli {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Where results go so that no loop is optimized away.
std::atomic<float> dot_result;
std::atomic<std::uint64_t> read_result;

/// How long the rounds of a team took.
struct Rounds {
  int team = 0;  ///< threads that there were
  std::vector<double> seconds;

  /// The quickest one: on a busy machine most rounds are interrupted, and none can be too quick.
  double quick() const { return *std::min_element(seconds.begin(), seconds.end()); }
};

/// Calls `work(thread, round)` on every thread of a team, round by round: all begin a round together, and it
/// lasts until the last one is done. A rate of one thread alone would mean little: with more threads than
/// cores each has a core for itself when it is fast.
template <class Work>
Rounds team_rounds(int threads, std::size_t least_rounds, double least_seconds, const Work& work) {
  Rounds rounds;
  std::vector<Clock::time_point> starts(static_cast<std::size_t>(threads));
  std::vector<Clock::time_point> ends(starts.size());
  const Clock::time_point begin = Clock::now();
  bool more = true;
#pragma omp parallel num_threads(threads)
  {
    const auto thread = static_cast<std::size_t>(omp_get_thread_num());
#pragma omp barrier
    for (std::size_t round = 0; more; ++round) {
      starts[thread] = Clock::now();
      work(thread, round);
      ends[thread] = Clock::now();
#pragma omp barrier
#pragma omp single
      {
        rounds.team = omp_get_num_threads();
        const auto first = std::min_element(starts.begin(), starts.begin() + rounds.team);
        const auto last = std::max_element(ends.begin(), ends.begin() + rounds.team);
        rounds.seconds.push_back(std::chrono::duration<double>(*last - *first).count());
        more = round + 1 < least_rounds || seconds_since(begin) < least_seconds;
      }
    }
  }
  return rounds;
}

/// Iterations of the loop in a third of a millisecond: the time slices of a busy machine are longer, so few
/// rounds are interrupted.
std::int64_t iterations_of_a_round(const DotInstruction& instruction) {
  constexpr double kSeconds = 0.3e-3;
  constexpr std::int64_t kProbe = 4'000;
  const auto probe = [&](std::size_t, std::size_t) { dot_result = instruction.loop(kProbe); };
  const Rounds probes = team_rounds(1, 100, 0, probe);
  return std::max<std::int64_t>(1, std::llround(kSeconds / probes.quick() * kProbe));
}

DotPeak measure_dot_peak(const DotInstruction& instruction, int threads, double seconds) {
  constexpr std::size_t kRounds = 100;
  const std::int64_t iterations = iterations_of_a_round(instruction);
  const Rounds rounds = team_rounds(threads, kRounds, seconds, [&](std::size_t, std::size_t) {
    dot_result = instruction.loop(iterations);
  });
  const double flops = instruction.flops_per_iteration * static_cast<double>(iterations) * rounds.team;
  return {.instruction = instruction.name,
          .instruction_set = instruction.instruction_set,
          .bf16_only = instruction.bf16_only,
          .gflops = flops / rounds.quick() * 1e-9};
}

/// The instruction sets of the `cpu` backend, best first.
constexpr std::array<std::string_view, 5> kInstructionSets = {"amx_bf16", "avx512_bf16", "avx512", "avx2",
                                                              "portable"};

/// Whether a kernel of that instruction set may use what `of` has.
bool includes(std::string_view instruction_set, std::string_view of) {
  return std::find(kInstructionSets.begin(), kInstructionSets.end(), instruction_set) <=
         std::find(kInstructionSets.begin(), kInstructionSets.end(), of);
}

}  // namespace

std::vector<DotPeak> measure_dot_peaks(int threads, std::string_view instruction_set, double seconds) {
  std::vector<DotPeak> peaks;
  for (const DotInstruction& instruction : dot_instructions()) {
    peaks.push_back(measure_dot_peak(instruction, threads, seconds));
    // What follows are narrower vectors of the same numbers.
    if (!instruction.bf16_only && includes(instruction_set, instruction.instruction_set)) break;
  }
  return peaks;
}

const DotPeak& fastest_dot(const std::vector<DotPeak>& peaks, std::string_view instruction_set, bool bf16) {
  const DotPeak* fastest = &peaks.back();
  for (const DotPeak& peak : peaks) {
    const bool usable = includes(instruction_set, peak.instruction_set) && (bf16 || !peak.bf16_only);
    if (usable && peak.gflops > fastest->gflops) fastest = &peak;
  }
  return *fastest;
}

std::size_t read_buffer_bytes(const Machine& machine) {
  constexpr std::uint64_t kWanted = std::uint64_t{1} << 30;
  return static_cast<std::size_t>(
      std::min(std::max(kWanted, 2 * machine.last_level_cache_bytes), machine.memory_bytes / 4));
}

double measure_read_rate(int threads, std::size_t bytes, double seconds) {
  constexpr std::size_t kPasses = 4;
  constexpr std::size_t kPiece = std::size_t{2} << 20;  // words, 16 MiB: a round of a millisecond or two
  constexpr std::size_t kChunk = 4096;                  // words; a multiple of what any loop reads at once
  const ReadLoop read = read_loop();
  const std::size_t share = std::max<std::size_t>(1, kPiece / kChunk / threads) * kChunk;
  const std::size_t piece = share * threads;
  const std::size_t pieces = std::max<std::size_t>(1, bytes / sizeof(std::uint64_t) / piece);
  const auto words = std::make_unique_for_overwrite<std::uint64_t[]>(piece * pieces);
  const auto share_of = [&](std::size_t thread, std::size_t round) {
    return words.get() + round % pieces * piece + thread * share;
  };
  // Each thread touches first what it reads later, so that the pages are in its memory.
  team_rounds(threads, pieces, 0,
              [&](std::size_t thread, std::size_t round) { std::fill_n(share_of(thread, round), share, 1); });
  const Rounds rounds =
      team_rounds(threads, kPasses * pieces, seconds, [&](std::size_t thread, std::size_t round) {
        const std::uint64_t* begin = share_of(thread, round);
        read_result = read(begin, begin + share);
      });
  return static_cast<double>(share * sizeof(std::uint64_t)) * rounds.team / rounds.quick() * 1e-9;
}

Ceilings measure_ceilings(int threads, const Machine& machine, double seconds) {
  constexpr double kMostDot = 0.3;
  constexpr double kMostRead = 0.7;
  return {.dots = measure_dot_peaks(threads, machine.cpu_instruction_set, std::min(seconds, kMostDot)),
          .read_gbs = measure_read_rate(threads, read_buffer_bytes(machine), std::min(seconds, kMostRead))};
}

void raise(Ceilings& ceilings, const Ceilings& again) {
  for (std::size_t i = 0; i < ceilings.dots.size(); ++i) {
    ceilings.dots[i].gflops = std::max(ceilings.dots[i].gflops, again.dots.at(i).gflops);
  }
  ceilings.read_gbs = std::max(ceilings.read_gbs, again.read_gbs);
}

}  // namespace flashmla::cli
