// Shapes and layouts: heads, pages, widths, types, strides, empty batches.
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "dense_problem.h"
#include "mha_problem.h"
#include "prefill_problem.h"
#include "sparse_problem.h"

namespace flashmla {
namespace {

FLASHMLA_ON_EVERY_BACKEND(HeadCounts);
FLASHMLA_ON_EVERY_BACKEND(KeyCounts);
FLASHMLA_ON_EVERY_BACKEND(QueryCounts);
FLASHMLA_ON_EVERY_BACKEND(PageSizes);
FLASHMLA_ON_EVERY_BACKEND(Widths);
FLASHMLA_ON_EVERY_BACKEND(Strides);
FLASHMLA_ON_EVERY_BACKEND(EmptyBatch);

constexpr std::int64_t kHeads[] = {1, 3, 7, 17, 33, 127, 128};

TEST_P(HeadCounts, OfAnyNumberWorkInDenseDecode) {
  for (const std::int64_t heads : kHeads) {
    DenseProblem problem({.seqlens = {21, 4}, .s_q = 2, .h_q = heads});
    run(problem.op());
    problem.expect_all_seen();
  }
}

TEST_P(KeyCounts, AroundTheBlocksOfEveryKernelWork) {
  for (const std::int64_t heads : {1, 20}) {
    for (const std::int64_t keys : {63, 64, 65, 95, 96, 97, 255, 256, 257, 511, 513, 1030}) {
      DenseProblem problem({.seqlens = {keys}, .s_q = 2, .h_q = heads, .page = 16});
      problem.causal = true;
      run(problem.op());
      problem.expect_seen([&](std::int64_t, std::int64_t i) { return first(keys - 1 + i); });
    }
  }
}

TEST_P(KeyCounts, AroundTheBlocksOfEveryKernelWorkInMha) {
  for (const std::int64_t keys : {95, 97, 127, 129, 255, 257, 300}) {
    MhaProblem problem({.cu_seqlens_q = {0, 100},
                        .cu_seqlens_k = {0, keys},
                        .total_q = 100,
                        .total_k = keys,
                        .h_q = 1,
                        .h_kv = 1,
                        .d_qk = 24,
                        .d_v = 16});
    run(problem.forward());
    problem.expect_all_seen();
    run(problem.backward());
    problem.expect_gradients();
  }
}

TEST_P(HeadCounts, OfAnyNumberWorkInSparseDecode) {
  for (const std::int64_t heads : kHeads) {
    SparseProblem problem({.s_q = 2, .h_q = heads, .format = KvFormat::kFp8Model1});
    problem.select_at_random();
    run(problem.op());
    problem.expect_all_seen();
  }
}

TEST_P(HeadCounts, OfAnyNumberWorkInSparsePrefill) {
  for (const std::int64_t heads : kHeads) {
    PrefillProblem problem({.h_q = heads});
    problem.select_at_random();
    run(problem.op());
    problem.expect_all_seen();
  }
}

TEST_P(HeadCounts, OfAnyNumberWorkInMha) {
  for (const std::int64_t heads : kHeads) {
    MhaProblem problem({.h_q = heads, .h_kv = heads, .d_qk = 24, .d_v = 16});
    run(problem.forward());
    problem.expect_all_seen();
    run(problem.backward());
    problem.expect_gradients();
  }
}

TEST_P(HeadCounts, MayShareSeveralKvHeads) {
  for (const std::int64_t h_kv : {1, 2, 3, 4, 6, 12}) {
    DenseProblem dense({.seqlens = {13}, .s_q = 3, .h_q = 12, .h_kv = h_kv});
    dense.causal = true;
    run(dense.op());
    dense.expect_seen([](std::int64_t, std::int64_t i) { return first(11 + i); });

    SparseProblem sparse({.h_q = 12, .h_kv = h_kv, .format = KvFormat::kF16, .extra_topk = 3});
    sparse.select_at_random();
    run(sparse.op());
    sparse.expect_all_seen();

    PrefillProblem prefill({.h_q = 12, .h_kv = h_kv});
    prefill.select_at_random();
    run(prefill.op());
    prefill.expect_all_seen();

    MhaProblem mha({.h_q = 12, .h_kv = h_kv});
    run(mha.forward());
    mha.expect_all_seen();
  }
}

TEST_P(QueryCounts, OfAMillionWorkInSparsePrefill) {
  constexpr std::int64_t kQueries = 1'000'000;
  PrefillProblem problem({.s_q = kQueries, .s_kv = 3, .h_q = 1, .d_qk = 8, .d_v = 8, .topk = 1});
  problem.write({0, 1, 2});
  for (std::int64_t i = 0; i < kQueries; ++i) problem.indices.view().as<std::int32_t>()[i] = i % 3;
  run(problem.op());
  // The value of the one key, whatever the query: rounded to 16 bits as it was.
  const auto* out = problem.out.view().as<const std::uint16_t>();
  const auto* kv = problem.kv.view().as<const std::uint16_t>();
  for (std::int64_t i = 0; i < kQueries; ++i) {
    ASSERT_EQ(std::memcmp(out + i * 8, kv + i % 3 * 8, 16), 0) << i;
  }
}

TEST_P(PageSizes, OfAnyNumberOfTokensWorkInDenseDecode) {
  for (const std::int64_t page : {1, 3, 61, 64, 128}) {
    DenseProblem problem({.seqlens = {130, 61, 1}, .s_q = 2, .page = page});
    run(problem.op());
    problem.expect_all_seen();
  }
}

TEST_P(PageSizes, OfAnyNumberOfTokensWorkInSparseDecode) {
  for (const std::int64_t page : {1, 3, 61, 64, 128}) {
    for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8V32, KvFormat::kFp8Model1}) {
      SCOPED_TRACE(std::string(name_of(format)) + " " + std::to_string(page));
      SparseProblem problem({.h_q = 2, .format = format, .page = page, .blocks = 3, .topk = 20});
      problem.select_at_random();
      run(problem.op());
      problem.expect_all_seen();
    }
  }
}

