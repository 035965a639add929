// The attention sink: a logit without a value.
#include <gtest/gtest.h>

#include <cmath>

#include "prefill_problem.h"
#include "sparse_problem.h"

namespace flashmla {
namespace {

FLASHMLA_ON_EVERY_BACKEND(AttnSink);

TEST_P(AttnSink, TakesItsShareOfOut) {
  SparseProblem sparse({.batch = 2, .s_q = 2, .h_q = 6, .extra_topk = 3});
  sparse.select_at_random();
  sparse.attn_sink = float_vector({0, 2, -2, 4.5, 1, -0.25});
  run(sparse.op());
  sparse.expect_all_seen();

  PrefillProblem prefill({.s_q = 2, .h_q = 6, .h_kv = 2});
  prefill.select_at_random();
  prefill.attn_sink = float_vector({0, 2, -2, 4.5, 1, -0.25});
  run(prefill.op());
  prefill.expect_all_seen();
}

TEST_P(AttnSink, EqualToLseHalvesOut) {
  // One key with logit 2: lse is 2, and a sink of 2 takes half.
  PrefillProblem problem({.s_q = 1, .h_q = 1, .d_qk = 8, .d_v = 8, .topk = 1});
  set_row(problem.q.view(), {0, 0}, {1, 0, 0, 0, 0, 0, 0, 0});
  set_row(problem.kv.view(), {0, 0}, {2, 4, 6, -8, 0, 0, 0, 1});
  problem.select(0, {0});
  problem.softmax_scale = 1.0f;
  problem.attn_sink = float_vector({2});
  run(problem.op());
  const Row expected{1, 2, 3, -4, 0, 0, 0, 0.5};
  for (std::int64_t c = 0; c < 8; ++c) {
    EXPECT_NEAR(problem.out.at({0, 0, c}), expected[std::size_t(c)],
                0.02 * std::fabs(expected[std::size_t(c)]));
  }
  EXPECT_NEAR(problem.lse.at({0, 0}), 2, 1e-5);
}

TEST_P(AttnSink, OfPlusInfinityGivesZero) {
  SparseProblem problem({.h_q = 3});
  problem.select_at_random();
  problem.attn_sink = float_vector({kInfinity, 0, kInfinity});
  run(problem.op());
  problem.expect_all_seen();
  for (std::int64_t c = 0; c < 32; ++c) EXPECT_EQ(problem.out.at({0, 0, 2, c}), 0);
}

TEST_P(AttnSink, OfMinusInfinityHasNoEffect) {
  SparseProblem sparse({.h_q = 3});
  sparse.select_at_random();
  run(sparse.op());
  const auto plain = bytes_of(sparse.out);
  sparse.attn_sink = float_vector(Row(3, -kInfinity));
  run(sparse.op());
  EXPECT_EQ(bytes_of(sparse.out), plain);

  PrefillProblem prefill({.h_q = 3});
  prefill.select_at_random();
  run(prefill.op());
  const auto plain_prefill = bytes_of(prefill.out);
  prefill.attn_sink = float_vector(Row(3, -kInfinity));
  run(prefill.op());
  EXPECT_EQ(bytes_of(prefill.out), plain_prefill);
}

TEST_P(AttnSink, FarFromLseIsFinite) {
  for (const double lse_near : {-300.0, 300.0}) {
    PrefillProblem problem({.s_q = 1, .h_q = 6, .d_qk = 8, .d_v = 8, .topk = 2});
    for (std::int64_t head = 0; head < 6; ++head) {
      set_row(problem.q.view(), {0, head}, {lse_near, 0, 0, 0, 0, 0, 0, 0});
    }
    problem.write({0, 1});
    set_row(problem.kv.view(), {0, 0}, {1, 2, 3, 4, 5, 6, 7, 8});
    set_row(problem.kv.view(), {1, 0}, {1, -2, 3, 4, -5, 6, 7, 8});
    problem.select(0, {0, 1});
    problem.softmax_scale = 1.0f;
    problem.attn_sink = float_vector({-1000, 1000, lse_near, lse_near + 1, 0, 3e38});
    run(problem.op());
    problem.expect_all_seen();
  }
}

TEST_P(AttnSink, LeavesLseAndMaxLogitsUnchanged) {
  SparseProblem sparse({.batch = 2, .h_q = 4});
  sparse.select_at_random();
  run(sparse.op());
  const auto lse = bytes_of(sparse.lse);
  sparse.attn_sink = float_vector({1, kInfinity, -kInfinity, 50});
  run(sparse.op());
  EXPECT_EQ(bytes_of(sparse.lse), lse);

  PrefillProblem prefill({.h_q = 4});
  prefill.select_at_random();
  run(prefill.op());
  const auto prefill_lse = bytes_of(prefill.lse);
  const auto max_logits = bytes_of(prefill.max_logits);
  prefill.attn_sink = float_vector({1, kInfinity, -kInfinity, 50});
  run(prefill.op());
  EXPECT_EQ(bytes_of(prefill.lse), prefill_lse);
  EXPECT_EQ(bytes_of(prefill.max_logits), max_logits);
}

TEST_P(AttnSink, CountsOncePerQueryHoweverTheKeysAreSplit) {
  for (const std::int64_t split_size : {1, 4, 16}) {
    SparseProblem problem({.h_q = 4, .topk = 60});
    problem.select_at_random();
    problem.attn_sink = float_vector({0, 3, 5, -2});
    problem.split_size = split_size;
    run(problem.op());
    problem.expect_all_seen();
  }
}

}  // namespace
}  // namespace flashmla
