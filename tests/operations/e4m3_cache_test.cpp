// dense_decode over a cache of e4m3 codes with factors of each sequence.
#include <gtest/gtest.h>

#include <cmath>
#include <utility>
#include <vector>

#include "dense_problem.h"

namespace flashmla {
namespace {

FLASHMLA_ON_EVERY_BACKEND(E4m3Cache);
FLASHMLA_ON_EVERY_BACKEND(Factors);

/// Factors of four sequences, no powers of two.
const Row kQueryFactors = {0.37, 1.9, 0.6, 1.1};
const Row kKeyFactors = {1.7, 0.23, 0.9, 1.3};

/// Positions before `length - s_q + i + 1`.
Positions causal(const DenseProblem& problem, std::int64_t b, std::int64_t i) {
  return first(problem.sizes.seqlens[std::size_t(b)] - problem.sizes.s_q + i + 1);
}

TEST_P(E4m3Cache, WorksForAnyHeads) {
  for (const auto& [h_q, h_kv] : {std::pair(1, 1), {7, 1}, {33, 3}, {128, 1}, {12, 12}}) {
    DenseProblem problem({.seqlens = {21, 4, 0, 70}, .s_q = 2, .h_q = h_q, .h_kv = h_kv, .e4m3 = true});
    problem.descale_q = float_vector(kQueryFactors);
    problem.descale_k = float_vector(kKeyFactors);
    run(problem.op());
    problem.expect_all_seen();
  }
}

// The widths of models, widths that end inside a group of 64 codes, and one of fp8_v32 rows.
TEST_P(E4m3Cache, WorksForAnyWidthAndPage) {
  for (const auto& [d_qk, d_v] :
       {std::pair(576, 512), {512, 512}, {16, 8}, {80, 80}, {656, 40}, {1168, 24}}) {
    for (const std::int64_t page : {1, 5, 64}) {
      DenseProblem problem(
          {.seqlens = {70, 3}, .h_q = 3, .d_qk = d_qk, .d_v = d_v, .page = page, .e4m3 = true});
      run(problem.op());
      problem.expect_all_seen();
    }
  }
}

TEST_P(E4m3Cache, TakesQueriesOfBothTypes) {
  for (const DataType type : {DataType::kBf16, DataType::kF16}) {
    DenseProblem problem({.seqlens = {30, 9}, .s_q = 2, .h_q = 20, .type = type, .e4m3 = true});
    problem.descale_k = float_vector({0.7, 1.4});
    problem.causal = true;
    run(problem.op());
    problem.expect_seen([&](std::int64_t b, std::int64_t i) { return causal(problem, b, i); });
  }
}

// 256 codes in one row: every one of them counts as its value.
TEST_P(E4m3Cache, ReadsEveryCode) {
  DenseProblem problem({.seqlens = {1}, .h_q = 1, .d_qk = 256, .d_v = 256, .e4m3 = true});
  problem.softmax_scale = 0.0f;
  Row codes(256, 0);
  for (int code = 0; code < 256; ++code) codes[std::size_t(code)] = code % 128 == 127 ? 0 : code;
  set_row(problem.kv_cache.view(), {problem.token(0, 0) / 4, 0, 0}, codes);
  run(problem.op());
  for (std::int64_t c = 0; c < 256; ++c) {
    EXPECT_EQ(problem.out.at({0, 0, 0, c}), e4m3_value(int(codes[std::size_t(c)]))) << c;
  }
}

TEST_P(E4m3Cache, GivesTheBitsOfABf16CacheOfTheSameValues) {
  DenseProblem problem({.seqlens = {300, 0, 65}, .s_q = 2, .h_q = 17, .page = 16, .e4m3 = true});
  problem.causal = true;
  run(problem.op());
  if (IsSkipped()) return;
  const cases::Tensor out = problem.out;
  const cases::Tensor lse = problem.lse;
  const TensorView codes = problem.kv_cache.view();
  const cases::Tensor values(DataType::kBf16, problem.kv_cache.shape());
  cases::for_each_index(codes, [&](std::span<const std::int64_t> index) {
    cases::set_element(values.view(), index, e4m3_value(int(cases::element(codes, index))));
  });
  DenseDecode op = problem.op();
  op.kv_cache = values.view();
  run(op);
  EXPECT_EQ(bytes_of(problem.out), bytes_of(out));
  EXPECT_EQ(bytes_of(problem.lse), bytes_of(lse));
}

TEST_P(E4m3Cache, MayBeASliceOfALargerOne) {
  // Layer 1 of a cache [blocks, layers, page, h_kv, d_qk] with padded rows, and heads 2 and 3 of four.
  DenseProblem problem(
      {.seqlens = {21, 9}, .s_q = 2, .h_q = 4, .h_kv = 2, .d_qk = 48, .page = 8, .e4m3 = true});
  problem.descale_k = float_vector({0.7, 1.4});
  const cases::Tensor layers(DataType::kU8, {problem.kv_cache.shape()[0], 3, 8, 4, 64});
  DenseDecode op = problem.op();
  op.kv_cache.data = layers.view().as<std::uint8_t>() + 1 * (8 * 4 * 64) + 2 * 64;
  op.kv_cache.strides = {3 * 8 * 4 * 64, 4 * 64, 64, 1, 0};
  cases::copy_elements(problem.kv_cache.view(), op.kv_cache);
  run(op);
  problem.expect_all_seen();
}

TEST_P(E4m3Cache, KeepsTheCausalMaskAcrossPagesAndSplits) {
  for (const std::int64_t split_size : {0, 16, 100}) {
    DenseProblem problem({.seqlens = {300, 2, 17}, .s_q = 5, .h_q = 6, .h_kv = 2, .page = 7, .e4m3 = true});
    problem.descale_q = float_vector({0.4, 1.9, 1.2});
    problem.descale_k = float_vector({1.7, 0.2, 0.8});
    problem.causal = true;
    problem.split_size = split_size;
    run(problem.op());
    problem.expect_seen([&](std::int64_t b, std::int64_t i) { return causal(problem, b, i); });
  }
}

TEST_P(E4m3Cache, DoesNotShowWhatNoQuerySees) {
  DenseSizes sizes{.seqlens = {5, 0, 66, 17}, .s_q = 2, .h_q = 3, .page = 16, .e4m3 = true, .poison = 0};
  DenseProblem clean(sizes);
  run(clean.op());
  clean.expect_all_seen();
  for (const std::uint16_t poison : {0x7f7f, 0xffff, 0x7eff, 0x0101}) {
    sizes.poison = poison;
    DenseProblem poisoned(sizes);
    run(poisoned.op());
    EXPECT_EQ(bytes_of(poisoned.out), bytes_of(clean.out)) << poison;
    EXPECT_EQ(bytes_of(poisoned.lse), bytes_of(clean.lse)) << poison;
  }
}

TEST_P(E4m3Cache, ShowsItsNanCodesToThoseWhoSeeThem) {
  for (const int code : {0x7f, 0xff}) {
    for (const std::int64_t column : {3, 60}) {  // d_v is 32: in the key alone, too
      DenseProblem problem({.seqlens = {9, 9}, .s_q = 3, .h_q = 2, .e4m3 = true});
      problem.causal = true;
      const std::int64_t token = problem.token(1, 7);  // the second query is the first to see it
      problem.kv_cache.set({token / 4, token % 4, 0, column}, code);
      run(problem.op());
      for (std::int64_t b = 0; b < 2; ++b) {
        for (std::int64_t i = 0; i < 3; ++i) {
          const bool sees = b == 1 && i >= 1;
          EXPECT_EQ(std::isnan(problem.lse.at({b, 1, i})), sees) << b << " " << i;
          for (std::int64_t c = 0; c < 32; ++c) {
            EXPECT_EQ(std::isnan(problem.out.at({b, i, 1, c})), sees) << b << " " << i << " " << c;
          }
        }
      }
    }
  }
}

TEST_P(E4m3Cache, MasksBlocksThatDoNotExist) {
  DenseProblem problem({.seqlens = {14, 10}, .s_q = 2, .e4m3 = true});
  problem.block_table.set({0, 1}, 2147483647.0);
  problem.block_table.set({0, 3}, -5);
  problem.block_table.set({1, 0}, double(problem.kv_cache.shape()[0]));
  run(problem.op());
  problem.expect_seen([](std::int64_t b, std::int64_t) {
    return b == 0 ? Positions{0, 1, 2, 3, 8, 9, 10, 11} : Positions{4, 5, 6, 7, 8, 9};
  });
}

TEST_P(E4m3Cache, GivesTheSameBitsOnAnyNumberOfThreads) {
  DenseProblem problem(
      {.seqlens = {3000, 100, 1700}, .h_q = 3, .d_qk = 32, .d_v = 16, .page = 64, .e4m3 = true});
  problem.descale_q = float_vector({0.4, 1.9, 1.2});
  problem.descale_k = float_vector({1.7, 0.2, 0.8});
  run(problem.op(), 1);
  const auto out = bytes_of(problem.out);
  const auto lse = bytes_of(problem.lse);
  problem.expect_all_seen();
  for (const int threads : {2, 3, 8}) {
    run(problem.op(), threads);
    EXPECT_EQ(bytes_of(problem.out), out) << threads;
    EXPECT_EQ(bytes_of(problem.lse), lse) << threads;
  }
}

/// Entry `b` of a tensor, as a tensor of one sequence.
TensorView only(const TensorView& view, std::int64_t b) {
  TensorView part = view;
  part.data = view.as<std::uint8_t>() + b * view.strides[0] * std::int64_t(size_of(view.type));
  part.shape[0] = 1;
  return part;
}

TEST_P(E4m3Cache, IsBatchInvariantWithAFixedSplitSize) {
  DenseProblem problem({.seqlens = {150, 0, 33, 700}, .s_q = 2, .h_q = 3, .page = 8, .e4m3 = true});
  problem.descale_q = float_vector(kQueryFactors);
  problem.descale_k = float_vector(kKeyFactors);
  problem.split_size = 32;
  run(problem.op(), 2);
  const auto out = bytes_of(problem.out);
  const auto lse = bytes_of(problem.lse);
  problem.out.fill_nan();
  problem.lse.fill_nan();
  for (std::int64_t b = 0; b < 4; ++b) {
    DenseDecode op = problem.op();
    for (TensorView* view :
         {&op.q, &op.block_table, &op.cache_seqlens, &op.descale_q, &op.descale_k, &op.out, &op.lse}) {
      *view = only(*view, b);
    }
    run(op, 1);
  }
  EXPECT_EQ(bytes_of(problem.out), out);
  EXPECT_EQ(bytes_of(problem.lse), lse);
}

TEST_P(Factors, AreOneWhereTheyAreNotGiven) {
  DenseProblem problem({.seqlens = {21, 9, 1, 40}, .s_q = 2, .e4m3 = true});
  const cases::Tensor ones = float_vector({1, 1, 1, 1});
  run(problem.op());
  problem.expect_all_seen();
  const auto out = bytes_of(problem.out);
  for (const auto& [q, k] : {std::pair(true, false), {false, true}, {true, true}}) {
    problem.descale_q = q ? ones : cases::Tensor();
    problem.descale_k = k ? ones : cases::Tensor();
    run(problem.op());
    EXPECT_EQ(bytes_of(problem.out), out);
    if (q) problem.descale_q = float_vector(kQueryFactors);
    if (k) problem.descale_k = float_vector(kKeyFactors);
    run(problem.op());
    problem.expect_all_seen();
  }
}

TEST_P(Factors, OfAnySizeAndSignAreTakenAsGiven) {
  // The product of both stays moderate: logits of thousands have more rounding than the tolerance allows.
  for (const auto& [q, k] : {std::pair(0.0, 1.0),
                             {1.0, 0.0},
                             {-1.3, 0.7},
                             {0.9, -2.1},
                             {-0.0, -0.0},
                             {1e-20, 1e20},
                             {3e30, 1e-30},
                             {1e-40, 1.0},
                             {100.0, 0.01}}) {
    SCOPED_TRACE(testing::Message() << q << " " << k);
    DenseProblem problem({.seqlens = {9, 70}, .s_q = 2, .e4m3 = true});
    problem.descale_q = float_vector({q, 0.8});
    problem.descale_k = float_vector({k, 1.2});
    run(problem.op());
    problem.expect_all_seen();
  }
}

TEST_P(Factors, ThatAreNanShowInTheirSequenceAlone) {
  for (const bool of_q : {true, false}) {
    DenseProblem problem({.seqlens = {9, 9, 0, 70}, .e4m3 = true});
    (of_q ? problem.descale_q : problem.descale_k) = float_vector({1.2, std::nan(""), std::nan(""), 0.8});
    run(problem.op());
    for (std::int64_t head = 0; head < 4; ++head) {
      EXPECT_TRUE(std::isnan(problem.lse.at({1, head, 0})));
      for (std::int64_t c = 0; c < 32; ++c) EXPECT_TRUE(std::isnan(problem.out.at({1, 0, head, c})));
    }
    EXPECT_EQ(problem.lse.at({2, 1, 0}), kInfinity);
    for (const std::int64_t b : {0, 3}) {
      const Attended expected = problem.expected(b, 0, 1, first(problem.sizes.seqlens[std::size_t(b)]));
      EXPECT_NEAR(problem.lse.at({b, 1, 0}), expected.lse, 1e-3);
      EXPECT_NEAR(problem.out.at({b, 0, 1, 7}), expected.out[7], 0.02);
    }
  }
}

TEST_P(Factors, LeaveALonelyQueryAlone) {
  for (const double factor : {0.0, 1.5, -2.0, kInfinity, -kInfinity, std::nan("")}) {
    DenseProblem problem({.seqlens = {0, 3}, .s_q = 4, .e4m3 = true});
    problem.causal = true;  // the first query of the second sequence sees nothing either
    problem.descale_q = float_vector({factor, factor});
    problem.descale_k = float_vector({factor, factor});
    run(problem.op());
    for (const auto& [b, i] : {std::pair(0, 0), {0, 3}, {1, 0}}) {
      EXPECT_EQ(problem.lse.at({b, 2, i}), kInfinity) << factor;
      for (std::int64_t c = 0; c < 32; ++c) EXPECT_EQ(problem.out.at({b, i, 2, c}), 0) << factor;
    }
  }
}

TEST_P(Factors, MayBeASliceOfATable) {
  DenseProblem problem({.seqlens = {9, 70}, .e4m3 = true});
  const cases::Tensor table = float_vector({9, 0.4, 1.9, 9});
  problem.descale_q = float_vector({0.4, 1.9});
  problem.descale_k = problem.descale_q;
  DenseDecode op = problem.op();
  op.descale_q.data = op.descale_k.data = table.view().as<float>() + 1;
  run(op);
  problem.expect_all_seen();
}

}  // namespace
}  // namespace flashmla
