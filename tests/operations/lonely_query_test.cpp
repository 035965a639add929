// Queries that see no key.
#include <gtest/gtest.h>

#include <cmath>

#include "dense_problem.h"
#include "mha_problem.h"
#include "prefill_problem.h"
#include "sparse_problem.h"

namespace flashmla {
namespace {

FLASHMLA_ON_EVERY_BACKEND(LonelyQuery);

/// Exactly zero everywhere.
void expect_zero(const cases::Tensor& tensor) {
  cases::for_each_index(tensor.view(), [&](std::span<const std::int64_t> index) {
    ASSERT_EQ(cases::element(tensor.view(), index), 0.0) << cases::to_string(index);
  });
}

void expect_all(const cases::Tensor& tensor, double value) {
  cases::for_each_index(tensor.view(), [&](std::span<const std::int64_t> index) {
    ASSERT_EQ(cases::element(tensor.view(), index), value) << cases::to_string(index);
  });
}

TEST_P(LonelyQuery, HasZeroOutAndInfiniteLseForLengthZero) {
  DenseProblem problem({.seqlens = {0, 0, 0}, .s_q = 2, .h_q = 5});
  run(problem.op());
  expect_zero(problem.out);
  expect_all(problem.lse, kInfinity);
}

TEST_P(LonelyQuery, StandsBesideOthersInABatch) {
  DenseProblem problem({.seqlens = {0, 9, 0, 100, 0}, .s_q = 2});
  run(problem.op());
  problem.expect_all_seen();
}

TEST_P(LonelyQuery, IsEveryQueryOverACacheWithoutBlocks) {
  DenseProblem problem({.seqlens = {9}});
  DenseDecode op = problem.op();
  op.kv_cache.shape[0] = 0;
  op.kv_cache.data = nullptr;
  run(op);
  expect_zero(problem.out);
  expect_all(problem.lse, kInfinity);
}

TEST_P(LonelyQuery, IsEveryQueryWithABlockTableWithoutColumns) {
  DenseProblem problem({.seqlens = {9}});
  DenseDecode op = problem.op();
  op.block_table.shape[1] = 0;
  run(op);
  expect_zero(problem.out);
  expect_all(problem.lse, kInfinity);
}

TEST_P(LonelyQuery, HasOnlyInvalidIndices) {
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8V32, KvFormat::kFp8Model1}) {
    SparseProblem problem({.batch = 2, .s_q = 2, .format = format});
    problem.select(0, 1, {-1, kIntMin, kIntMax, 24, 25, -2, 1000, 65536});
    run(problem.op());
    expect_zero(problem.out);
    expect_all(problem.lse, kInfinity);
  }
}

TEST_P(LonelyQuery, HasTopkLengthZero) {
  SparseProblem problem({.batch = 2, .extra_topk = 4});
  problem.select_at_random();
  problem.topk_length = int_vector({0, 0});
  problem.extra_topk_length = int_vector({0, 0});
  run(problem.op());
  expect_zero(problem.out);
  expect_all(problem.lse, kInfinity);
}

TEST_P(LonelyQuery, IsNotOneThatSeesTheExtraCacheAlone) {
  SparseProblem problem({.extra_topk = 4});
  problem.select_extra(0, 0, {2, 7});
  problem.write_extra({2, 7});
  run(problem.op());
  problem.expect_seen([](std::int64_t, std::int64_t) { return Selection{{}, {2, 7}}; });
}

TEST_P(LonelyQuery, HasMaxLogitsOfMinusInfinityInPrefill) {
  PrefillProblem problem({.s_q = 3, .h_q = 6, .h_kv = 2});
  problem.select(0, {24, 1000, kIntMax, kIntMin, -5});
  run(problem.op());
  expect_zero(problem.out);
  expect_all(problem.lse, kInfinity);
  expect_all(problem.max_logits, -kInfinity);
}

TEST_P(LonelyQuery, IsEveryQueryOverNoRowsInPrefill) {
  PrefillProblem problem({});
  problem.select(0, {0, 1});
  SparsePrefill op = problem.op();
  op.kv.shape[0] = 0;
  op.kv.data = nullptr;
  run(op);
  expect_zero(problem.out);
  expect_all(problem.lse, kInfinity);
  expect_all(problem.max_logits, -kInfinity);
}

TEST_P(LonelyQuery, StaysZeroWithASink) {
  SparseProblem sparse({.h_q = 4});
  sparse.attn_sink = float_vector({0.5, kInfinity, -kInfinity, 100});
  run(sparse.op());
  expect_zero(sparse.out);
  expect_all(sparse.lse, kInfinity);

  PrefillProblem prefill({.h_q = 4});
  prefill.attn_sink = float_vector({0.5, kInfinity, -kInfinity, -100});
  run(prefill.op());
  expect_zero(prefill.out);
  expect_all(prefill.lse, kInfinity);
  expect_all(prefill.max_logits, -kInfinity);
}

TEST_P(LonelyQuery, HasASequenceWithoutKeysInMha) {
  MhaProblem problem({.cu_seqlens_q = {0, 3, 5}, .cu_seqlens_k = {0, 0, 7}});
  run(problem.forward());
  problem.expect_all_seen();
  EXPECT_EQ(problem.lse.at({2, 1}), kInfinity);
  EXPECT_EQ(problem.out.at({2, 1, 31}), 0);
}

TEST_P(LonelyQuery, IsARowThatNoSequenceCovers) {
  MhaProblem problem({.cu_seqlens_q = {2, 4}, .cu_seqlens_k = {1, 6}, .total_q = 7});
  run(problem.forward());
  problem.expect_all_seen();
  for (const std::int64_t row : {0, 1, 4, 5, 6}) {
    EXPECT_EQ(problem.lse.at({row, 0}), kInfinity);
    EXPECT_EQ(problem.out.at({row, 0, 0}), 0);
  }
}

TEST_P(LonelyQuery, IsEveryRowWithoutSequences) {
  MhaProblem problem({.cu_seqlens_q = {0}, .cu_seqlens_k = {0}});
  run(problem.forward());
  expect_zero(problem.out);
  expect_all(problem.lse, kInfinity);
  run(problem.backward());
  expect_zero(problem.d_q);
  expect_zero(problem.d_k);
  expect_zero(problem.d_v);
}

}  // namespace
}  // namespace flashmla
