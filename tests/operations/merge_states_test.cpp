// Merging attention results over disjoint keys.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backends.h"
#include "cache.h"
#include "dense_problem.h"
#include "prefill_problem.h"

namespace flashmla {
namespace {

FLASHMLA_ON_EVERY_BACKEND(MergeStatesTest);

/// Some states with random values, and the operation that merges them.
struct States {
  std::vector<cases::Tensor> outs, lses;
  std::vector<TensorView> out_views, lse_views;
  cases::Tensor out, lse;

  States(int count, DataType type, DataType out_type, std::int64_t heads = 3, std::int64_t width = 24) {
    cases::Random random(11);
    for (int s = 0; s < count; ++s) {
      outs.emplace_back(type, std::vector<std::int64_t>{2, 2, heads, width});
      lses.emplace_back(DataType::kF32, std::vector<std::int64_t>{2, heads, 2});
      fill_random(outs.back(), random);
      fill_random(lses.back(), random);
    }
    out = cases::Tensor(out_type, outs[0].shape());
    lse = cases::Tensor(DataType::kF32, lses[0].shape());
  }

  MergeStates op() {
    out_views.clear();
    lse_views.clear();
    for (const cases::Tensor& tensor : outs) out_views.push_back(tensor.view());
    for (const cases::Tensor& tensor : lses) lse_views.push_back(tensor.view());
    MergeStates result;
    result.outs = out_views;
    result.lses = lse_views;
    result.out = out.view();
    result.lse = lse.view();
    return result;
  }

