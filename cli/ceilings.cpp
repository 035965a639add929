// The two ceilings of this machine that every measured rate is compared with.
#include "cli/ceilings.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace flashmla::cli {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Where results go so that no loop is optimized away.
std::atomic<float> dot_result;
std::atomic<std::uint64_t> read_result;

/// Runs a loop that many times on the calling thread; the result means nothing.
using DotLoop = float (*)(std::int64_t iterations);

/// Sums a range of words, in vectors; the result means nothing.
using ReadLoop = std::uint64_t (*)(const std::uint64_t* begin, const std::uint64_t* end);

/// A way of this processor to multiply and add, and to read.
struct Vectors {
  const char* instruction;
  double flops_per_iteration;
  DotLoop dot;
  ReadLoop read;
};

// Enough independent chains to hide the latency of two units, few enough for the registers.
constexpr int kWideChains = 24;    // of 32 registers
constexpr int kNarrowChains = 12;  // of 16 registers

using Floats = float __attribute__((vector_size(16)));
using Words = std::uint64_t __attribute__((vector_size(16)));

// In all of these loops the chains begin with different values, or the compiler would see that they are one.
// Where the multiplication is an instruction of its own to the compiler, the running value is a factor: the
// product of two constants would be taken out of the loop.
float dot_portable(std::int64_t iterations) {
  Floats sums[kNarrowChains];
  for (int i = 0; i < kNarrowChains; ++i) sums[i] = Floats{} + static_cast<float>(i);
  const Floats factor = {0.5F, 0.25F, 0.125F, 0.5F};
  const Floats term = {1, 2, 3, 4};
  for (std::int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (Floats& sum : sums) sum = sum * factor + term;
  }
  for (int i = 1; i < kNarrowChains; ++i) sums[0] += sums[i];
  return sums[0][0];
}

std::uint64_t read_portable(const std::uint64_t* begin, const std::uint64_t* end) {
  Words sums[4] = {};
  for (const std::uint64_t* word = begin; word < end; word += 8) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums[i] += *reinterpret_cast<const Words*>(word + 2 * i);
  }
  const Words sum = sums[0] + sums[1] + sums[2] + sums[3];
  return sum[0] + sum[1];
}

constexpr Vectors kPortable = {"128-bit multiply and add", kNarrowChains * 4 * 2, dot_portable,
                               read_portable};

#if defined(__x86_64__)

__attribute__((target("avx2,fma"))) float dot_avx2(std::int64_t iterations) {
  __m256 sums[kNarrowChains];
  for (int i = 0; i < kNarrowChains; ++i) sums[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 factor = _mm256_set1_ps(0.5F);
  const __m256 term = _mm256_set1_ps(3);
  for (std::int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(sum, factor, term);
  }
  for (int i = 1; i < kNarrowChains; ++i) sums[0] = _mm256_add_ps(sums[0], sums[i]);
  return sums[0][0];
}

__attribute__((target("avx2"))) std::uint64_t read_avx2(const std::uint64_t* begin,
                                                        const std::uint64_t* end) {
  __m256i sums[2] = {};
  for (const std::uint64_t* word = begin; word < end; word += 8) {
    sums[0] = _mm256_add_epi64(sums[0], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(word)));
    sums[1] = _mm256_add_epi64(sums[1], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(word + 4)));
  }
  return static_cast<std::uint64_t>(_mm256_add_epi64(sums[0], sums[1])[0]);
}