TEST_P(Widths, OfEveryModelWork) {
  const std::int64_t widths[][2] = {{576, 512}, {512, 512}, {192, 128}, {128, 128},
                                    {64, 64},   {40, 24},   {8, 8}};
  for (const auto& [d_qk, d_v] : widths) {
    for (const DataType type : {DataType::kBf16, DataType::kF16}) {
      SCOPED_TRACE(std::to_string(d_qk) + " " + std::string(name_of(type)));
      DenseProblem dense(
          {.seqlens = {70, 3}, .s_q = 2, .h_q = 5, .d_qk = d_qk, .d_v = d_v, .page = 16, .type = type});
      run(dense.op());
      dense.expect_all_seen();

      PrefillProblem prefill({.h_q = 5, .d_qk = d_qk, .d_v = d_v, .topk = 70, .type = type});
      prefill.select_at_random();
      run(prefill.op());
      prefill.expect_all_seen();

      MhaProblem mha({.d_qk = d_qk, .d_v = d_v, .type = type});
      run(mha.forward());
      mha.expect_all_seen();
      run(mha.backward());
      mha.expect_gradients();
    }
  }
}

TEST_P(Widths, OfValuesMayExceedThoseOfKeysInMha) {
  MhaProblem problem({.d_qk = 16, .d_v = 48});
  run(problem.forward());
  problem.expect_all_seen();
  run(problem.backward());
  problem.expect_gradients();
}

/// A copy with other strides.
cases::Tensor with_strides(const cases::Tensor& tensor, const std::vector<std::int64_t>& strides) {
  cases::Tensor result(tensor.type(), tensor.shape(), strides);
  cases::copy_elements(tensor.view(), result.view());
  return result;
}

