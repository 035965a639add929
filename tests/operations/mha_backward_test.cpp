// Gradients of attention against the chain rule in double precision and against differences.
#include <gtest/gtest.h>

#include <cmath>

#include "mha_problem.h"

namespace flashmla {
namespace {

FLASHMLA_ON_EVERY_BACKEND(MhaGradient);

/// `sum(d_out * out)` of a problem in double precision.
double loss(const MhaProblem& problem) {
  double sum = 0;
  for (std::int64_t row = 0; row < problem.sizes.total_q; ++row) {
    for (std::int64_t head = 0; head < problem.sizes.h_q; ++head) {
      const Attended attended = problem.expected(row, head, problem.seen_by(row));
      sum += dot(attended.out, row_at(problem.d_out.view(), {row, head}));
    }
  }
  return sum;
}

/// Expects the gradient of one tensor to be what small steps in f16 numbers do to the loss.
void expect_differences(MhaProblem& problem, cases::Tensor& tensor, const cases::Tensor& gradient) {
  cases::for_each_index(tensor.view(), [&](std::span<const std::int64_t> at) {
    const double x = cases::element(tensor.view(), at);
    const double step = 1.0 / 64;
    cases::set_element(tensor.view(), at, x + step);
    const double up = cases::element(tensor.view(), at);
    const double loss_up = loss(problem);
    cases::set_element(tensor.view(), at, x - step);
    const double down = cases::element(tensor.view(), at);
    const double loss_down = loss(problem);
    cases::set_element(tensor.view(), at, x);
    ASSERT_NEAR(cases::element(gradient.view(), at), (loss_up - loss_down) / (up - down), 4e-3);
  });
}

TEST_P(MhaGradient, IsTheSlopeOfTheForwardPass) {
  MhaProblem problem({.cu_seqlens_q = {0, 3, 4},
                      .cu_seqlens_k = {0, 4, 6},
                      .total_q = 4,
                      .total_k = 6,
                      .h_q = 2,
                      .h_kv = 1,
                      .d_qk = 8,
                      .d_v = 8,
                      .type = DataType::kF16});
  problem.causal = true;
  run(problem.forward());
  run(problem.backward());
  expect_differences(problem, problem.q, problem.d_q);
  expect_differences(problem, problem.k, problem.d_k);
  expect_differences(problem, problem.v, problem.d_v);
}

TEST_P(MhaGradient, IsRightForManySequences) {
  for (const bool causal : {false, true}) {
    MhaProblem problem({.cu_seqlens_q = {0, 30, 31, 31, 130},
                        .cu_seqlens_k = {0, 70, 75, 80, 150},
                        .total_q = 130,
                        .total_k = 150,
                        .h_q = 2,
                        .h_kv = 2,
                        .d_qk = 48,
                        .d_v = 32});
    problem.causal = causal;
    run(problem.forward());
    run(problem.backward());
    problem.expect_gradients();
  }
}

TEST_P(MhaGradient, IsRightForTheWidthsOfTheModels) {
  for (const std::int64_t d_qk : {192, 128}) {
    MhaProblem problem({.cu_seqlens_q = {0, 20},
                        .cu_seqlens_k = {0, 33},
                        .total_q = 20,
                        .total_k = 33,
                        .d_qk = d_qk,
                        .d_v = 128});
    problem.causal = true;
    run(problem.forward());
    run(problem.backward());
    problem.expect_gradients();
  }
}

TEST_P(MhaGradient, IsRightForALargeGradientOfTheResult) {
  MhaProblem problem({.cu_seqlens_q = {0, 200},
                      .cu_seqlens_k = {0, 200},
                      .total_q = 200,
                      .total_k = 200,
                      .d_qk = 128,
                      .d_v = 128});
  cases::for_each_index(problem.d_out.view(), [&](std::span<const std::int64_t> at) {
    cases::set_element(problem.d_out.view(), at, 128 * cases::element(problem.d_out.view(), at));
  });
  run(problem.forward());
  run(problem.backward());
  problem.expect_gradients();
}

TEST_P(MhaGradient, OfGroupedHeadsAddsUpInTheirKvHead) {
  for (const std::int64_t h_kv : {1, 2, 3, 6}) {
    MhaProblem problem({.h_q = 6, .h_kv = h_kv});
    run(problem.forward());
    run(problem.backward());
    problem.expect_gradients();
  }
}

TEST_P(MhaGradient, OfRowsThatSeeNothingIsZero) {
  // 6 queries over 2 keys: the first 4 see nothing. The second sequence has no keys.
  MhaProblem problem({.cu_seqlens_q = {0, 6, 9}, .cu_seqlens_k = {0, 2, 2}, .total_q = 9, .total_k = 2});
  problem.causal = true;
  run(problem.forward());
  run(problem.backward());
  problem.expect_gradients();
  for (const std::int64_t row : {0, 1, 2, 3, 6, 7, 8}) {
    for (std::int64_t c = 0; c < 64; ++c) ASSERT_EQ(problem.d_q.at({row, 1, c}), 0) << row;
  }
}

TEST_P(MhaGradient, OfRowsWhoseLseIsInfiniteIsZeroWhateverTheyHold) {
  MhaProblem clean({});
  MhaProblem problem({});
  for (std::int64_t head = 0; head < 2; ++head) set_row(clean.d_out.view(), {2, head}, Row(32, 0.0));
  for (MhaProblem* each : {&clean, &problem}) run(each->forward());
  for (std::int64_t head = 0; head < 2; ++head) {
    set_row(problem.d_out.view(), {2, head}, Row(32, std::nan("")));
    problem.lse.set({2, head}, HUGE_VAL);
  }
  for (MhaProblem* each : {&clean, &problem}) run(each->backward());
  expect_close("mha_backward", "d_q", problem.d_q, clean.d_q);
  expect_close("mha_backward", "d_k", problem.d_k, clean.d_k);
  expect_close("mha_backward", "d_v", problem.d_v, clean.d_v);
}

// A softmax over one key is constant; a rounding error in its gradient would be all there is.
TEST_P(MhaGradient, OfTheLogitOfALoneKeyIsExactlyZero) {
  MhaProblem problem(
      {.cu_seqlens_q = {0, 4}, .cu_seqlens_k = {0, 1}, .total_q = 4, .total_k = 1, .d_v = 128});
  run(problem.forward());
  run(problem.backward());
  for (std::int64_t c = 0; c < 64; ++c) {
    for (std::int64_t row = 0; row < 4; ++row) ASSERT_EQ(problem.d_q.at({row, 1, c}), 0);
    ASSERT_EQ(problem.d_k.at({0, 1, c}), 0);
  }
}

TEST_P(MhaGradient, OfRowsThatNoSequenceCoversIsZero) {
  MhaProblem problem({.cu_seqlens_q = {2, 5}, .cu_seqlens_k = {3, 7}, .total_q = 8, .total_k = 11});
  run(problem.forward());
  run(problem.backward());
  problem.expect_gradients();
  for (const std::int64_t row : {0, 1, 2, 7, 10}) {
    for (std::int64_t c = 0; c < 32; ++c) ASSERT_EQ(problem.d_v.at({row, 0, c}), 0) << row;
    for (std::int64_t c = 0; c < 64; ++c) ASSERT_EQ(problem.d_k.at({row, 0, c}), 0) << row;
  }
}

TEST_P(MhaGradient, OfASequenceWithoutQueriesIsZero) {
  MhaProblem problem({.cu_seqlens_q = {0, 0, 3}, .cu_seqlens_k = {0, 4, 7}, .total_q = 3});
  run(problem.forward());
  run(problem.backward());
  problem.expect_gradients();
  EXPECT_EQ(problem.d_k.at({2, 1, 5}), 0);
}

TEST_P(MhaGradient, IsTheSameWithoutAskingForDeterminism) {
  MhaProblem problem({});
  run(problem.forward());
  MhaBackward op = problem.backward();
  op.deterministic = false;
  run(op);
  problem.expect_gradients();
}

}  // namespace
}  // namespace flashmla
