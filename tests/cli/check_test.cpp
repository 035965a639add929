// flashmla check.
#include <gtest/gtest.h>

#include "cases/case.h"
#include "command.h"

namespace flashmla::test {
namespace {

TEST(Check, GoldenCasesPassOnEveryBackend) {
  std::vector<std::string> arguments = {"check", "--backend", "all"};
  for (const auto& file : std::filesystem::directory_iterator(FLASHMLA_GOLDEN_DIR)) {
    arguments.push_back(file.path());
  }
  ASSERT_EQ(arguments.size(), 3U + 14U);
  const Outcome outcome = run_tool(arguments);
  EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  EXPECT_EQ(outcome.out.find("FAILED"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("cpu"), std::string::npos);
  EXPECT_NE(outcome.out.find("reference"), std::string::npos);
}

TEST(Check, FailsAndSaysWhereIfAnExpectedOutputWasAltered) {
  cases::Case what = cases::read_case(golden("dense_decode_two_kv_heads"));
  const cases::Tensor& out = what.tensors.at("out");
  what.tensors.at("out").set({1, 2, 5, 300}, out.at({1, 2, 5, 300}) + 0.5);
  const std::string path = fresh_folder() / "altered.safetensors";
  cases::write_case(path, what);
  const Outcome outcome = run_tool({"check", path});
  EXPECT_EQ(outcome.code, 1) << outcome.err;
  EXPECT_NE(outcome.out.find("[1, 2, 5, 300]"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("FAILED"), std::string::npos) << outcome.out;
}

TEST(Check, FailsIfAByteOfAnExpectedCacheWasAltered) {
  cases::Case what = cases::read_case(golden("quantize_v32"));
  cases::Tensor& cache = what.tensors.at("kv_cache");
  cache.set({1, 63, 0, 100}, static_cast<int>(cache.at({1, 63, 0, 100})) ^ 1);
  const std::string path = fresh_folder() / "altered.safetensors";
  cases::write_case(path, what);
  EXPECT_EQ(run_tool({"check", path, "--backend", "reference"}).code, 1);
}

TEST(Check, FailsIfOneOfSeveralCasesFails) {
  cases::Case what = cases::read_case(golden("mha_128_128_gqa"));
  what.tensors.at("lse").set({0, 0}, 1e6);
  const std::string path = fresh_folder() / "altered.safetensors";
  cases::write_case(path, what);
  EXPECT_EQ(run_tool({"check", path, golden("mha_128_128_gqa")}).code, 1);
  EXPECT_EQ(run_tool({"check", golden("mha_128_128_gqa"), path}).code, 1);
}

TEST(Check, ACaseWithoutExpectedOutputsIsComparedWithTheReference) {
  const std::string path = fresh_folder() / "case.safetensors";
  ASSERT_EQ(run_tool({"make", "merge_states", "--no-expected", "-o", path}).code, 0);
  const Outcome outcome = run_tool({"check", path, "--backend", "cpu"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("2 of 2 comparisons passed"), std::string::npos) << outcome.out;
}

TEST(Check, ComparingNothingIsAnError) {
  const std::string path = fresh_folder() / "case.safetensors";
  ASSERT_EQ(run_tool({"make", "merge_states", "--no-expected", "-o", path}).code, 0);
  const Outcome outcome = run_tool({"check", path, "--backend", "reference"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.err.find("nothing to compare with"), std::string::npos) << outcome.err;
}

}  // namespace
}  // namespace flashmla::test
