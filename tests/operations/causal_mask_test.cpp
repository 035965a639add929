// Which keys a causal query sees.
#include <gtest/gtest.h>

#include <cmath>

#include "dense_problem.h"
#include "mha_problem.h"

namespace flashmla {
namespace {

FLASHMLA_ON_EVERY_BACKEND(CausalMask);

TEST_P(CausalMask, LastQuerySeesTheWholeSequence) {
  DenseProblem problem({.seqlens = {10, 5}, .s_q = 3});
  problem.causal = true;
  run(problem.op());
  problem.expect_seen([](std::int64_t b, std::int64_t i) { return first((b == 0 ? 8 : 3) + i); });
}

TEST_P(CausalMask, EveryQuerySeesAllWithoutIt) {
  DenseProblem problem({.seqlens = {10, 5}, .s_q = 3});
  run(problem.op());
  problem.expect_all_seen();
}

TEST_P(CausalMask, OneQuerySeesAll) {
  DenseProblem problem({.seqlens = {10, 1}});
  problem.causal = true;
  run(problem.op());
  problem.expect_all_seen();
}

TEST_P(CausalMask, QueriesBeforeAShortSequenceSeeNothing) {
  DenseProblem problem({.seqlens = {2, 1, 0, 5}, .s_q = 5});
  problem.causal = true;
  run(problem.op());
  problem.expect_seen([&](std::int64_t b, std::int64_t i) {
    const std::int64_t visible[4][5] = {{0, 0, 0, 1, 2}, {0, 0, 0, 0, 1}, {0, 0, 0, 0, 0}, {1, 2, 3, 4, 5}};
    return first(visible[b][i]);
  });
  EXPECT_EQ(problem.lse.at({0, 0, 2}), kInfinity);
}

TEST_P(CausalMask, HoldsAcrossPagesAndTiles) {
  DenseProblem problem({.seqlens = {1, 63, 64, 65, 127, 128, 129, 200}, .s_q = 7, .h_q = 3, .page = 16});
  problem.causal = true;
  run(problem.op());
  problem.expect_seen([&](std::int64_t b, std::int64_t i) {
    return first(problem.sizes.seqlens[std::size_t(b)] - 7 + i + 1);
  });
}

TEST_P(CausalMask, HoldsForSplitSequences) {
  for (const std::int64_t split_size : {1, 3, 16}) {
    DenseProblem problem({.seqlens = {40, 3, 17}, .s_q = 6});
    problem.causal = true;
    problem.split_size = split_size;
    run(problem.op());
    problem.expect_seen([&](std::int64_t b, std::int64_t i) {
      return first(problem.sizes.seqlens[std::size_t(b)] - 6 + i + 1);
    });
  }
}

TEST_P(CausalMask, TokenSeenByALaterQueryAloneDoesNotReachAnEarlierOne) {
  DenseProblem problem({.seqlens = {9}, .s_q = 3});
  problem.causal = true;
  const TensorView row_of_last = TensorView::contiguous(
      problem.kv_cache.view().as<std::uint16_t>() + problem.token(0, 8) * 64, DataType::kBf16, {1, 64});
  set_row(row_of_last, {0}, Row(64, std::nan("")));
  run(problem.op());
  for (std::int64_t head = 0; head < 4; ++head) {
    for (std::int64_t i = 0; i < 2; ++i) {
      const Attended expected = problem.expected(0, i, head, first(7 + i));
      EXPECT_NEAR(problem.lse.at({0, head, i}), expected.lse, 1e-3);
      for (std::int64_t c = 0; c < 32; ++c) {
        EXPECT_NEAR(problem.out.at({0, i, head, c}), expected.out[std::size_t(c)], 0.02);
      }
    }
    EXPECT_TRUE(std::isnan(problem.lse.at({0, head, 2})));
    EXPECT_TRUE(std::isnan(problem.out.at({0, 2, head, 0})));
  }
}

TEST_P(CausalMask, InfiniteTokenSeenByALaterQueryAloneDoesNotReachAnEarlierOne) {
  MhaProblem problem({.cu_seqlens_q = {0, 4}, .cu_seqlens_k = {0, 6}, .total_q = 4, .total_k = 6});
  problem.causal = true;
  for (std::int64_t head = 0; head < 2; ++head) {
    set_row(problem.k.view(), {5, head}, Row(64, kInfinity));
    set_row(problem.v.view(), {5, head}, Row(32, std::nan("")));
  }
  run(problem.forward());
  for (std::int64_t i = 0; i < 3; ++i) {
    const Attended expected = problem.expected(i, 1, first(3 + i));
    EXPECT_NEAR(problem.lse.at({i, 1}), expected.lse, 1e-3);
    EXPECT_NEAR(problem.out.at({i, 1, 7}), expected.out[7], 0.02);
  }
}

TEST_P(CausalMask, IsAlignedToTheLastKeyInMha) {
  MhaProblem problem(
      {.cu_seqlens_q = {0, 3, 8, 12}, .cu_seqlens_k = {0, 7, 12, 14}, .total_q = 12, .total_k = 14});
  problem.causal = true;
  run(problem.forward());
  problem.expect_seen([](std::int64_t row) {
    // Sequences of 3, 5 and 4 queries over 7, 5 and 2 keys.
    const std::int64_t begin = row < 3 ? 0 : row < 8 ? 7 : 12;
    const std::int64_t count = row < 3 ? 5 + row : row < 8 ? row - 2 : row - 9;
    Positions seen = first(count);
    for (std::int64_t& position : seen) position += begin;
    return seen;
  });
}

TEST_P(CausalMask, HoldsAcrossTilesInMha) {
  MhaProblem problem({.cu_seqlens_q = {0, 130, 201, 231},
                      .cu_seqlens_k = {0, 65, 266, 296},
                      .total_q = 231,
                      .total_k = 296,
                      .h_q = 2,
                      .h_kv = 1,
                      .d_qk = 24,
                      .d_v = 16});
  problem.causal = true;
  run(problem.forward());
  problem.expect_all_seen();
  EXPECT_EQ(problem.seen_by(64).size(), 0u);
  EXPECT_EQ(problem.seen_by(65).size(), 1u);
  EXPECT_EQ(problem.seen_by(129).size(), 65u);
  EXPECT_EQ(problem.seen_by(130).size(), 131u);
}

/// Rows `[begin, end)` of a tensor.
TensorView rows_of(const cases::Tensor& tensor, std::int64_t begin, std::int64_t end) {
  TensorView view = tensor.view();
  view.data = view.as<std::uint16_t>() + begin * view.strides[0];
  view.shape[0] = end - begin;
  return view;
}

void expect_close_rows(const char* output, const cases::Tensor& got, const cases::Tensor& expected,
                       std::int64_t begin, std::int64_t end) {
  const auto result =
      cases::compare("mha_backward", output, rows_of(got, begin, end), rows_of(expected, begin, end));
  EXPECT_TRUE(result.passed) << result.description;
}

constexpr std::int64_t kTokens = 90;  // more than a tile
const MhaSizes kOneSequence{
    .cu_seqlens_q = {0, kTokens}, .cu_seqlens_k = {0, kTokens}, .total_q = kTokens, .total_k = kTokens};

TEST_P(CausalMask, KeySeenByALaterQueryAloneDoesNotReachTheGradientOfAnEarlierOne) {
  MhaProblem clean(kOneSequence);
  MhaProblem problem(kOneSequence);
  clean.causal = problem.causal = true;
  for (const double poison : {std::nan(""), HUGE_VAL}) {
    set_row(problem.k.view(), {70, 0}, Row(64, poison));
    set_row(problem.v.view(), {70, 1}, Row(32, poison));
    for (MhaProblem* each : {&clean, &problem}) {
      run(each->forward());
      run(each->backward());
    }
    expect_close_rows("d_q", problem.d_q, clean.d_q, 0, 70);
    EXPECT_TRUE(std::isnan(problem.d_q.at({70, 0, 0})));
  }
}

TEST_P(CausalMask, QueryThatDoesNotSeeAKeyDoesNotReachItsGradient) {
  MhaProblem clean(kOneSequence);
  MhaProblem problem(kOneSequence);
  clean.causal = problem.causal = true;
  for (const double poison : {std::nan(""), HUGE_VAL}) {
    set_row(problem.d_out.view(), {20, 0}, Row(32, poison));
    for (MhaProblem* each : {&clean, &problem}) {
      run(each->forward());
      run(each->backward());
    }
    expect_close_rows("d_k", problem.d_k, clean.d_k, 21, kTokens);
    expect_close_rows("d_v", problem.d_v, clean.d_v, 21, kTokens);
    EXPECT_FALSE(std::isfinite(problem.d_v.at({20, 0, 0})));
  }
}

}  // namespace
}  // namespace flashmla
