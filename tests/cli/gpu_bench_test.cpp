// flashmla bench on a GPU: what it can be asked without one, and on one the whole command.
#include <gtest/gtest.h>

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "../cuda/gpus.h"
#include "cli/bench_cases.h"
#include "cli/gpu_measurement.h"
#include "cli/gpu_report.h"
#include "command.h"
#include "cuda/device.h"

namespace flashmla::test {
namespace {

using Json = nlohmann::ordered_json;

TEST(GpuBench, TakesMoreSetsOfTensorsThanTheCacheHoldsTwice) {
  constexpr std::size_t kL2 = 60'000'000;
  for (const std::size_t bytes : {1'000'000, 5'000'000, 59'999'999, 60'000'000, 119'999'999}) {
    const auto copies = static_cast<std::size_t>(cli::copies_needed(bytes, kL2));
    EXPECT_GT(copies * bytes, 2 * kL2) << bytes;
    EXPECT_LE((copies - 1) * bytes, 2 * kL2) << bytes;
  }
  EXPECT_EQ(cli::copies_needed(130'000'000, kL2), 1);
  EXPECT_LE(cli::copies_needed(1, kL2), 1000) << "tensors of a few bytes must not take forever to copy";
  EXPECT_GE(cli::copies_needed(0, 0), 1);
}

/// 2 TFLOP and 4 GB in 10 ms.
cli::GpuMeasurement measured() {
  cli::GpuMeasurement result;
  result.what.operation = "dense_decode";
  result.what.name = "a case";
  result.kernel = {.operation = "dense_decode",
                   .backend = "portable",
                   .name = "portable/mma_sync",
                   .available = true,
                   .reason = ""};
  result.checked = "all";
  result.graph = {.median = 0.01, .min = 0.009, .max = 0.02, .runs = 20};
  result.eager = {.median = 0.011, .min = 0.01, .max = 0.02, .runs = 20};
  result.work = {.flops = 2e12, .bytes = 4e9};
  return result;
}

TEST(GpuBench, ComparesRatesWithBothCeilings) {
  const cli::GpuCeilings ceilings{.copy_gbs = 4000, .mma_tflops = 500, .mma_peak_tflops = 600};
  const cli::GpuRoof roof = cli::roof_of(measured(), ceilings);
  EXPECT_DOUBLE_EQ(roof.of_copy, 0.1);
  EXPECT_DOUBLE_EQ(roof.of_product, 0.4);
  EXPECT_DOUBLE_EQ(roof.of_roof(), 0.4);
}

TEST(GpuBench, KeepsTheHigherOfTwoCeilings) {
  cli::GpuCeilings ceilings{.copy_gbs = 4000, .mma_tflops = 500, .mma_peak_tflops = 600};
  cli::raise(ceilings, {.copy_gbs = 3900, .mma_tflops = 510, .mma_peak_tflops = 590});
  EXPECT_EQ(ceilings.copy_gbs, 4000);
  EXPECT_EQ(ceilings.mma_tflops, 510);
  EXPECT_EQ(ceilings.mma_peak_tflops, 600);
}

TEST(GpuBench, WritesWhatTheTableSays) {
  cli::GpuReport report;
  report.gpu = {{"name", "a GPU"}};
  report.ceilings = {.copy_gbs = 4000, .mma_tflops = 500, .mma_peak_tflops = 600};
  report.results = {measured()};
  const Json json = cli::to_json(report);
  EXPECT_EQ(json.at("gpu").at("name"), "a GPU");
  EXPECT_TRUE(json.contains("commit"));
  EXPECT_EQ(json.at("ceilings").at("copy_gbs"), 4000);
  EXPECT_EQ(json.at("ceilings").at("mma_product_tflops"), 500);
  const Json& result = json.at("results").at(0);
  EXPECT_DOUBLE_EQ(result.at("tflops"), 200);
  EXPECT_DOUBLE_EQ(result.at("gbs"), 400);
  EXPECT_DOUBLE_EQ(result.at("fraction_of_roof"), 0.4);
  EXPECT_EQ(result.at("seconds").at("runs"), 20);
  EXPECT_FALSE(result.contains("unscheduled_seconds")) << "it was not measured";
}

TEST(GpuBench, HasATableOfCases) {
  const auto cases = cli::read_bench_cases(std::string(FLASHMLA_BENCH_DIR) + "/gpu.json");
  EXPECT_GE(cases.size(), 14U);
  for (const cli::BenchCase& what : cases) {
    EXPECT_FALSE(what.name.empty());
    EXPECT_EQ(what.threads, 0) << what.name;
  }
}

class OnGpus : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(, OnGpus, testing::ValuesIn(gpus()));
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(OnGpus);

TEST_P(OnGpus, BenchMeasuresASmallCase) {
  const std::string path = fresh_folder() / "result.json";
  const Outcome outcome = run_tool({"bench", "dense_decode", "--batch", "2", "--heads", "16", "--seqlen",
                                    "200,300", "--seconds", "0", "--backend", "portable", "--device",
                                    "cuda:" + std::to_string(GetParam()), "--json", path});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json json = Json::parse(read_bytes(path));
  EXPECT_EQ(json.at("gpu").at("name"), cuda::device_properties(GetParam()).name);
  const Json& ceilings = json.at("ceilings");
  EXPECT_GT(ceilings.at("copy_gbs"), 0);
  EXPECT_GT(ceilings.at("mma_product_tflops"), 0);
  EXPECT_GT(ceilings.at("mma_registers_tflops"), ceilings.at("mma_product_tflops"));
  ASSERT_EQ(json.at("results").size(), 2U);
  for (const Json& result : json.at("results")) {
    EXPECT_EQ(result.at("backend"), "portable");
    EXPECT_EQ(result.at("checked"), "all");
    EXPECT_GE(result.at("seconds").at("runs"), 20);
    EXPECT_GE(result.at("unscheduled_seconds").at("runs"), 20);
    EXPECT_LT(result.at("fraction_of_roof"), 1.0);
  }
}

TEST_P(OnGpus, CheckComparesAGoldenCase) {
  const Outcome outcome = run_tool({"check", golden("dense_decode_split"), "--backend", "portable"});
  EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  EXPECT_NE(outcome.out.find("portable"), std::string::npos);
}

}  // namespace
}  // namespace flashmla::test
