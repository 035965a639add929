// The factor of the logits.
#include <gtest/gtest.h>

#include <optional>

#include "dense_problem.h"
#include "mha_problem.h"
#include "prefill_problem.h"
#include "sparse_problem.h"

namespace flashmla {
namespace {

FLASHMLA_ON_EVERY_BACKEND(SoftmaxScale);

TEST_P(SoftmaxScale, IsOneByTheRootOfTheKeyWidthByDefault) {
  DenseProblem problem({.seqlens = {9}});
  run(problem.op());
  const auto by_default = bytes_of(problem.lse);
  problem.softmax_scale = 0.125f;  // 1 / sqrt(64)
  run(problem.op());
  EXPECT_EQ(bytes_of(problem.lse), by_default);
}

TEST_P(SoftmaxScale, OfFp8CachesFollowsTheirRowWidth) {
  for (const KvFormat format : {KvFormat::kFp8V32, KvFormat::kFp8Model1}) {
    SparseProblem problem({.h_q = 2, .format = format});
    problem.select_at_random();
    run(problem.op());
    problem.expect_all_seen();
  }
}

TEST_P(SoftmaxScale, OfAnyValueIsTakenAsGiven) {
  for (const float scale : {1.0f, 0.01f, 3.0f, -0.5f, 0.0f, -0.0f, 1e-30f}) {
    SCOPED_TRACE(scale);
    DenseProblem dense({.seqlens = {9, 0}});
    dense.softmax_scale = scale;
    run(dense.op());
    dense.expect_all_seen();

    SparseProblem sparse({});
    sparse.select_at_random();
    sparse.softmax_scale = scale;
    run(sparse.op());
    sparse.expect_all_seen();

    PrefillProblem prefill({});
    prefill.select_at_random();
    prefill.softmax_scale = scale;
    run(prefill.op());
    prefill.expect_all_seen();

    MhaProblem mha({});
    mha.softmax_scale = scale;
    run(mha.forward());
    mha.expect_all_seen();
  }
}

TEST_P(SoftmaxScale, OfZeroGivesTheMean) {
  MhaProblem problem({.cu_seqlens_q = {0, 1},
                      .cu_seqlens_k = {0, 2},
                      .total_q = 1,
                      .total_k = 2,
                      .h_q = 1,
                      .h_kv = 1,
                      .d_qk = 8,
                      .d_v = 8});
  set_row(problem.v.view(), {0, 0}, {1, 2, 3, 4, 5, 6, 7, 8});
  set_row(problem.v.view(), {1, 0}, {3, 2, 1, 0, -5, 10, 7, 0});
  problem.softmax_scale = 0.0f;
  run(problem.forward());
  EXPECT_EQ(row_at(problem.out.view(), {0, 0}), (Row{2, 2, 2, 2, 0, 8, 7, 4}));
  EXPECT_NEAR(problem.lse.at({0, 0}), 0.6931471805599453, 1e-6);
}

TEST_P(SoftmaxScale, ActsOnGradientsToo) {
  for (const float scale : {0.3f, -0.2f, 0.0f}) {
    MhaProblem problem({});
    problem.softmax_scale = scale;
    run(problem.forward());
    run(problem.backward());
    problem.expect_gradients();
  }
}

TEST_P(SoftmaxScale, OfLargeLogitsDoesNotOverflow) {
  // Logits of some hundreds, of both signs: exp of them is out of range.
  DenseProblem problem({.seqlens = {40, 7}, .s_q = 2, .d_qk = 16, .d_v = 16});
  problem.softmax_scale = 40.0f;
  run(problem.op());
  problem.expect_all_seen();
}

}  // namespace
}  // namespace flashmla