  /// Expects the sum of states weighted by exp(lse), over those with a finite lse.
  void expect_merged(const cases::Tensor& got_out, const cases::Tensor& got_lse) const {
    cases::Tensor expected_out(DataType::kF32, out.shape());
    cases::Tensor expected_lse(DataType::kF32, lse.shape());
    cases::for_each_index(lse.view(), [&](std::span<const std::int64_t> at) {
      double total = 0;
      Row sum(std::size_t(out.shape()[3]), 0.0);
      for (std::size_t s = 0; s < outs.size(); ++s) {
        const double state_lse = cases::element(lses[s].view(), at);
        if (!std::isfinite(state_lse)) continue;
        const double weight = std::exp(state_lse);
        const Row row = row_at(outs[s].view(), {at[0], at[2], at[1]});
        total += weight;
        for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += weight * row[c];
      }
      for (double& value : sum) value = total > 0 ? value / total : 0;
      set_row(expected_out.view(), {at[0], at[2], at[1]}, sum);
      cases::set_element(expected_lse.view(), at, total > 0 ? std::log(total) : kInfinity);
    });
    expect_close("merge_states", "out", got_out, expected_out);
    expect_close("merge_states", "lse", got_lse, expected_lse);
  }
};

TEST_P(MergeStatesTest, WeighsEachStateByItsLse) {
  for (const DataType type : {DataType::kBf16, DataType::kF16, DataType::kF32}) {
    for (const DataType out_type : {DataType::kBf16, DataType::kF16, DataType::kF32}) {
      for (const int count : {2, 3, 7}) {
        States states(count, type, out_type);
        run(states.op());
        states.expect_merged(states.out, states.lse);
      }
    }
  }
}

TEST_P(MergeStatesTest, OfEqualLseIsTheMean) {
  States states(2, DataType::kF32, DataType::kF32, 1, 8);
  for (int s = 0; s < 2; ++s) {
    set_row(states.lses[std::size_t(s)].view(), {0, 0}, {5, 5});
    set_row(states.outs[std::size_t(s)].view(), {0, 0, 0}, Row(8, s == 0 ? 1.0 : 4.0));
  }
  run(states.op());
  EXPECT_NEAR(states.out.at({0, 0, 0, 3}), 2.5, 1e-5);
  EXPECT_NEAR(states.lse.at({0, 0, 0}), 5 + std::log(2.0), 1e-5);
}

TEST_P(MergeStatesTest, OfASplitSequenceIsTheWhole) {
  // Positions 0 to 11 and 12 to 29 of the same sequence, as two calls.
  DenseProblem whole({.seqlens = {30}, .h_q = 3});
  run(whole.op());
  DenseProblem front = whole;
  front.cache_seqlens.set({0}, 12);
  run(front.op());
  DenseProblem back = whole;
  DenseDecode back_op = back.op();
  back_op.block_table.data = back_op.block_table.as<std::int32_t>() + 3;
  back_op.block_table.shape[1] -= 3;
  back.cache_seqlens.set({0}, 18);
  run(back_op);

  const TensorView outs[] = {front.out.view(), back.out.view()};
  const TensorView lses[] = {front.lse.view(), back.lse.view()};
  MergeStates merge;
  merge.outs = outs;
  merge.lses = lses;
  const cases::Tensor out(DataType::kF32, whole.out.shape());
  const cases::Tensor lse(DataType::kF32, whole.lse.shape());
  merge.out = out.view();
  merge.lse = lse.view();
  run(merge);
  cases::for_each_index(out.view(), [&](std::span<const std::int64_t> at) {
    // Two halves and the whole were each rounded to bf16.
    ASSERT_NEAR(cases::element(out.view(), at), cases::element(whole.out.view(), at), 0.02);
  });
  expect_close("dense_decode", "lse", lse, whole.lse);
}

TEST_P(MergeStatesTest, DoesNotReadStatesThatSawNothing) {
  for (const double lonely : {kInfinity, -kInfinity}) {
    States states(3, DataType::kBf16, DataType::kF32);
    for (std::int64_t head = 0; head < 3; ++head) {
      states.lses[1].set({0, head, 1}, lonely);
      set_row(states.outs[1].view(), {0, 1, head}, Row(24, std::nan("")));
    }
    states.lses[0].set({1, 2, 0}, lonely);
    set_row(states.outs[0].view(), {1, 0, 2}, Row(24, kInfinity));
    run(states.op());
    states.expect_merged(states.out, states.lse);
  }
}

TEST_P(MergeStatesTest, OfLonelyStatesAloneIsLonely) {
  States states(3, DataType::kF16, DataType::kF16);
  const double lses[] = {kInfinity, -kInfinity, kInfinity};
  for (std::size_t s = 0; s < 3; ++s) {
    states.lses[s].set({1, 1, 0}, lses[s]);
    set_row(states.outs[s].view(), {1, 0, 1}, Row(24, std::nan("")));
    states.lses[s].set({0, 0, 0}, -kInfinity);
  }
  run(states.op());
  states.expect_merged(states.out, states.lse);
  EXPECT_EQ(states.lse.at({1, 1, 0}), kInfinity);
  EXPECT_EQ(states.lse.at({0, 0, 0}), kInfinity);
  EXPECT_EQ(states.out.at({1, 0, 1, 23}), 0);
}

TEST_P(MergeStatesTest, OfLargeLsesDoesNotOverflow) {
  States states(2, DataType::kF32, DataType::kF32, 1, 8);
  set_row(states.lses[0].view(), {0, 0}, {1000, -1000});
  set_row(states.lses[1].view(), {0, 0}, {1000, -1001});
  run(states.op());
  EXPECT_NEAR(states.lse.at({0, 0, 0}), 1000 + std::log(2.0), 0.1);
  EXPECT_NEAR(states.lse.at({0, 0, 1}), -1000 + std::log1p(std::exp(-1.0)), 0.1);
  const double weight = 1 / (1 + std::exp(-1.0));
  EXPECT_NEAR(states.out.at({0, 1, 0, 2}),
              weight * states.outs[0].at({0, 1, 0, 2}) + (1 - weight) * states.outs[1].at({0, 1, 0, 2}),
              1e-3);
}

TEST_P(MergeStatesTest, MayWriteOverAnyOfItsInputs) {
  for (const DataType type : {DataType::kBf16, DataType::kF32}) {
    for (const std::size_t over : {0u, 1u, 2u}) {
      States states(3, type, type, 5, 512);
      run(states.op());
      const auto out = bytes_of(states.out);
      const auto lse = bytes_of(states.lse);
      MergeStates op = states.op();
      op.out = states.outs[over].view();
      op.lse = states.lses[over].view();
      run(op, 2);
      EXPECT_EQ(bytes_of(states.outs[over]), out);
      EXPECT_EQ(bytes_of(states.lses[over]), lse);
    }
  }
}

// The cpu backend stores what is larger than some caches past them.
TEST(LargeMergeStates, HaveTheBytesOfTheirSequencesOneByOne) {
  constexpr std::int64_t kBatch = 12;
  for (const DataType type : {DataType::kBf16, DataType::kF32}) {
    const std::vector<std::int64_t> shape = {kBatch, 3, 2000, type == DataType::kF32 ? 136 : 264};
    cases::Tensor outs[2], lses[2];
    cases::Random random(3);
    for (int s = 0; s < 2; ++s) {
      outs[s] = cases::Tensor(type, shape);
      lses[s] = cases::Tensor(DataType::kF32, {kBatch, 2000, 3});
      fill_random(lses[s], random);
      auto* bytes = outs[s].view().as<std::uint8_t>();
      for (std::size_t i = 0; i < outs[s].memory().size(); ++i) {
        bytes[i] = std::uint8_t(random.between(0, 63));  // small numbers of either type
      }
    }
    const cases::Tensor out(type, shape), lse(DataType::kF32, lses[0].shape());
    const cases::Tensor parts_out(type, shape), parts_lse(DataType::kF32, lses[0].shape());
    const auto merge = [&](const TensorView& to, const TensorView& to_lse, std::int64_t first,
                           std::int64_t count, int threads) {
      const auto part = [&](TensorView view) {
        view.data = view.as<std::byte>() + first * view.strides[0] * std::int64_t(size_of(view.type));
        view.shape[0] = count;
        return view;
      };
      const TensorView part_outs[] = {part(outs[0].view()), part(outs[1].view())};
      const TensorView part_lses[] = {part(lses[0].view()), part(lses[1].view())};
      MergeStates op;
      op.outs = part_outs;
      op.lses = part_lses;
      op.out = part(to);
      op.lse = part(to_lse);
      run_on("cpu", op, threads);
    };
    merge(out.view(), lse.view(), 0, kBatch, 2);
    for (std::int64_t b = 0; b < kBatch; ++b) merge(parts_out.view(), parts_lse.view(), b, 1, 1);
    ASSERT_TRUE(std::ranges::equal(out.memory(), parts_out.memory()));
    ASSERT_TRUE(std::ranges::equal(lse.memory(), parts_lse.memory()));
  }
}

TEST_P(MergeStatesTest, TakesResultsOfPrefillAsSequencesOfOneQuery) {
  PrefillProblem front({.s_q = 3});
  front.select_at_random();
  PrefillProblem whole = front;
  PrefillProblem back = front;
  front.topk_length = int_vector({3, 3, 3});
  cases::Tensor rest(DataType::kI32, {3, 1, 5});
  for (std::int64_t i = 0; i < 3; ++i) {
    for (std::int64_t k = 0; k < 5; ++k) rest.set({i, 0, k}, whole.indices.at({i, 0, k + 3}));
  }
  back.indices = rest;
  run(front.op());
  run(back.op());
  run(whole.op());

  // [tokens, h, d] as [batch=tokens, s_q=1, h, d]; [tokens, h] as [batch=tokens, h, s_q=1].
  const auto as_batch = [](const cases::Tensor& tensor) {
    TensorView view = tensor.view();
    const int last = view.ndim;
    view.shape[std::size_t(last)] = last == 2 ? 1 : view.shape[2];
    view.strides[std::size_t(last)] = 1;
    if (last == 3) {
      view.shape[2] = view.shape[1];
      view.strides[2] = view.strides[1];
      view.shape[1] = 1;
    }
    view.ndim = last + 1;
    return view;
  };
  const TensorView outs[] = {as_batch(front.out), as_batch(back.out)};
  const TensorView lses[] = {as_batch(front.lse), as_batch(back.lse)};
  MergeStates merge;
  merge.outs = outs;
  merge.lses = lses;
  merge.out = outs[0];
  merge.lse = lses[0];
  run(merge);
  expect_close("sparse_prefill", "lse", front.lse, whole.lse);
}

}  // namespace
}  // namespace flashmla
