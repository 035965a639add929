// Memory that no query sees may hold anything; what a query does see shows in its result.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "dense_problem.h"
#include "mha_problem.h"
#include "prefill_problem.h"
#include "sparse_problem.h"

namespace flashmla {
namespace {

FLASHMLA_ON_EVERY_BACKEND(InvisibleMemory);
FLASHMLA_ON_EVERY_BACKEND(VisibleMemory);

// 16-bit words: NaNs of both signs, infinities of bf16 and f16, the largest and the smallest numbers.
constexpr std::uint16_t kPoisons[] = {0xffff, 0x7fc0, 0x7e00, 0x7f80, 0xff80, 0x7c00, 0x7f7f, 0x0001};

TEST_P(InvisibleMemory, OfPageTailsAndUnlistedPagesDoesNotReachTheResult) {
  for (const DataType type : {DataType::kBf16, DataType::kF16}) {
    DenseSizes sizes{.seqlens = {5, 0, 66, 17}, .s_q = 2, .h_q = 3, .page = 16, .type = type, .poison = 0};
    DenseProblem clean(sizes);
    run(clean.op());
    clean.expect_all_seen();
    for (const std::uint16_t poison : kPoisons) {
      sizes.poison = poison;
      DenseProblem poisoned(sizes);
      run(poisoned.op());
      EXPECT_EQ(bytes_of(poisoned.out), bytes_of(clean.out)) << poison;
      EXPECT_EQ(bytes_of(poisoned.lse), bytes_of(clean.lse)) << poison;
    }
  }
}

TEST_P(InvisibleMemory, OfUnselectedTokensDoesNotReachTheResult) {
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kF16, KvFormat::kFp8V32, KvFormat::kFp8Model1}) {
    SCOPED_TRACE(std::string(name_of(format)));
    std::vector<std::byte> clean;
    for (const std::uint16_t poison : {0x0000, 0xffff, 0x7f80, 0x7f7f, 0x7fc0}) {
      SparseProblem problem({.format = format, .topk = 9, .extra_topk = 3});
      fill_words(problem.kv_cache, poison);
      fill_words(problem.extra_kv_cache, poison);
      problem.select(0, 0, {1, 6, -1, 13, 99, 22});
      problem.write({1, 6, 13, 22});
      problem.select_extra(0, 0, {0, 8});
      problem.write_extra({0, 8});
      run(problem.op());
      problem.expect_seen([](std::int64_t, std::int64_t) { return Selection{{1, 6, 13, 22}, {0, 8}}; });
      if (poison == 0) clean = bytes_of(problem.out);
      EXPECT_EQ(bytes_of(problem.out), clean) << poison;
    }
  }
}

TEST_P(InvisibleMemory, OfUnselectedRowsDoesNotReachTheResultOfPrefill) {
  std::vector<std::byte> clean;
  for (const std::uint16_t poison : {0x0000, 0xffff, 0x7f80, 0x7f7f}) {
    PrefillProblem problem({.s_q = 3, .h_q = 3, .topk = 70});
    fill_words(problem.kv, poison);
    problem.select(0, {1, 6, 13});
    problem.select(2, {23, -1, 6, 6});
    problem.write({1, 6, 13, 23});
    run(problem.op());
    if (poison == 0) clean = bytes_of(problem.out);
    EXPECT_EQ(bytes_of(problem.out), clean) << poison;
    problem.expect_seen([](std::int64_t i, std::int64_t) {
      return i == 0 ? Positions{1, 6, 13} : i == 1 ? Positions{} : Positions{23, 6, 6};
    });
  }
}