/// Every byte that is no element still has the value 0xff.
void expect_gaps_untouched(const cases::Tensor& tensor) {
  cases::Tensor copy = tensor;
  const std::size_t size = size_of(copy.type());
  cases::for_each_index(copy.view(), [&](std::span<const std::int64_t> index) {
    const auto at = static_cast<std::size_t>(cases::offset_of(copy.view(), index)) * size;
    std::memset(&copy.memory()[at], 0xff, size);
  });
  for (const std::byte byte : copy.memory()) ASSERT_EQ(byte, std::byte{0xff});
}

TEST_P(Strides, OfEveryTensorOfDenseDecodeAreFree) {
  DenseProblem problem({.seqlens = {21, 9}, .s_q = 3, .h_q = 4, .h_kv = 2, .page = 8});
  problem.causal = true;
  run(problem.op());
  const cases::Tensor packed_out = problem.out;
  const cases::Tensor packed_lse = problem.lse;

  problem.q = with_strides(problem.q, {72, 72 * 2, 72 * 6, 1});
  problem.kv_cache = with_strides(problem.kv_cache, {72 * 17, 72, 72 * 8, 1});
  problem.block_table = with_strides(problem.block_table, {11, 1});
  problem.out = cases::Tensor(DataType::kBf16, packed_out.shape(), {40 * 12, 40, 40 * 3, 1});
  problem.lse = cases::Tensor(DataType::kF32, packed_lse.shape(), {50, 5, 1});
  run(problem.op());
  expect_close("dense_decode", "out", problem.out, packed_out);
  problem.expect_seen(
      [&](std::int64_t b, std::int64_t i) { return first(problem.sizes.seqlens[std::size_t(b)] - 2 + i); });
  expect_gaps_untouched(problem.out);
  expect_gaps_untouched(problem.lse);
}

TEST_P(Strides, OfHeadsMayBeZero) {
  // All heads share one query, so that blocks of rows may begin with the same row and be different ones.
  DenseProblem problem({.seqlens = {30}, .s_q = 4, .h_q = 48});
  for (std::int64_t i = 0; i < 4; ++i) {
    for (std::int64_t head = 1; head < 48; ++head) {
      set_row(problem.q.view(), {0, i, head}, row_at(problem.q.view(), {0, i, 0}));
    }
  }
  DenseDecode op = problem.op();
  op.q.strides[2] = 0;
  constexpr int kRuns = 20;  // which thread gets which block is chance
  for (int i = 0; i < kRuns; ++i) {
    run(op, 8);
    problem.expect_all_seen();
  }
}

TEST_P(Strides, OfACacheMayBeThoseOfASlice) {
  // Layer 1 of a cache [blocks, layers, page, h_kv, d_qk], and heads 2 and 3 of four.
  DenseProblem problem({.seqlens = {21, 9}, .h_q = 4, .h_kv = 2, .page = 8});
  const TensorView cache = problem.kv_cache.view();
  cases::Tensor layers(DataType::kBf16, {cache.shape[0], 3, 8, 4, 64});
  DenseDecode op = problem.op();
  op.kv_cache.data = layers.view().as<std::uint16_t>() + 1 * (8 * 4 * 64) + 2 * 64;
  op.kv_cache.strides = {3 * 8 * 4 * 64, 4 * 64, 64, 1, 0};
  cases::copy_elements(cache, op.kv_cache);
  run(op);
  problem.expect_all_seen();
}

TEST_P(Strides, OfAnFp8CacheMayLeaveARowBetweenBlocks) {
  for (const KvFormat format : {KvFormat::kFp8V32, KvFormat::kFp8Model1}) {
    SparseProblem problem({.h_q = 2, .format = format, .page = 5});
    const std::int64_t row = format == KvFormat::kFp8V32 ? 656 : 584;
    problem.kv_cache = cases::fp8_cache(format, 6, 5, (6 * row + 15) / 16 * 16);
    problem.select_at_random();
    run(problem.op());
    problem.expect_all_seen();
  }
}

