// The ceilings that rates are compared with.
#include "cli/ceilings.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <string>
#include <vector>

namespace flashmla::test {
namespace {

// More threads than cores take turns; each alone looks as fast as if it had a core for itself.
TEST(Ceilings, ThreadsBeyondTheCoresDoNotRaiseTheDotPeak) {
  constexpr double kSeconds = 0.3;
  const int cores = omp_get_num_procs();
  const std::vector<cli::DotPeak> crowded = cli::measure_dot_peaks(4 * cores, "portable", kSeconds);
  std::vector<cli::DotPeak> peaks = cli::measure_dot_peaks(cores, "portable", kSeconds);
  ASSERT_EQ(crowded.size(), peaks.size());
  for (std::size_t i = 0; i < peaks.size(); ++i) {
    EXPECT_EQ(crowded[i].instruction, peaks[i].instruction);
    // Other programs may keep the cores busy during one measurement, but can make none too high.
    for (int tries = 0; tries < 10 && crowded[i].gflops > 1.25 * peaks[i].gflops; ++tries) {
      peaks[i].gflops =
          std::max(peaks[i].gflops, cli::measure_dot_peaks(cores, "portable", kSeconds)[i].gflops);
    }
    EXPECT_LE(crowded[i].gflops, 1.25 * peaks[i].gflops) << peaks[i].instruction;
  }
}

std::string fastest(const std::string& instruction_set, bool bf16) {
  const std::vector<cli::DotPeak> peaks = {
      {.instruction = "tiles", .instruction_set = "amx_bf16", .bf16_only = true, .gflops = 90},
      {.instruction = "pairs", .instruction_set = "avx512_bf16", .bf16_only = true, .gflops = 10},
      {.instruction = "wide", .instruction_set = "avx512", .bf16_only = false, .gflops = 20},
      {.instruction = "half", .instruction_set = "avx2", .bf16_only = false, .gflops = 12},
      {.instruction = "least", .instruction_set = "portable", .bf16_only = false, .gflops = 5}};
  return cli::fastest_dot(peaks, instruction_set, bf16).instruction;
}

TEST(Ceilings, ThePeakIsOfWhatTheInstructionSetInUseHas) {
  EXPECT_EQ(fastest("amx_bf16", true), "tiles");
  EXPECT_EQ(fastest("avx512_bf16", true), "wide");  // pairs are slower here
  EXPECT_EQ(fastest("avx512", true), "wide");
  EXPECT_EQ(fastest("avx2", true), "half");
  EXPECT_EQ(fastest("portable", true), "least");
}

TEST(Ceilings, ThePeakOfOtherTypesThanBf16IsThatOfF32) {
  EXPECT_EQ(fastest("amx_bf16", false), "wide");
  EXPECT_EQ(fastest("avx512_bf16", false), "wide");
  EXPECT_EQ(fastest("avx2", false), "half");
}

TEST(Ceilings, TilesAreMeasuredWhereTheProcessorHasThem) {
  const std::vector<cli::DotPeak> peaks = cli::measure_dot_peaks(1, "portable", 0);
  const bool measured = peaks.front().instruction == "tdpbf16ps";
  EXPECT_EQ(measured, cli::this_machine().has_amx_bf16);
  for (const cli::DotPeak& peak : peaks) EXPECT_GT(peak.gflops, 0) << peak.instruction;
}

TEST(Ceilings, NarrowerVectorsAreMeasuredOnlyWhereTheyAreTheWidestInUse) {
  const auto f32_instructions = [](const std::string& instruction_set) {
    const std::vector<cli::DotPeak> peaks = cli::measure_dot_peaks(1, instruction_set, 0);
    return std::count_if(peaks.begin(), peaks.end(), [](const auto& peak) { return !peak.bf16_only; });
  };
  EXPECT_EQ(f32_instructions("amx_bf16"), 1);
  EXPECT_EQ(cli::measure_dot_peaks(1, "portable", 0).back().instruction_set, "portable");
}

TEST(Ceilings, MeasuringAgainKeepsTheHigherRates) {
  const auto ceilings = [](double first, double second, double read) {
    return cli::Ceilings{.dots = {{.instruction = "a", .instruction_set = {}, .gflops = first},
                                  {.instruction = "b", .instruction_set = {}, .gflops = second}},
                         .read_gbs = read};
  };
  cli::Ceilings kept = ceilings(1, 5, 3);
  cli::raise(kept, ceilings(2, 4, 2));
  EXPECT_EQ(kept.dots[0].gflops, 2);
  EXPECT_EQ(kept.dots[1].gflops, 5);
  EXPECT_EQ(kept.read_gbs, 3);
}

TEST(Ceilings, TheReadBufferIsLargerThanTheCacheWhereMemoryAllows) {
  constexpr std::uint64_t kGib = std::uint64_t{1} << 30;
  const auto buffer = [](std::uint64_t memory, std::uint64_t cache) {
    cli::Machine machine;
    machine.memory_bytes = memory;
    machine.last_level_cache_bytes = cache;
    return cli::read_buffer_bytes(machine);
  };
  EXPECT_EQ(buffer(64 * kGib, 0), kGib);
  EXPECT_EQ(buffer(64 * kGib, 2 * kGib), 4 * kGib);
  EXPECT_EQ(buffer(2 * kGib, 2 * kGib), kGib / 2);
}

TEST(Ceilings, AReadRateNeedsNoLargeBuffer) { EXPECT_GT(cli::measure_read_rate(3, 1, 0), 0); }

}  // namespace
}  // namespace flashmla::test