TEST_P(InvisibleMemory, OfOtherSequencesDoesNotReachTheResultOfMha) {
  MhaSizes sizes{.cu_seqlens_q = {1, 4, 6}, .cu_seqlens_k = {2, 7, 9}, .total_q = 8, .total_k = 12};
  for (const bool causal : {false, true}) {
    MhaProblem problem(sizes);
    problem.causal = causal;
    // The keys and values of the second sequence: NaN for it, nothing for the first.
    for (const std::int64_t row : {7, 8}) {
      set_row(problem.k.view(), {row, 0}, Row(64, std::nan("")));
      set_row(problem.v.view(), {row, 1}, Row(32, kInfinity));
    }
    run(problem.forward());
    for (std::int64_t row = 1; row < 4; ++row) {
      const Attended expected = problem.expected(row, 0, problem.seen_by(row));
      EXPECT_NEAR(problem.lse.at({row, 0}), expected.lse, 1e-3);
      EXPECT_NEAR(problem.out.at({row, 0, 3}), expected.out[3], 0.02);
    }
    EXPECT_TRUE(std::isnan(problem.lse.at({5, 0})));
    EXPECT_EQ(problem.lse.at({7, 0}), kInfinity);
  }
}

TEST_P(InvisibleMemory, OfUncoveredRowsDoesNotReachTheGradients) {
  for (const std::uint16_t poison : {0xffff, 0x7f80}) {
    MhaProblem problem({.cu_seqlens_q = {2, 5}, .cu_seqlens_k = {1, 6}, .total_q = 8, .total_k = 9});
    for (const cases::Tensor* tensor : {&problem.q, &problem.d_out}) {
      for (const std::int64_t row : {0, 1, 5, 6, 7}) {
        for (std::int64_t head = 0; head < 2; ++head) {
          set_row(tensor->view(), {row, head}, Row(64, poison == 0x7f80 ? kInfinity : std::nan("")));
        }
      }
    }
    run(problem.forward());
    run(problem.backward());
    problem.expect_gradients();
  }
}

TEST_P(InvisibleMemory, BetweenRowsAndBlocksDoesNotReachTheResult) {
  DenseProblem problem({.seqlens = {9, 6}, .s_q = 2, .h_q = 4, .h_kv = 2});
  // The same cache with a row of padding behind every block and 8 elements behind every row.
  const auto shape = problem.kv_cache.shape();
  cases::Tensor padded(DataType::kBf16, shape, {(shape[1] + 1) * 2 * 72, 2 * 72, 72, 1});
  cases::copy_elements(problem.kv_cache.view(), padded.view());
  run(problem.op());
  const auto out = bytes_of(problem.out);
  problem.kv_cache = std::move(padded);
  run(problem.op());
  EXPECT_EQ(bytes_of(problem.out), out);
  problem.expect_all_seen();
}

TEST_P(VisibleMemory, WithNanShowsInTheWholeRow) {
  DenseProblem dense({.seqlens = {9, 9}});
  set_row(dense.kv_cache.view(), {dense.token(1, 3) / 4, dense.token(1, 3) % 4, 0}, Row(64, std::nan("")));
  run(dense.op());
  for (std::int64_t head = 0; head < 4; ++head) {
    EXPECT_FALSE(std::isnan(dense.lse.at({0, head, 0})));
    EXPECT_TRUE(std::isnan(dense.lse.at({1, head, 0})));
    for (std::int64_t c = 0; c < 32; ++c) {
      EXPECT_FALSE(std::isnan(dense.out.at({0, 0, head, c})));
      EXPECT_TRUE(std::isnan(dense.out.at({1, 0, head, c})));
    }
  }
}

// A split whose only key is NaN must not be mistaken for one that saw nothing.
TEST_P(VisibleMemory, WithNanInASplitOfItsOwnShowsInTheWholeRow) {
  SparseProblem problem({.blocks = 3, .topk = 512});
  problem.split_size = 128;
  for (const std::int64_t nan_at : {0, 200, 511}) {
    problem.select(0, 0, Positions(512, -1));
    problem.write({1, 5});
    set_row(problem.kv_cache.view(), {1, 1, 0}, Row(64, std::nan("")));
    problem.indices.set({0, 0, nan_at}, 5);
    problem.indices.set({0, 0, 300}, 1);
    run(problem.op());
    EXPECT_TRUE(std::isnan(problem.lse.at({0, 2, 0}))) << nan_at;
    EXPECT_TRUE(std::isnan(problem.out.at({0, 0, 2, 7}))) << nan_at;
  }
}