TEST_P(Strides, OfAnFp8V32CacheMayPadItsRows) {
  SparseProblem problem({.h_q = 2, .format = KvFormat::kFp8V32, .page = 5});
  problem.kv_cache = cases::Tensor(DataType::kU8, {6, 5, 1, 656}, {5 * 672 + 32, 672, 672, 1});
  problem.select_at_random();
  run(problem.op());
  problem.expect_all_seen();
}

TEST_P(Strides, OfEveryTensorOfSparseDecodeAreFree) {
  SparseProblem problem({.batch = 2, .s_q = 2, .h_q = 4, .extra_topk = 5});
  problem.select_at_random();
  problem.q = with_strides(problem.q, {72 * 8, 72, 72 * 2, 1});
  problem.indices = with_strides(problem.indices, {9, 18, 1});
  problem.extra_indices = with_strides(problem.extra_indices, {20, 7, 1});
  problem.kv_cache = with_strides(problem.kv_cache, {72 * 5, 72, 8, 1});
  problem.out = cases::Tensor(DataType::kBf16, problem.out.shape(), {40, 40 * 2, 40 * 4, 1});
  problem.lse = cases::Tensor(DataType::kF32, problem.lse.shape(), {2, 5, 1});
  run(problem.op());
  problem.expect_all_seen();
  expect_gaps_untouched(problem.out);
  expect_gaps_untouched(problem.lse);
}

TEST_P(Strides, OfEveryTensorOfSparsePrefillAreFree) {
  PrefillProblem problem({.s_q = 3, .h_q = 4, .h_kv = 2});
  problem.select_at_random();
  problem.q = with_strides(problem.q, {72, 72 * 3, 1});
  problem.kv = with_strides(problem.kv, {72, 72 * 24, 1});
  problem.indices = with_strides(problem.indices, {9, 30, 1});
  problem.out = cases::Tensor(DataType::kBf16, problem.out.shape(), {40, 40 * 3, 1});
  problem.lse = cases::Tensor(DataType::kF32, problem.lse.shape(), {7, 1});
  problem.max_logits = cases::Tensor(DataType::kF32, problem.lse.shape(), {5, 1});
  run(problem.op());
  problem.expect_all_seen();
  expect_gaps_untouched(problem.out);
  expect_gaps_untouched(problem.lse);
  expect_gaps_untouched(problem.max_logits);
}

TEST_P(Strides, OfEveryTensorOfMhaAreFree) {
  MhaProblem problem({.h_q = 4, .h_kv = 2});
  problem.q = with_strides(problem.q, {72, 72 * 5, 1});
  problem.k = with_strides(problem.k, {72 * 2, 72, 1});
  problem.v = with_strides(problem.v, {40, 40 * 7, 1});
  problem.d_out = with_strides(problem.d_out, {40 * 5, 48, 1});
  problem.out = cases::Tensor(DataType::kBf16, problem.out.shape(), {40, 40 * 5, 1});
  problem.lse = cases::Tensor(DataType::kF32, problem.lse.shape(), {9, 1});
  problem.d_q = cases::Tensor(DataType::kBf16, problem.q.shape(), {72 * 4, 72, 1});
  problem.d_k = cases::Tensor(DataType::kBf16, problem.k.shape(), {72, 72 * 7, 1});
  problem.d_v = cases::Tensor(DataType::kBf16, problem.v.shape(), {40 * 2, 40, 1});
  run(problem.forward());
  problem.expect_all_seen();
  run(problem.backward());
  problem.expect_gradients();
  for (const cases::Tensor* tensor : {&problem.out, &problem.lse, &problem.d_q, &problem.d_k, &problem.d_v}) {
    expect_gaps_untouched(*tensor);
  }
}

