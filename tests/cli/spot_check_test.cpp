// The check before a measurement: it passes on right outputs and fails on wrong ones, also where only a part
// of a case is compared.
#include "cli/spot_check.h"

#include <gtest/gtest.h>

#include "cases/random.h"
#include "cli/shape.h"
#include "command.h"

namespace flashmla::test {
namespace {

struct Problem {
  std::string name;
  std::string operation;
  cli::ShapeFlags flags;
  bool only_whole = false;  ///< has no parts

  friend std::ostream& operator<<(std::ostream& out, const Problem& problem) { return out << problem.name; }
};

const std::vector<Problem>& problems() {
  static const std::vector<Problem> all = {
      {"dense_decode", "dense_decode", {{"batch", "11"}, {"heads", "20"}, {"spread", "0.5"}}},
      {"dense_decode_kv_heads",
       "dense_decode",
       {{"heads", "20"}, {"kv-heads", "5"}, {"s-q", "3"}, {"causal", "true"}}},
      {"dense_decode_e4m3", "dense_decode", {{"batch", "11"}, {"heads", "20"}, {"format", "e4m3"}}},
      {"sparse_decode",
       "sparse_decode",
       {{"batch", "9"}, {"extra-topk", "20"}, {"sink", "true"}, {"invalid", "0.2"}}},
      {"sparse_prefill",
       "sparse_prefill",
       {{"s-q", "30"}, {"heads", "12"}, {"kv-heads", "3"}, {"sink", "true"}}},
      {"mha_forward", "mha_forward", {{"seqlen", "90"}, {"batch", "3"}, {"heads", "4"}, {"kv-heads", "2"}}},
      {"mha_forward_causal",
       "mha_forward",
       {{"seqlen", "170"}, {"s-q", "130"}, {"causal", "true"}, {"batch", "3"}}},
      {"mha_backward", "mha_backward", {{"seqlen", "90"}, {"batch", "3"}, {"heads", "4"}, {"kv-heads", "2"}}},
      {"mha_backward_causal",
       "mha_backward",
       {{"seqlen", "170"}, {"causal", "true"}, {"batch", "3"}, {"spread", "0.5"}}},
      {"quantize_kv", "quantize_kv", {{"batch", "7"}, {"format", "fp8_model1"}, {"page", "5"}}},
      {"dequantize_kv", "dequantize_kv", {{"batch", "7"}}},
      {"merge_states", "merge_states", {{"batch", "7"}}},
      {"append_kv", "append_kv", {}, true},
      {"make_schedule", "make_schedule", {}, true},
  };
  return all;
}

// So little that every problem is checked in the smallest part there is.
constexpr cli::CheckBudget kTiny = {.flops = 1, .bytes = 1};

/// A step that ran on the reference.
struct Ran {
  explicit Ran(const Problem& problem)
      : what(cli::random_case(problem.operation,
                              cli::sweep(problem.operation, problem.flags, cli::Purpose::kMake).front(),
                              cli::Purpose::kMake, 7)),
        steps(cases::prepare(what)) {
    Execution on;
    on.backend = "reference";
    steps.front().run(on);
  }

  /// Makes every element of every output wrong.
  void spoil() {
    for (auto& [name, tensor] : steps.front().outputs) {
      for (std::byte& byte : tensor.memory()) byte ^= std::byte{0x35};
    }
  }

  cases::Case what;
  std::vector<cases::Step> steps;
};

class SpotCheck : public testing::TestWithParam<Problem> {};

TEST_P(SpotCheck, PassesOnRightOutputs) {
  const Ran ran(GetParam());
  EXPECT_EQ(cli::check_against_reference(ran.what, ran.steps.front()), "all");
  const std::string part = cli::check_against_reference(ran.what, ran.steps.front(), kTiny);
  EXPECT_EQ(part == "all", GetParam().only_whole) << part;
}

TEST_P(SpotCheck, FailsOnWrongOutputs) {
  Ran ran(GetParam());
  ran.spoil();
  EXPECT_THROW(cli::check_against_reference(ran.what, ran.steps.front()), cli::Mismatch);
  EXPECT_THROW(cli::check_against_reference(ran.what, ran.steps.front(), kTiny), cli::Mismatch);
}

INSTANTIATE_TEST_SUITE_P(All, SpotCheck, testing::ValuesIn(problems()),
                         [](const auto& parameter) { return parameter.param.name; });

// Windows of a sequence shorter than one are the same, but for the head.
TEST(SpotCheck, PlacesAreCountedOnce) {
  const auto checked = [](const std::string& operation, const std::string& heads) {
    const Ran ran({operation, operation, {{"batch", "1"}, {"seqlen", "40"}, {"heads", heads}}});
    return cli::check_against_reference(ran.what, ran.steps.front(), kTiny);
  };
  EXPECT_EQ(checked("mha_forward", "1"), "40 rows in 1 place");
  EXPECT_EQ(checked("mha_forward", "2"), "80 rows in 2 places");
  EXPECT_EQ(checked("mha_backward", "1"), "d_q of 40 rows, d_k and d_v of 1 key");
}

// A part of several sequences and heads takes every n-th length, factor, sink and statistic.
TEST(SpotCheck, PartsMayBeSpreadOverEveryDimension) {
  const auto checked = [](const std::string& operation, const cli::ShapeFlags& flags) {
    const Ran ran({operation, operation, flags});
    return cli::check_against_reference(ran.what, ran.steps.front(), {.flops = 3e6, .bytes = 1e5});
  };
  EXPECT_EQ(checked("dense_decode", {{"batch", "20"}, {"heads", "4"}, {"seqlen", "80"}}),
            "2 of 4 heads of 8 of 20 sequences");
  EXPECT_EQ(checked("dense_decode", {{"batch", "20"}, {"heads", "4"}, {"seqlen", "80"}, {"format", "e4m3"}}),
            "2 of 4 heads of 8 of 20 sequences");
  EXPECT_EQ(checked("sparse_decode", {{"batch", "20"}, {"heads", "9"}, {"topk", "40"}, {"sink", "true"}}),
            "4 of 9 heads of 8 of 20 sequences");
  EXPECT_EQ(checked("sparse_prefill", {{"s-q", "20"}, {"heads", "9"}, {"topk", "40"}, {"sink", "true"}}),
            "4 of 9 heads of 8 of 20 queries");
}

// A part takes the last sequence and head along, where sizes that are cut wrongly show.
TEST(SpotCheck, APartSeesTheLastElement) {
  Ran ran({"dense_decode", "dense_decode", {{"batch", "11"}, {"heads", "20"}}});
  cases::Tensor& out = ran.steps.front().outputs.at("out");
  out.set({10, 0, 19, 511}, 1e3);
  EXPECT_THROW(cli::check_against_reference(ran.what, ran.steps.front(), kTiny), cli::Mismatch);
}

}  // namespace
}  // namespace flashmla::test
