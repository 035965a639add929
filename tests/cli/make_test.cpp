// flashmla make.
#include <gtest/gtest.h>

#include <cmath>

#include "cases/case.h"
#include "command.h"

namespace flashmla::test {
namespace {

class MakeEachOperation : public testing::TestWithParam<std::string> {};

TEST_P(MakeEachOperation, MakesACaseThatPassesCheck) {
  const std::string path = fresh_folder() / "case.safetensors";
  const Outcome made = run_tool({"make", GetParam(), "-o", path, "--seed", "11"});
  EXPECT_EQ(made.code, 0) << made.err;
  const Outcome checked = run_tool({"check", path, "--backend", "all"});
  EXPECT_EQ(checked.code, 0) << checked.out << checked.err;
  EXPECT_NE(checked.out.find("file"), std::string::npos) << checked.out;
}

INSTANTIATE_TEST_SUITE_P(All, MakeEachOperation, testing::ValuesIn(operations()),
                         [](const auto& parameter) { return parameter.param; });

TEST(Make, TheSeedDecidesTheBytes) {
  const std::filesystem::path folder = fresh_folder();
  for (const auto& [name, seed] : {std::pair{"a", "5"}, {"b", "5"}, {"c", "6"}}) {
    ASSERT_EQ(run_tool({"make", "dense_decode", "--no-expected", "--seed", seed, "-o", folder / name}).code,
              0);
  }
  EXPECT_EQ(read_bytes(folder / "a"), read_bytes(folder / "b"));
  EXPECT_NE(read_bytes(folder / "a"), read_bytes(folder / "c"));
}

TEST(Make, NoExpectedLeavesOutTheOutputs) {
  const std::filesystem::path folder = fresh_folder();
  ASSERT_EQ(run_tool({"make", "sparse_prefill", "-o", folder / "with"}).code, 0);
  ASSERT_EQ(run_tool({"make", "sparse_prefill", "-o", folder / "without", "--no-expected"}).code, 0);
  for (const char* output : {"out", "lse", "max_logits"}) {
    EXPECT_TRUE(cases::read_case(folder / "with").tensors.contains(output)) << output;
    EXPECT_FALSE(cases::read_case(folder / "without").tensors.contains(output)) << output;
  }
}

TEST(Make, ShapeFlagsDecideTheShape) {
  const std::string path = fresh_folder() / "case";
  const Outcome outcome = run_tool({"make",
                                    "sparse_decode",
                                    "--batch",
                                    "3",
                                    "--s-q",
                                    "2",
                                    "--heads",
                                    "5",
                                    "--topk",
                                    "70",
                                    "--extra-topk",
                                    "9",
                                    "--page",
                                    "7",
                                    "--seqlen",
                                    "100",
                                    "--format",
                                    "fp8_model1",
                                    "--sink",
                                    "-o",
                                    path});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const cases::Case what = cases::read_case(path);
  using Numbers = std::vector<std::int64_t>;
  EXPECT_EQ(what.tensors.at("q").shape(), (Numbers{3, 2, 5, 512}));
  EXPECT_EQ(what.tensors.at("kv_cache").shape(), (Numbers{45, 7, 1, 584}));
  EXPECT_EQ(what.tensors.at("indices").shape(), (Numbers{3, 2, 70}));
  EXPECT_EQ(what.tensors.at("extra_indices").shape(), (Numbers{3, 2, 9}));
  EXPECT_EQ(what.tensors.at("attn_sink").shape(), (Numbers{5}));
}

TEST(Make, MemoryThatMustNotBeReadIsNan) {
  const std::string path = fresh_folder() / "case";
  ASSERT_EQ(
      run_tool({"make", "dense_decode", "--batch", "1", "--seqlen", "10", "--page", "64", "-o", path}).code,
      0);
  const cases::Case what = cases::read_case(path);
  const auto block = static_cast<std::int64_t>(what.tensors.at("block_table").at({0, 0}));
  EXPECT_FALSE(std::isnan(what.tensors.at("kv_cache").at({block, 9, 0, 0})));
  EXPECT_TRUE(std::isnan(what.tensors.at("kv_cache").at({block, 10, 0, 0})));
}

}  // namespace
}  // namespace flashmla::test