__attribute__((target("avx512f"))) float dot_avx512(std::int64_t iterations) {
  __m512 sums[kWideChains];
  for (int i = 0; i < kWideChains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 factor = _mm512_set1_ps(0.5F);
  const __m512 term = _mm512_set1_ps(3);
  for (std::int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 24
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(sum, factor, term);
  }
  for (int i = 1; i < kWideChains; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  return sums[0][0];
}

__attribute__((target("avx512f,avx512bf16,avx512bw,avx512vl"))) float dot_avx512_bf16(
    std::int64_t iterations) {
  __m512 sums[kWideChains];
  for (int i = 0; i < kWideChains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  const auto a = (__m512bh)_mm512_set1_epi16(0x3f80);  // 1.0
  const auto b = (__m512bh)_mm512_set1_epi16(0x3f00);  // 0.5
  for (std::int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 24
    for (__m512& sum : sums) sum = _mm512_dpbf16_ps(sum, a, b);
  }
  for (int i = 1; i < kWideChains; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  return sums[0][0];
}

__attribute__((target("avx512f"))) std::uint64_t read_avx512(const std::uint64_t* begin,
                                                             const std::uint64_t* end) {
  __m512i sums[4] = {};
  for (const std::uint64_t* word = begin; word < end; word += 32) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums[i] = _mm512_add_epi64(sums[i], _mm512_loadu_si512(word + 8 * i));
  }
  const __m512i sum =
      _mm512_add_epi64(_mm512_add_epi64(sums[0], sums[1]), _mm512_add_epi64(sums[2], sums[3]));
  return static_cast<std::uint64_t>(sum[0]);
}

/// Those of the widest vectors. Which dot product is the fastest differs: `vdpbf16ps` has half the rate of
/// f32 FMA on some processors, so that both do the same work in the same time.
std::vector<Vectors> vectors_of_this_processor() {
  if (__builtin_cpu_supports("avx512f")) {
    std::vector<Vectors> all = {{"vfmadd231ps zmm", kWideChains * 16 * 2, dot_avx512, read_avx512}};
    if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl")) {
      all.push_back({"vdpbf16ps", kWideChains * 32 * 2, dot_avx512_bf16, read_avx512});
    }
    return all;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return {{"vfmadd231ps ymm", kNarrowChains * 8 * 2, dot_avx2, read_avx2}};
  }
  return {kPortable};
}

#else

std::vector<Vectors> vectors_of_this_processor() { return {kPortable}; }

#endif

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
std::int64_t iterations_of_a_round(const Vectors& vectors) {
  constexpr double kSeconds = 0.3e-3;
  constexpr std::int64_t kProbe = 4'000;
  const auto probe = [&](std::size_t, std::size_t) { dot_result = vectors.dot(kProbe); };
  const Rounds probes = team_rounds(1, 100, 0, probe);
  return std::max<std::int64_t>(1, std::llround(kSeconds / probes.quick() * kProbe));
}

}  // namespace

namespace {

DotPeak measure_dot_product(const Vectors& vectors, int threads) {
  constexpr std::size_t kRounds = 200;
  constexpr double kSeconds = 0.5;
  const std::int64_t iterations = iterations_of_a_round(vectors);
  const Rounds rounds = team_rounds(threads, kRounds, kSeconds,
                                    [&](std::size_t, std::size_t) { dot_result = vectors.dot(iterations); });
  const double flops = vectors.flops_per_iteration * static_cast<double>(iterations) * rounds.team;
  return {.gflops = flops / rounds.quick() * 1e-9, .instruction = vectors.instruction};
}

}  // namespace

DotPeak measure_dot_peak(int threads) {
  DotPeak best;
  for (const Vectors& vectors : vectors_of_this_processor()) {
    DotPeak peak = measure_dot_product(vectors, threads);
    if (peak.gflops > best.gflops) best = std::move(peak);
  }
  return best;
}

std::size_t read_buffer_bytes(const Machine& machine) {
  constexpr std::uint64_t kWanted = std::uint64_t{1} << 30;
  return static_cast<std::size_t>(
      std::min(std::max(kWanted, 2 * machine.last_level_cache_bytes), machine.memory_bytes / 4));
}

double measure_read_rate(int threads, std::size_t bytes) {
  constexpr std::size_t kPasses = 4;
  constexpr double kSeconds = 0.7;
  constexpr std::size_t kPiece = std::size_t{2} << 20;  // words, 16 MiB: a round of a millisecond or two
  constexpr std::size_t kChunk = 4096;                  // words; a multiple of what any loop reads at once
  const Vectors vectors = vectors_of_this_processor().front();
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
      team_rounds(threads, kPasses * pieces, kSeconds, [&](std::size_t thread, std::size_t round) {
        const std::uint64_t* begin = share_of(thread, round);
        read_result = vectors.read(begin, begin + share);
      });
  return static_cast<double>(share * sizeof(std::uint64_t)) * rounds.team / rounds.quick() * 1e-9;
}

}  // namespace flashmla::cli
