// Index values of every kind: what is out of range is masked, and no memory outside the tensors is touched.
#include <gtest/gtest.h>

#include <vector>

#include "dense_problem.h"
#include "mha_problem.h"
#include "prefill_problem.h"
#include "sparse_problem.h"

namespace flashmla {
namespace {

FLASHMLA_ON_EVERY_BACKEND(BlockTable);
FLASHMLA_ON_EVERY_BACKEND(CacheSeqlens);
FLASHMLA_ON_EVERY_BACKEND(CuSeqlens);
FLASHMLA_ON_EVERY_BACKEND(MemorySafety);

constexpr std::int64_t kHostile[] = {kIntMin, kIntMin + 1, -(1 << 20),  -5,     -1, 0, 1, 2, 3, 7, 100, 65536,
                                     1 << 24, 1 << 30,     kIntMax - 1, kIntMax};

void fill_hostile(const cases::Tensor& tensor, cases::Random& random) {
  cases::for_each_index(tensor.view(), [&](std::span<const std::int64_t> index) {
    cases::set_element(tensor.view(), index, static_cast<double>(kHostile[random.between(0, 15)]));
  });
}

TEST_P(BlockTable, TokensOfABlockThatDoesNotExistAreMasked) {
  DenseProblem problem({.seqlens = {14, 10}, .s_q = 2});
  const auto blocks = static_cast<double>(problem.kv_cache.view().shape[0]);
  problem.block_table.set({0, 1}, 2147483647.0);
  problem.block_table.set({0, 3}, -5);
  problem.block_table.set({1, 0}, blocks);
  problem.block_table.set({1, 2}, -1);
  run(problem.op());
  problem.expect_seen([](std::int64_t b, std::int64_t) {
    return b == 0 ? Positions{0, 1, 2, 3, 8, 9, 10, 11} : Positions{4, 5, 6, 7};
  });
}

TEST_P(BlockTable, WithNoBlockThatExistsMakesTheQueryLonely) {
  DenseProblem problem({.seqlens = {9}});
  for (const std::int64_t i : {0, 1, 2}) problem.block_table.set({0, i}, -1);
  run(problem.op());
  problem.expect_seen([](std::int64_t, std::int64_t) { return Positions{}; });
}

TEST_P(BlockTable, KeepsItsPositionsUnderTheCausalMask) {
  DenseProblem problem({.seqlens = {10}, .s_q = 4});
  problem.causal = true;
  problem.block_table.set({0, 1}, 1e6);
  run(problem.op());
  problem.expect_seen([](std::int64_t, std::int64_t i) {
    Positions seen{0, 1, 2, 3};  // of 7 + i positions; 4 to 7 are masked
    for (std::int64_t t = 8; t < 7 + i; ++t) seen.push_back(t);
    return seen;
  });
}

TEST_P(BlockTable, MayListABlockTwice) {
  DenseProblem problem({.seqlens = {8}});
  problem.block_table.set({0, 1}, problem.block_table.at({0, 0}));
  run(problem.op());
  problem.expect_seen([](std::int64_t, std::int64_t) { return Positions{0, 1, 2, 3, 0, 1, 2, 3}; });
}

TEST_P(CacheSeqlens, BelowZeroCountAsZero) {
  DenseProblem problem({.seqlens = {9, 5, 6}, .s_q = 2});
  problem.cache_seqlens.set({0}, -1);
  problem.cache_seqlens.set({2}, -2147483648.0);
  for (const bool causal : {false, true}) {
    problem.causal = causal;
    run(problem.op());
    problem.expect_seen(
        [&](std::int64_t b, std::int64_t i) { return first(b == 1 ? (causal ? 4 + i : 5) : 0); });
  }
}

TEST_P(CacheSeqlens, BeyondTheBlockTableEndThere) {
  for (const double length : {17.0, 1e6, 2147483647.0}) {
    DenseProblem problem({.seqlens = {16, 3}, .s_q = 3});
    DenseDecode op = problem.op();
    op.block_table.shape[1] = 4;  // 4 blocks of 4 tokens
    problem.cache_seqlens.set({0}, length);
    for (const bool causal : {false, true}) {
      op.causal = causal;
      run(op);
      problem.expect_seen([&](std::int64_t b, std::int64_t i) {
        const std::int64_t whole = b == 0 ? 16 : 3;
        return first(causal ? whole - 2 + i : whole);
      });
    }
  }
}

TEST_P(CuSeqlens, OutsideTheTensorsAreClamped) {
  const std::vector<std::vector<std::int64_t>> bounds = {
      {0, 5, 3, 100}, {-7, 3, kIntMax, 8}, {kIntMin, kIntMin, 4, 8}, {0, 100, 2, 5}, {6, 2, 7, 7},
      {9, 9, 9, 9},   {8, 0, 0, 8},        {0, kIntMin, 8, kIntMin}, {3, 3, 3, 3}};
  for (const auto& q_bounds : bounds) {
    for (const auto& k_bounds : bounds) {
      MhaProblem problem({.cu_seqlens_q = q_bounds,
                          .cu_seqlens_k = k_bounds,
                          .total_q = 8,
                          .total_k = 8,
                          .h_q = 1,
                          .h_kv = 1,
                          .d_qk = 16,
                          .d_v = 8});
      for (const bool causal : {false, true}) {
        problem.causal = causal;
        run(problem.forward());
        problem.expect_all_seen();
        run(problem.backward());
        if (!problem.gradients_vanish()) problem.expect_gradients();
      }
      if (HasFailure()) FAIL() << cases::to_string(q_bounds) << " " << cases::to_string(k_bounds);
    }
  }
}

TEST_P(CuSeqlens, OutOfOrderGiveTheDocumentedSequences) {
  // What the rule means, without the rule's code: {0, 5, 3, 100} over 8 rows is {0, 5, 5, 8}.
  MhaProblem problem(
      {.cu_seqlens_q = {0, 5, 3, 100}, .cu_seqlens_k = {-4, 2, 2, 6}, .total_q = 8, .total_k = 8});
  run(problem.forward());
  problem.expect_seen([](std::int64_t row) { return row < 5 ? Positions{0, 1} : Positions{2, 3, 4, 5}; });
}

// The following prove something only when memory errors are caught, as AddressSanitizer does; without it
// a wild access still crashes.

TEST_P(MemorySafety, HoldsForAnyBlockTableAndLengths) {
  cases::Random random(5);
  for (int round = 0; round < 40; ++round) {
    DenseProblem problem({.seqlens = {9, 33, 2}, .s_q = 2, .h_q = 2, .d_qk = 16, .d_v = 8});
    fill_hostile(problem.block_table, random);
    fill_hostile(problem.cache_seqlens, random);
    problem.causal = random.chance(0.5);
    problem.split_size = random.between(0, 2) * 5;
    run(problem.op());
  }
}

TEST_P(MemorySafety, HoldsForAnyIndices) {
  cases::Random random(6);
  for (int round = 0; round < 40; ++round) {
    const KvFormat formats[] = {KvFormat::kBf16, KvFormat::kFp8V32, KvFormat::kFp8Model1};
    SparseProblem problem({.batch = 3, .h_q = 2, .format = formats[round % 3], .extra_topk = 5});
    problem.topk_length = int_vector({0, 0, 0});
    problem.extra_topk_length = int_vector({0, 0, 0});
    for (const cases::Tensor* tensor :
         {&problem.indices, &problem.topk_length, &problem.extra_indices, &problem.extra_topk_length}) {
      fill_hostile(*tensor, random);
    }
    problem.split_size = random.between(0, 2) * 3;
    run(problem.op());

    PrefillProblem prefill({.s_q = 5, .h_q = 4, .h_kv = 2});
    prefill.topk_length = int_vector({0, 0, 0, 0, 0});
    fill_hostile(prefill.indices, random);
    fill_hostile(prefill.topk_length, random);
    run(prefill.op());
  }
}

TEST_P(MemorySafety, HoldsForAnyCuSeqlens) {
  cases::Random random(7);
  for (int round = 0; round < 40; ++round) {
    MhaProblem problem({.cu_seqlens_q = {0, 1, 2, 3}, .cu_seqlens_k = {0, 1, 2, 3}, .d_qk = 16, .d_v = 8});
    fill_hostile(problem.cu_seqlens_q, random);
    fill_hostile(problem.cu_seqlens_k, random);
    problem.causal = random.chance(0.5);
    run(problem.forward());
    run(problem.backward());
  }
}

TEST_P(MemorySafety, HoldsForAnySlots) {
  cases::Random random(8);
  for (int round = 0; round < 20; ++round) {
    const cases::Tensor cache = cases::fp8_cache(KvFormat::kFp8Model1, 2, 2);
    const cases::Tensor latent(DataType::kBf16, {6, 448});
    const cases::Tensor rope(DataType::kBf16, {6, 64});
    const cases::Tensor slots(round % 2 == 0 ? DataType::kI32 : DataType::kI64, {6});
    fill_hostile(slots, random);
    AppendKv op;
    op.latent = latent.view();
    op.rope = rope.view();
    op.slot_mapping = slots.view();
    op.kv_cache = cache.view();
    run(op);
  }
}

}  // namespace
}  // namespace flashmla