TEST_P(VisibleMemory, WithTheNanCodesOfE4m3ShowsInTheWholeRow) {
  for (const KvFormat format : {KvFormat::kFp8V32, KvFormat::kFp8Model1}) {
    for (const std::uint8_t code : {0x7f, 0xff}) {
      SparseProblem problem({.h_q = 2, .format = format});
      problem.select(0, 0, {3, 4});
      problem.write({3, 4});
      const TensorView cache = problem.kv_cache.view();
      cache.as<std::uint8_t>()[fp8_place(cache, 1, 0).values + 100] = code;
      run(problem.op());
      EXPECT_TRUE(std::isnan(problem.lse.at({0, 1, 0})));
      EXPECT_TRUE(std::isnan(problem.out.at({0, 0, 1, 0})));
    }
  }
}

TEST_P(VisibleMemory, WithInfinityBehindTheValueGivesThatKeyAllWeightOrNone) {
  // Column 60 takes part in the logits alone (d_v is 32). q is 1 there: logits of +inf and -inf.
  for (const double sign : {1.0, -1.0}) {
    PrefillProblem problem({.s_q = 1, .h_q = 1, .topk = 3});
    Row q = row_at(problem.q.view(), {0, 0});
    q[60] = 1;
    set_row(problem.q.view(), {0, 0}, q);
    problem.select(0, {0, 1, 2});
    problem.write({0, 1, 2});
    problem.kv.set({1, 0, 60}, sign * kInfinity);
    run(problem.op());
    if (sign > 0) {
      EXPECT_EQ(problem.max_logits.at({0, 0}), kInfinity);
      EXPECT_FALSE(std::isfinite(problem.lse.at({0, 0})));
    } else {
      problem.expect_seen([](std::int64_t, std::int64_t) { return Positions{0, 2}; });
    }
  }
}

TEST_P(VisibleMemory, WithInfiniteValuesShowsInTheirColumns) {
  MhaProblem problem({});
  problem.v.set({3, 0, 5}, kInfinity);
  problem.v.set({4, 0, 6}, -kInfinity);
  problem.v.set({2, 0, 7}, std::nan(""));
  problem.v.set({2, 0, 8}, kInfinity);
  problem.v.set({3, 0, 8}, -kInfinity);
  run(problem.forward());
  problem.expect_all_seen();
  EXPECT_EQ(problem.out.at({0, 0, 5}), kInfinity);
  EXPECT_EQ(problem.out.at({0, 0, 6}), -kInfinity);
  EXPECT_TRUE(std::isnan(problem.out.at({0, 0, 7})));
  EXPECT_TRUE(std::isnan(problem.out.at({0, 0, 8})));
  EXPECT_TRUE(std::isfinite(problem.out.at({0, 0, 4})));
}

TEST_P(VisibleMemory, ThatIsNotFiniteGivesWhatTheReferenceGives) {
  for (const double value : {std::nan(""), kInfinity, -kInfinity}) {
    for (const std::int64_t column : {3, 60}) {
      DenseProblem truth({.seqlens = {9, 70}, .s_q = 2, .h_q = 4});
      truth.kv_cache.set({truth.token(0, 2) / 4, truth.token(0, 2) % 4, 0, column}, value);
      truth.q.set({1, 1, 2, column}, value);
      run_on("reference", truth.op());
      DenseProblem problem = truth;
      run(problem.op());
      expect_close("dense_decode", "out", problem.out, truth.out);
      expect_close("dense_decode", "lse", problem.lse, truth.lse);
    }
  }
}

}  // namespace
}  // namespace flashmla
