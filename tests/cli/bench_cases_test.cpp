// flashmla bench --cases: what it measures, and what it says about a wrong file.
#include "cli/bench_cases.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "command.h"
#include "flashmla/error.h"

namespace flashmla::test {
namespace {

using Json = nlohmann::json;

std::string file_of(const std::string& text) {
  const std::string path = fresh_folder() / "cases.json";
  write_bytes(path, text);
  return path;
}

/// What the tool says about a file: exit code 2 and one sentence.
std::string refusal(const std::string& text) {
  const Outcome outcome = run_tool({"bench", "--cases", file_of(text)});
  EXPECT_EQ(outcome.code, 2) << outcome.out << outcome.err;
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  return outcome.err;
}

void expect_refused(const std::string& text, const std::string& expected) {
  EXPECT_NE(refusal(text).find("cases.json: " + expected), std::string::npos) << refusal(text);
}

TEST(BenchCases, AreMeasuredInSectionsAgainstTheCeilingsOfTheirThreads) {
  const std::string cases = file_of(R"([
    {"section": "sweep", "operation": "dense_decode", "heads": [2, 3], "seqlen": 50, "name": "few"},
    {"section": "other", "operation": "sparse_decode", "heads": 2, "seqlen": 64, "topk": 8, "threads": 1},
    {"section": "sweep", "operation": "dense_decode", "heads": 4, "seqlen": 50, "format": "f16"}])");
  const std::string path = std::filesystem::path(cases).parent_path() / "result.json";
  const Outcome outcome = run_tool(
      {"bench", "--cases", cases, "--json", path, "--seconds", "0", "--threads", "2", "--backend", "cpu"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json json = Json::parse(read_bytes(path));
  const Json& results = json.at("results");
  ASSERT_EQ(results.size(), 4U);
  EXPECT_EQ(results[1].at("section"), "sweep");
  EXPECT_EQ(results[1].at("name"), "few");
  EXPECT_EQ(results[1].at("swept"), Json({"heads"}));
  EXPECT_EQ(results[1].at("shape").at("heads"), 3);
  EXPECT_EQ(results[1].at("threads"), 2);
  EXPECT_EQ(results[2].at("threads"), 1);
  EXPECT_EQ(results[2].at("swept"), Json::array());
  EXPECT_EQ(results[3].at("name"), "heads=4 seqlen=50 format=f16");

  for (const Json& result : results) {
    EXPECT_EQ(result.at("checked"), "all");
    const Json& measured = json.at("ceilings").at("measured").at(result.at("threads") == 1 ? 0 : 1);
    EXPECT_EQ(measured.at("threads"), result.at("threads"));
    EXPECT_EQ(measured.at("read_gbs"), result.at("read_gbs"));
    EXPECT_NEAR(result.at("fraction_of_peak").get<double>(),
                result.at("gflops").get<double>() / result.at("dot_gflops").get<double>(), 1e-9);
    const bool known =
        std::any_of(measured.at("dot").begin(), measured.at("dot").end(), [&](const Json& dot) {
          return dot.at("instruction") == result.at("dot_instruction") &&
                 dot.at("gflops") == result.at("dot_gflops");
        });
    EXPECT_TRUE(known) << result;
  }

  const auto place = [&](const char* text) { return outcome.out.find(text); };
  EXPECT_LT(place("few heads=2"), place("few heads=3")) << outcome.out;
  EXPECT_LT(place("few heads=3"), place("heads=4 seqlen=50 format=f16")) << outcome.out;
  EXPECT_LT(place("heads=4 seqlen=50 format=f16"), place("\nother\n")) << outcome.out;
  EXPECT_LT(place("\nother\n"), place("heads=2 seqlen=64 topk=8")) << outcome.out;
  EXPECT_NE(place("heads=2 seqlen=64 topk=8"), std::string::npos) << outcome.out;
}

TEST(BenchCases, ASwitchThatIsOffIsTheDefault) {
  const auto cases = cli::read_bench_cases(file_of(
      R"([{"operation": "mha_forward", "causal": false}, {"operation": "mha_forward", "causal": true}])"));
  ASSERT_EQ(cases.size(), 2U);
  EXPECT_FALSE(cases[0].shape.causal);
  EXPECT_TRUE(cases[1].shape.causal);
}

TEST(BenchCases, ListsMakeOneCaseForEachCombination) {
  const auto cases = cli::read_bench_cases(file_of(
      R"([{"operation": "dense_decode", "heads": [1, 2, 3], "format": ["bf16", "f16"], "page": [64]}])"));
  ASSERT_EQ(cases.size(), 6U);
  EXPECT_EQ(cases[3].shape.heads, 2);
  EXPECT_EQ(cases[3].shape.format, KvFormat::kF16);
  EXPECT_EQ(cli::swept_values(cases[3]), "heads=2 format=f16");
}

TEST(BenchCases, NoJson) {
  expect_refused("", "not JSON");
  expect_refused("[{\"operation\": ", "not JSON, from byte 16 on");
  expect_refused("\xff", "not JSON");
}

TEST(BenchCases, NoListOfCases) {
  expect_refused("{}", "must be a list of cases");
  expect_refused("[]", "must be a list of cases");
  expect_refused("7", "must be a list of cases");
}

TEST(BenchCases, AnEntryThatIsNoObject) {
  expect_refused(R"([{"operation": "dense_decode"}, 3])", "case 2: must be an object, got 3");
}

TEST(BenchCases, UnknownOperation) {
  expect_refused(R"([{"operation": "dense", "name": "mine"}])",
                 "case 1 (mine): operation must be one of dense_decode, sparse_decode");
  expect_refused(R"([{"heads": 4}])", "case 1: operation must be one of");
  expect_refused(R"([{"operation": 4}])", "case 1: operation must be a text, got 4");
  expect_refused(R"([{"operation": "mha"}])", "case 1: operation must be one of");
}

TEST(BenchCases, UnknownKey) {
  expect_refused(R"([{"operation": "dense_decode", "head": 4}])",
                 "case 1: dense_decode has no \"head\"; it has operation, name, section, threads, batch");
  expect_refused(R"([{"operation": "dense_decode", "topk": 4}])", "case 1: dense_decode has no \"topk\"");
  expect_refused(R"([{"operation": "dense_decode", "s-q": 4}])", "case 1: dense_decode has no \"s-q\"");
}

TEST(BenchCases, WrongType) {
  const auto refused = [](const std::string& member, const std::string& text) {
    expect_refused("[{\"operation\": \"sparse_decode\", " + member + "}]", "case 1: " + text);
  };
  refused(R"("heads": "128")", "heads must be a whole number, or a list of them, got \"128\"");
  refused(R"("heads": 1.5)", "heads must be a whole number");
  refused(R"("heads": [1, "2"])", "heads must be a whole number, or a list of them, got [1,\"2\"]");
  refused(R"("heads": [])", "heads must be a whole number, or a list of them, got []");
  refused(R"("heads": null)", "heads must be a whole number");
  refused(R"("invalid": true)", "invalid must be a number");
  refused(R"("sink": 1)", "sink must be true or false, got 1");
  refused(R"("sink": [true])", "sink must be true or false");
  refused(R"("format": 8)", "format must be the name of a format");
  refused(R"("format": "bf16,fp8_v32")", "format must be the name of a format");
}

TEST(BenchCases, ValuesOutsideTheirRange) {
  const auto refused = [](const std::string& member, const std::string& text) {
    expect_refused("[{\"operation\": \"sparse_decode\", " + member + "}]", "case 1: " + text);
  };
  refused(R"("heads": 0)", "--heads must be a whole number from 1");
  refused(R"("heads": -4)", "--heads must be a whole number from 1");
  refused(R"("invalid": 2)", "--invalid must be a number from 0 to 1");
  refused(R"("format": "fp4")", "--format must be bf16");
  refused(R"("threads": 0)", "threads must be a whole number from 1 to 1024, got 0");
  refused(R"("threads": 1e9)", "threads must be a whole number from 1 to 1024");
  refused(R"("threads": 99999999999999)", "threads must be a whole number from 1 to 1024");
  refused(R"("name": "")", "name must be a text");
  refused(R"("section": ["a"])", "section must be a text");
}

// No kernel takes 3 heads on 2 kv heads; nothing is measured before that is known.
TEST(BenchCases, ACaseThatNoKernelTakesIsRefusedBeforeAnythingIsMeasured) {
  expect_refused(
      R"([{"operation": "dense_decode", "heads": 4},
          {"operation": "dense_decode", "heads": 3, "kv_heads": 2, "name": "odd"}])",
      "case 2 (odd): dense_decode: ");
}

TEST(BenchCases, AFileThatIsMissingOrNoFile) {
  EXPECT_NE(run_tool({"bench", "--cases", "nowhere.json"}).err.find("nowhere.json: cannot be opened"),
            std::string::npos);
  EXPECT_NE(run_tool({"bench", "--cases", FLASHMLA_GOLDEN_DIR}).err.find("not a regular file"),
            std::string::npos);
}

TEST(BenchCases, AreNotMixedWithFlags) {
  const std::string path = file_of(R"([{"operation": "dense_decode"}])");
  const Outcome operation = run_tool({"bench", "dense_decode", "--cases", path});
  EXPECT_EQ(operation.code, 2);
  EXPECT_NE(operation.err.find("bench takes OP or --cases"), std::string::npos) << operation.err;
  const Outcome shape = run_tool({"bench", "--cases", path, "--heads", "4"});
  EXPECT_EQ(shape.code, 2);
  EXPECT_NE(shape.err.find("got --heads"), std::string::npos) << shape.err;
}

}  // namespace
}  // namespace flashmla::test
