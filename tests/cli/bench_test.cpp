// flashmla bench.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cli/machine.h"
#include "cli/work.h"
#include "command.h"

namespace flashmla::test {
namespace {

using Json = nlohmann::json;

/// Small shapes, so that the test measures the command and not the kernels.
std::vector<std::string> small_shape(const std::string& operation) {
  if (operation == "make_schedule") return {"--batch", "3"};
  if (operation == "sparse_prefill") return {"--s-q", "3", "--heads", "4", "--seqlen", "200", "--topk", "64"};
  if (operation == "sparse_decode") return {"--heads", "4", "--seqlen", "200", "--topk", "64"};
  if (operation == "merge_states") return {"--batch", "3", "--heads", "4"};
  if (operation == "append_kv") return {"--batch", "2", "--s-q", "5", "--seqlen", "64"};
  if (operation == "quantize_kv" || operation == "dequantize_kv") return {"--batch", "2", "--seqlen", "64"};
  return {"--batch", "2", "--heads", "4", "--seqlen", "100"};
}

/// Runs bench with a JSON file and returns its content.
Json bench(std::vector<std::string> arguments, Outcome* outcome = nullptr) {
  const std::string path = fresh_folder() / "result.json";
  arguments.insert(arguments.begin(), "bench");
  arguments.insert(arguments.end(), {"--json", path, "--seconds", "0"});
  const Outcome ran = run_tool(arguments);
  EXPECT_EQ(ran.code, 0) << ran.err;
  if (outcome != nullptr) *outcome = ran;
  return Json::parse(read_bytes(path));
}

class BenchEachOperation : public testing::TestWithParam<std::string> {};

TEST_P(BenchEachOperation, ReportsRatesAndFractionsOfTheCeilings) {
  std::vector<std::string> arguments = {GetParam()};
  for (const std::string& word : small_shape(GetParam())) arguments.push_back(word);
  Outcome outcome;
  const Json json = bench(arguments, &outcome);
  const double dot_gflops = json.at("ceilings").at("dot_gflops");
  const double read_gbs = json.at("ceilings").at("read_gbs");
  EXPECT_GT(dot_gflops, 0);
  EXPECT_GT(read_gbs, 0);
  EXPECT_FALSE(json.at("ceilings").at("dot_instruction").get<std::string>().empty());
  ASSERT_EQ(json.at("results").size(), 1U);

  const Json& result = json.at("results").at(0);
  EXPECT_EQ(result.at("operation"), GetParam());
  EXPECT_EQ(result.at("checked"), "all");
  const Json& seconds = result.at("seconds");
  EXPECT_LE(seconds.at("min"), seconds.at("median"));
  EXPECT_LE(seconds.at("median"), seconds.at("max"));
  EXPECT_GE(seconds.at("runs"), 10);
  EXPECT_GT(result.at("gbs"), 0);
  const double of_peak = result.at("fraction_of_peak");
  const double of_read = result.at("fraction_of_read_rate");
  EXPECT_NEAR(of_peak, result.at("gflops").get<double>() / dot_gflops, 1e-9);
  EXPECT_NEAR(of_read, result.at("gbs").get<double>() / read_gbs, 1e-9);
  EXPECT_DOUBLE_EQ(result.at("fraction_of_roof"), std::max(of_peak, of_read));
  for (const char* title : {"median ms", "runs", "GB/s", "of peak", "of read", "of roof", "checked"}) {
    EXPECT_NE(outcome.out.find(title), std::string::npos) << outcome.out;
  }
}

INSTANTIATE_TEST_SUITE_P(All, BenchEachOperation,
                         testing::Values("dense_decode", "sparse_decode", "sparse_prefill", "mha_forward",
                                         "mha_backward", "quantize_kv", "dequantize_kv", "append_kv",
                                         "merge_states", "make_schedule"),
                         [](const auto& parameter) { return parameter.param; });

TEST(Bench, ListsMakeOneCaseForEachCombination) {
  Outcome outcome;
  const Json json =
      bench({"dense_decode", "--heads", "2", "--seqlen", "50,100", "--batch", "1,2,3"}, &outcome);
  ASSERT_EQ(json.at("results").size(), 6U);
  EXPECT_EQ(json.at("results").at(0).at("shape").at("batch"), 1);
  EXPECT_EQ(json.at("results").at(1).at("shape").at("seqlen"), 100);
  EXPECT_EQ(json.at("results").at(5).at("shape").at("batch"), 3);
  EXPECT_NE(outcome.err.find("8/8"), std::string::npos) << outcome.err;  // the ceilings are two of them
}

// 2 * heads * seqlen * (576 + 512) operations, and 1152 bytes a token.
TEST(Bench, CountsOperationsAndBytesOfTheCache) {
  const Json json = bench({"dense_decode", "--heads", "3", "--seqlen", "200"});
  const Json& result = json.at("results").at(0);
  const double median = result.at("seconds").at("median");
  EXPECT_NEAR(result.at("gflops").get<double>() * median * 1e9, 2.0 * 3 * 200 * 1088, 1);
  EXPECT_NEAR(result.at("gbs").get<double>() * median * 1e9, 200.0 * 1152, 1);
}

// Row i of 100 sees i + 1 keys: 5050 pairs instead of 10000.
TEST(Bench, MaskedPairsDoNotCount) {
  const Json json = bench(
      {"mha_forward", "--batch", "1", "--heads", "2", "--seqlen", "100", "--causal", "--backend", "cpu"});
  const Json& result = json.at("results").at(0);
  EXPECT_NEAR(result.at("gflops").get<double>() * result.at("seconds").at("median").get<double>() * 1e9,
              2.0 * 2 * 5050 * (192 + 128), 1);
}

TEST(Bench, SaysWhatFitsIntoTheCache) {
  cli::Machine machine;
  EXPECT_FALSE(cli::fits_in_cache({.bytes = 0}, machine));  // unknown
  machine.last_level_cache_bytes = 1000;
  EXPECT_TRUE(cli::fits_in_cache({.bytes = 999}, machine));
  EXPECT_FALSE(cli::fits_in_cache({.bytes = 1000}, machine));

  const bool fits = cli::this_machine().last_level_cache_bytes > 100 * 1152;  // bytes of a token
  Outcome outcome;
  const Json json = bench({"dense_decode", "--heads", "1", "--seqlen", "100"}, &outcome);
  EXPECT_EQ(json.at("results").at(0).at("in_cache"), fits);
  EXPECT_EQ(outcome.out.find("in cache") != std::string::npos, fits) << outcome.out;
}

TEST(Bench, TheBackendIsTheOneAskedFor) {
  const Json json = bench({"dense_decode", "--heads", "2", "--seqlen", "50", "--backend", "reference"});
  EXPECT_EQ(json.at("results").at(0).at("backend"), "reference");
  EXPECT_EQ(json.at("results").at(0).at("checked"), "is the reference");
}

}  // namespace
}  // namespace flashmla::test
