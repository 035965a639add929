// Offsets that do not fit in 32 bits: tensors far larger than memory, of which few pages exist.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "dense_problem.h"
#include "mha_problem.h"
#include "prefill_problem.h"
#include "sparse_memory.h"
#include "sparse_problem.h"

namespace flashmla {
namespace {

class LargeOffsets : public OnBackend {
 protected:
  void SetUp() override {
    if (!memory_.ok()) GTEST_SKIP() << "this system does not give out 64 GiB of address space";
  }
  SparseMemory memory_{64 * kGiB};
};

INSTANTIATE_TEST_SUITE_P(, LargeOffsets, testing::ValuesIn(backends()), backend_name);

TEST_P(LargeOffsets, BetweenBlocksOfADenseCache) {
  DenseProblem problem({.seqlens = {7}, .s_q = 2});  // 4 blocks
  DenseDecode op = problem.op();
  memory_.take(op.kv_cache, kFar);
  run(op);
  problem.expect_all_seen();
}

TEST_P(LargeOffsets, BetweenBlocksOfASparseCache) {
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8V32, KvFormat::kFp8Model1}) {
    SCOPED_TRACE(std::string(name_of(format)));
    SparseProblem problem({.h_q = 2, .format = format, .extra_topk = 4});
    problem.select_at_random();
    SparseDecode op = problem.op();
    memory_.take(op.kv_cache, kFar);
    run(op);
    problem.expect_all_seen();
    op = problem.op();
    memory_.take(op.extra_kv_cache, kFar);
    run(op);
    problem.expect_all_seen();
  }
}

TEST_P(LargeOffsets, BetweenRowsOfPrefill) {
  PrefillProblem problem({.s_q = 3, .s_kv = 7});
  problem.select_at_random();
  SparsePrefill op = problem.op();
  memory_.take(op.kv, kFar);
  run(op);
  problem.expect_all_seen();
}

TEST_P(LargeOffsets, BetweenRowsOfIndices) {
  PrefillProblem problem({.s_q = 3});
  problem.select_at_random();
  SparsePrefill op = problem.op();
  memory_.take(op.indices, kFar);
  run(op);
  problem.expect_all_seen();
}

TEST_P(LargeOffsets, BetweenRowsOfQueriesAndOutputs) {
  PrefillProblem problem({.s_q = 3});
  problem.select_at_random();
  SparsePrefill op = problem.op();
  memory_.take(op.q, kFar);
  const TensorView packed_out = op.out;
  op.out.data = op.q.as<std::uint16_t>() + 4096;
  op.out.strides[0] = kFar;
  run(op);
  cases::copy_elements(op.out, packed_out);
  problem.expect_all_seen();
}

TEST_P(LargeOffsets, BetweenRowsOfMha) {
  MhaProblem problem({.cu_seqlens_q = {0, 3}, .cu_seqlens_k = {0, 6}, .total_q = 3, .total_k = 6});
  MhaForward op = problem.forward();
  memory_.take(op.k, kFar);
  run(op);
  problem.expect_all_seen();
  op = problem.forward();
  memory_.take(op.v, kFar);
  run(op);
  problem.expect_all_seen();
}

TEST_P(LargeOffsets, BetweenBlocksWhenAppending) {
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8V32, KvFormat::kFp8Model1}) {
    const std::int64_t d_latent = format == KvFormat::kFp8Model1 ? 448 : 512;
    cases::Random random(1);
    const cases::Tensor latent(DataType::kBf16, {2, d_latent});
    const cases::Tensor rope(DataType::kBf16, {2, 64});
    cases::Tensor slots(DataType::kI64, {2});
    fill_random(latent, random);
    fill_random(rope, random);
    slots.set({0}, 9);
    slots.set({1}, 2);
    const cases::Tensor near = make_cache(format, 3, 4, 1, d_latent + 64);
    AppendKv op;
    op.latent = latent.view();
    op.rope = rope.view();
    op.slot_mapping = slots.view();
    op.kv_cache = near.view();
    memory_.take(op.kv_cache, kFar);
    run(op);
    const TensorView far = op.kv_cache;
    op.kv_cache = near.view();
    run(op);
    for (const std::int64_t token : {2, 9})
      EXPECT_EQ(token_row(far, token, 0), token_row(near.view(), token, 0));
  }
}

TEST_P(LargeOffsets, OfTokenNumbersUpToTheLargestIndex) {
  // 2^32 tokens that share one row: every index from 0 to INT_MAX is valid.
  SparseProblem problem({.topk = 5});
  problem.write({0});
  problem.select(0, 0, {kIntMax, -1, 0, kIntMin, kIntMax - 1});
  SparseDecode op = problem.op();
  op.kv_cache.shape = {1 << 20, 1 << 12, 1, 64, 0};
  op.kv_cache.strides = {0, 0, 0, 1, 0};
  run(op);
  problem.expect_seen([](std::int64_t, std::int64_t) { return Selection{{0, 0, 0}, {}}; });
}

}  // namespace
}  // namespace flashmla
