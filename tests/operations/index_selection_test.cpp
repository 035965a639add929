// Which tokens the indices of sparse attention select.
#include <gtest/gtest.h>

#include <string>

#include "prefill_problem.h"
#include "sparse_problem.h"

namespace flashmla {
namespace {

FLASHMLA_ON_EVERY_BACKEND(Indices);
FLASHMLA_ON_EVERY_BACKEND(TopkLength);
FLASHMLA_ON_EVERY_BACKEND(ExtraCache);

constexpr KvFormat kFormats[] = {KvFormat::kBf16, KvFormat::kF16, KvFormat::kFp8V32, KvFormat::kFp8Model1};

TEST_P(Indices, SelectTokensInEveryFormat) {
  for (const KvFormat format : kFormats) {
    SCOPED_TRACE(std::string(name_of(format)));
    SparseProblem problem({.batch = 2, .s_q = 2, .h_q = 8, .format = format, .page = 5, .topk = 70});
    problem.select_at_random();
    run(problem.op());
    problem.expect_all_seen();
  }
}

TEST_P(Indices, OutsideTheCacheAreSkipped) {
  for (const KvFormat format : kFormats) {
    SCOPED_TRACE(std::string(name_of(format)));
    SparseProblem problem({.format = format, .topk = 12});
    problem.select(0, 0, {-1, 3, kIntMin, 24, 23, kIntMax, 25, 0, -2, 1 << 20, -(1 << 30)});
    problem.write({0, 3, 23});
    run(problem.op());
    problem.expect_seen([](std::int64_t, std::int64_t) { return Selection{{3, 23, 0}, {}}; });
  }
}

TEST_P(Indices, OutsideKvAreSkippedInPrefill) {
  PrefillProblem problem({.s_q = 2, .s_kv = 10, .h_q = 4, .h_kv = 2, .topk = 12});
  problem.select(0, {-1, 3, kIntMin, 10, 9, kIntMax, 11, 0, -2, 1 << 20});
  problem.select(1, {10, 10, 10, 9});
  problem.write({0, 3, 9});
  run(problem.op());
  problem.expect_seen(
      [](std::int64_t i, std::int64_t) { return i == 0 ? Positions{3, 9, 0} : Positions{9}; });
}

TEST_P(Indices, CountAsOftenAsTheyAppear) {
  SparseProblem sparse({.topk = 6});
  sparse.select(0, 0, {5, 7, 5, 5});
  sparse.write({5, 7});
  run(sparse.op());
  sparse.expect_seen([](std::int64_t, std::int64_t) { return Selection{{5, 5, 5, 7}, {}}; });

  PrefillProblem prefill({.s_q = 1, .topk = 6});
  prefill.select(0, {5, 7, 5, 5});
  prefill.write({5, 7});
  run(prefill.op());
  prefill.expect_seen([](std::int64_t, std::int64_t) { return Positions{5, 5, 5, 7}; });
}

TEST_P(Indices, OfOneTokenGiveItsRow) {
  // One key has weight 1: out is its row, lse and max_logits its logit.
  PrefillProblem problem({.s_q = 1, .h_q = 1, .d_qk = 8, .d_v = 8, .topk = 1});
  set_row(problem.q.view(), {0, 0}, {1, 2, 0, 0, 0, 0, 0, 0});
  set_row(problem.kv.view(), {4, 0}, {3, -1, 5, 0.5, 0, 0, 0, -7});
  problem.select(0, {4});
  problem.softmax_scale = 0.5f;
  run(problem.op());
  EXPECT_EQ(row_at(problem.out.view(), {0, 0}), (Row{3, -1, 5, 0.5, 0, 0, 0, -7}));
  EXPECT_EQ(problem.max_logits.at({0, 0}), 0.5);
  EXPECT_NEAR(problem.lse.at({0, 0}), 0.5, 1e-6);
}

TEST_P(Indices, OfTwoEqualTokensAddLogTwoToLse) {
  SparseProblem problem({.h_q = 1, .d_qk = 8, .d_v = 8, .topk = 2});
  set_row(problem.q.view(), {0, 0, 0}, {1, 2, 0, 0, 0, 0, 0, 0});
  set_row(problem.kv_cache.view(), {1, 2, 0}, {3, -1, 5, 0.5, 0, 0, 0, -7});
  problem.select(0, 0, {6, 6});
  problem.softmax_scale = 2.0f;
  run(problem.op());
  EXPECT_EQ(row_at(problem.out.view(), {0, 0, 0}), (Row{3, -1, 5, 0.5, 0, 0, 0, -7}));
  EXPECT_NEAR(problem.lse.at({0, 0, 0}), 2.0 + 0.6931471805599453, 1e-6);
}

// Equal weights round alike: the errors of a narrow weight type would add up, not average out.
TEST_P(Indices, OfFewTokensManyTimesStayWithinTheTolerance) {
  for (const std::int64_t distinct : {2, 4, 8}) {
    SparseProblem problem({.h_q = 64, .d_qk = 576, .d_v = 512, .topk = 512});
    Positions selected;
    for (std::int64_t k = 0; k < 512; ++k) selected.push_back(k % distinct);
    problem.select(0, 0, selected);
    problem.write({0, 1, 2, 3, 4, 5, 6, 7});
    run(problem.op());
    problem.expect_all_seen();
  }
}

TEST_P(Indices, OfTokensWithLargeValuesStayWithinTheTolerance) {
  SparseProblem problem({.h_q = 64, .d_qk = 576, .d_v = 512, .page = 64, .topk = 300});
  problem.select_at_random();
  cases::for_each_index(problem.kv_cache.view(), [&](std::span<const std::int64_t> at) {
    const double value = cases::element(problem.kv_cache.view(), at);
    cases::set_element(problem.kv_cache.view(), at, 16 * value);
  });
  problem.softmax_scale = 1.0f / (16 * 24);
  run(problem.op());
  problem.expect_all_seen();
}

TEST_P(Indices, DifferPerKvHeadInPrefill) {
  PrefillProblem problem({.s_q = 3, .h_q = 6, .h_kv = 3, .topk = 5});
  problem.select_at_random();
  run(problem.op());
  problem.expect_all_seen();
}

TEST_P(Indices, AreSharedByTheKvHeadsInDecode) {
  SparseProblem problem({.batch = 2, .s_q = 2, .h_q = 6, .h_kv = 2});
  problem.select_at_random();
  run(problem.op());
  problem.expect_all_seen();
}

TEST_P(Indices, ReachThousands) {
  SparseProblem sparse({.h_q = 2, .page = 61, .blocks = 50, .topk = 2100});
  sparse.select_at_random();
  run(sparse.op());
  sparse.expect_all_seen();

  PrefillProblem prefill({.s_q = 2, .s_kv = 3000, .h_q = 2, .topk = 2100});
  prefill.select_at_random();
  run(prefill.op());
  prefill.expect_all_seen();
}

TEST_P(TopkLength, NothingBehindItIsRead) {
  for (const KvFormat format : kFormats) {
    SCOPED_TRACE(std::string(name_of(format)));
    SparseProblem problem({.batch = 3, .s_q = 2, .format = format});
    for (std::int64_t b = 0; b < 3; ++b) {
      for (std::int64_t i = 0; i < 2; ++i) problem.select(b, i, {1, 2, 3, 4, 5, 6, 7, 8});
    }
    problem.write({1, 2, 3, 4});  // tokens 5 to 8 stay poison
    problem.topk_length = int_vector({3, 1, 4});
    run(problem.op());
    problem.expect_seen([](std::int64_t b, std::int64_t) {
      return Selection{b == 0 ? Positions{1, 2, 3} : b == 1 ? Positions{1} : Positions{1, 2, 3, 4}, {}};
    });
  }
}

TEST_P(TopkLength, NothingBehindItIsReadInPrefill) {
  PrefillProblem problem({.s_q = 3, .h_q = 4, .h_kv = 2});
  for (std::int64_t i = 0; i < 3; ++i) problem.select(i, {1, 2, 3, 4, 5, 6, 7, 8});
  problem.write({1, 2, 3, 4});
  problem.topk_length = int_vector({3, 1, 4});
  run(problem.op());
  problem.expect_seen([](std::int64_t i, std::int64_t) {
    return i == 0 ? Positions{1, 2, 3} : i == 1 ? Positions{1} : Positions{1, 2, 3, 4};
  });
}

TEST_P(TopkLength, IsClampedToTheIndices) {
  SparseProblem sparse({.batch = 6, .topk = 5, .extra_topk = 4});
  sparse.select_at_random();
  sparse.topk_length = int_vector({0, -1, kIntMin, 6, kIntMax, 2});
  sparse.extra_topk_length = int_vector({1, kIntMax, 2, 0, kIntMin, 5});
  run(sparse.op());
  sparse.expect_seen([&](std::int64_t b, std::int64_t i) {
    const std::int64_t counts[6][2] = {{0, 1}, {0, 4}, {0, 2}, {5, 0}, {5, 0}, {2, 4}};
    return sparse.selected(b, i, counts[b][0], counts[b][1]);
  });

  PrefillProblem prefill({.s_q = 6, .topk = 5});
  prefill.select_at_random();
  prefill.topk_length = int_vector({0, -1, kIntMin, 6, kIntMax, 2});
  run(prefill.op());
  prefill.expect_seen([&](std::int64_t i, std::int64_t kv_head) {
    const std::int64_t counts[6] = {0, 0, 0, 5, 5, 2};
    return prefill.selected(i, kv_head, counts[i]);
  });
}

TEST_P(ExtraCache, SharesOneSoftmaxWithTheFirst) {
  for (const KvFormat format : kFormats) {
    SCOPED_TRACE(std::string(name_of(format)));
    SparseProblem problem({.batch = 2, .s_q = 2, .h_q = 3, .format = format, .extra_topk = 6});
    problem.select_at_random();
    run(problem.op());
    problem.expect_all_seen();
  }
}

TEST_P(ExtraCache, HasItsOwnPageSizeAndRange) {
  for (const std::int64_t extra_page : {1, 2, 7, 64}) {
    SparseProblem problem(
        {.page = 4, .blocks = 2, .extra_topk = 6, .extra_page = extra_page, .extra_blocks = 3});
    const std::int64_t last = 3 * extra_page - 1;
    problem.select(0, 0, {7, 8});
    problem.select_extra(0, 0, {last, last + 1, -1, 0});
    problem.write({7});
    problem.write_extra({0, last});
    run(problem.op());
    problem.expect_seen([&](std::int64_t, std::int64_t) { return Selection{{7}, {last, 0}}; });
  }
}

TEST_P(ExtraCache, HasItsOwnTopkLength) {
  SparseProblem problem({.batch = 2, .topk = 5, .extra_topk = 4});
  problem.select(0, 0, {1, 2, 3, 4, 5});
  problem.select(1, 0, {1, 2, 3, 4, 5});
  problem.select_extra(0, 0, {1, 2, 3, 4});
  problem.select_extra(1, 0, {1, 2, 3, 4});
  problem.write({1, 2, 3, 4, 5});
  problem.write_extra({1, 2});
  problem.extra_topk_length = int_vector({2, 1});
  run(problem.op());
  problem.expect_seen([](std::int64_t b, std::int64_t) {
    return Selection{{1, 2, 3, 4, 5}, b == 0 ? Positions{1, 2} : Positions{1}};
  });
}

TEST_P(ExtraCache, IsSplitWithTheFirst) {
  for (const std::int64_t split_size : {1, 3, 8, 64, 100}) {
    SparseProblem problem({.batch = 3, .topk = 70, .extra_topk = 50});
    problem.select_at_random();
    problem.topk_length = int_vector({70, 5, 0});
    problem.extra_topk_length = int_vector({1, 50, 33});
    problem.split_size = split_size;
    run(problem.op());
    problem.expect_seen([&](std::int64_t b, std::int64_t i) {
      const std::int64_t counts[3][2] = {{70, 1}, {5, 50}, {0, 33}};
      return problem.selected(b, i, counts[b][0], counts[b][1]);
    });
  }
}

}  // namespace
}  // namespace flashmla