TEST_P(Strides, OfInputsMayBeZeroOrNegative) {
  DenseProblem problem({.seqlens = {12}, .s_q = 3, .h_q = 4});
  DenseDecode op = problem.op();
  // All queries are the first one; the blocks of the cache lie in reverse order.
  for (std::int64_t i = 1; i < 3; ++i) {
    for (std::int64_t head = 0; head < 4; ++head) {
      set_row(problem.q.view(), {0, i, head}, row_at(problem.q.view(), {0, 0, head}));
    }
  }
  op.q.strides[1] = 0;
  cases::Tensor reversed(DataType::kBf16, problem.kv_cache.shape());
  const std::int64_t blocks = op.kv_cache.shape[0];
  op.kv_cache.data = reversed.view().as<std::uint16_t>() + (blocks - 1) * op.kv_cache.strides[0];
  op.kv_cache.strides[0] = -op.kv_cache.strides[0];
  cases::copy_elements(problem.kv_cache.view(), op.kv_cache);
  run(op);
  problem.expect_all_seen();
}

TEST_P(EmptyBatch, IsANoOp) {
  DenseProblem dense({.seqlens = {9}});
  DenseDecode decode = dense.op();
  for (TensorView* view : {&decode.q, &decode.block_table, &decode.cache_seqlens, &decode.out, &decode.lse}) {
    view->shape[0] = 0;
  }
  const auto untouched = bytes_of(dense.out);
  run(decode);
  EXPECT_EQ(bytes_of(dense.out), untouched);

  SparseProblem sparse({});
  SparseDecode sparse_decode = sparse.op();
  for (TensorView* view :
       {&sparse_decode.q, &sparse_decode.indices, &sparse_decode.out, &sparse_decode.lse}) {
    view->shape[0] = 0;
    view->data = nullptr;
  }
  run(sparse_decode);

  PrefillProblem prefill({});
  SparsePrefill sparse_prefill = prefill.op();
  for (TensorView* view : {&sparse_prefill.q, &sparse_prefill.indices, &sparse_prefill.out,
                           &sparse_prefill.max_logits, &sparse_prefill.lse}) {
    view->shape[0] = 0;
    view->data = nullptr;
  }
  run(sparse_prefill);

  MhaProblem mha({});
  MhaForward forward = mha.forward();
  for (TensorView* view : {&forward.q, &forward.out, &forward.lse}) view->shape[0] = 0;
  run(forward);
}

TEST_P(EmptyBatch, IsANoOpForCachesAndStates) {
  const cases::Tensor kv(DataType::kBf16, {0, 4, 1, 576});
  const cases::Tensor cache(DataType::kU8, {0, 4, 1, 656});
  QuantizeKv quantize;
  quantize.kv = kv.view();
  quantize.kv_cache = cache.view();
  run(quantize);
  DequantizeKv dequantize;
  dequantize.kv = kv.view();
  dequantize.kv_cache = cache.view();
  run(dequantize);

  const cases::Tensor full(DataType::kU8, {2, 4, 1, 656});
  const cases::Tensor latent(DataType::kBf16, {0, 512});
  const cases::Tensor rope(DataType::kBf16, {0, 64});
  const cases::Tensor slots(DataType::kI32, {0});
  AppendKv append;
  append.latent = latent.view();
  append.rope = rope.view();
  append.slot_mapping = slots.view();
  append.kv_cache = full.view();
  const auto untouched = bytes_of(full);
  run(append);
  EXPECT_EQ(bytes_of(full), untouched);

  const cases::Tensor out(DataType::kF32, {0, 1, 2, 8});
  const cases::Tensor lse(DataType::kF32, {0, 2, 1});
  const TensorView outs[] = {out.view(), out.view()};
  const TensorView lses[] = {lse.view(), lse.view()};
  MergeStates merge;
  merge.outs = outs;
  merge.lses = lses;
  merge.out = out.view();
  merge.lse = lse.view();
  run(merge);
}

}  // namespace
}  // namespace flashmla
