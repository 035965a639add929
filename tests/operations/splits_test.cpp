// Split work, threads, schedules: the values do not change, and where promised the bits neither.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cases/case.h"
#include "cases/on_device.h"
#include "cases/random.h"
#include "dense_problem.h"
#include "mha_problem.h"
#include "sparse_problem.h"

namespace flashmla {
namespace {

FLASHMLA_ON_EVERY_BACKEND(SplitSize);
FLASHMLA_ON_EVERY_BACKEND(BatchInvariance);
FLASHMLA_ON_EVERY_BACKEND(Schedule);
FLASHMLA_ON_EVERY_BACKEND(SameBits);

TEST_P(SplitSize, DoesNotChangeTheValues) {
  for (const std::int64_t split_size : {0, 1, 2, 3, 7, 16, 64, 65, 100, 1000000}) {
    SCOPED_TRACE(split_size);
    DenseProblem dense({.seqlens = {150, 0, 1, 64}, .s_q = 2, .page = 8});
    dense.split_size = split_size;
    run(dense.op());
    dense.expect_all_seen();

    SparseProblem sparse({.batch = 2, .topk = 150});
    sparse.select_at_random();
    sparse.split_size = split_size;
    run(sparse.op());
    sparse.expect_all_seen();
  }
}

TEST_P(SplitSize, LeavesSplitsWithoutAVisibleKeyAlone) {
  DenseProblem dense({.seqlens = {24}, .s_q = 20});
  dense.causal = true;
  dense.split_size = 4;
  for (const std::int64_t i : {1, 4}) dense.block_table.set({0, i}, -1);
  run(dense.op());
  dense.expect_seen([](std::int64_t, std::int64_t i) {
    Positions seen;
    for (std::int64_t t = 0; t <= 4 + i; ++t) {
      if (t / 4 != 1 && t / 4 != 4) seen.push_back(t);
    }
    return seen;
  });
}

TEST_P(SplitSize, MayLeaveTheFirstSplitWithoutAVisibleKey) {
  DenseProblem dense({.seqlens = {24}});
  dense.split_size = 4;
  dense.block_table.set({0, 0}, -1);
  run(dense.op());
  dense.expect_seen([](std::int64_t, std::int64_t) {
    Positions seen;
    for (std::int64_t t = 4; t < 24; ++t) seen.push_back(t);
    return seen;
  });
}

TEST_P(BatchInvariance, OfDenseRowsWithAFixedSplitSize) {
  const std::vector<std::int64_t> lengths = {150, 0, 33, 64, 7};
  DenseProblem whole({.seqlens = lengths, .s_q = 2, .h_q = 3, .page = 8});
  for (const std::int64_t split_size : {5, 32}) {
    whole.split_size = split_size;
    whole.out.fill_nan();
    run(whole.op(), 2);
    for (const std::int64_t b : {4, 0, 2, 1, 3}) {
      // The sequence alone, and in front of itself and another one, on other numbers of threads.
      for (const std::vector<std::int64_t>& batch : {std::vector<std::int64_t>{b}, {b, 0, b}, {3, b}}) {
        DenseProblem part = whole;
        const auto count = static_cast<std::int64_t>(batch.size());
        part.q = cases::Tensor(DataType::kBf16, {count, 2, 3, 64});
        part.block_table = cases::Tensor(DataType::kI32, {count, whole.sizes.max_blocks()});
        part.cache_seqlens = cases::Tensor(DataType::kI32, {count});
        part.out = cases::Tensor(DataType::kBf16, {count, 2, 3, 32});
        part.lse = cases::Tensor(DataType::kF32, {count, 3, 2});
        for (std::int64_t at = 0; at < count; ++at) {
          const std::int64_t from = batch[std::size_t(at)];
          for (std::int64_t i = 0; i < 2; ++i) {
            for (std::int64_t head = 0; head < 3; ++head) {
              set_row(part.q.view(), {at, i, head}, row_at(whole.q.view(), {from, i, head}));
            }
          }
          set_row(part.block_table.view(), {at}, row_at(whole.block_table.view(), {from}));
          part.cache_seqlens.set({at}, whole.cache_seqlens.at({from}));
        }
        run(part.op(), int(count));
        for (std::int64_t at = 0; at < count; ++at) {
          for (std::int64_t head = 0; head < 3; ++head) {
            const std::int64_t from = batch[std::size_t(at)];
            EXPECT_EQ(row_at(part.lse.view(), {at, head}), row_at(whole.lse.view(), {from, head}));
            EXPECT_EQ(row_at(part.out.view(), {at, 1, head}), row_at(whole.out.view(), {from, 1, head}));
          }
        }
      }
    }
  }
}

TEST_P(BatchInvariance, OfSparseRowsWithAFixedSplitSize) {
  SparseProblem whole({.batch = 4, .h_q = 3, .topk = 70, .extra_topk = 20});
  whole.select_at_random();
  whole.topk_length = int_vector({70, 3, 0, 41});
  whole.extra_topk_length = int_vector({20, 20, 11, 0});
  for (const std::int64_t split_size : {5, 32}) {
    whole.split_size = split_size;
    run(whole.op(), 2);
    const cases::Tensor out = whole.out;
    const cases::Tensor lse = whole.lse;
    for (std::int64_t b = 0; b < 4; ++b) {
      SparseDecode op = whole.op();
      for (TensorView* view : {&op.q, &op.indices, &op.topk_length, &op.extra_indices, &op.extra_topk_length,
                               &op.out, &op.lse}) {
        view->data = view->as<char>() + b * view->strides[0] * std::int64_t(size_of(view->type));
        view->shape[0] = 1;
      }
      whole.out.fill_nan();
      whole.lse.fill_nan();
      run(op, 1);
      for (std::int64_t head = 0; head < 3; ++head) {
        EXPECT_EQ(row_at(whole.out.view(), {b, 0, head}), row_at(out.view(), {b, 0, head}));
        EXPECT_EQ(row_at(whole.lse.view(), {b, head}), row_at(lse.view(), {b, head}));
      }
    }
  }
}

/// Schedule tensors for a decode operation, with any number of parts.
struct ScheduleTensors {
  cases::Tensor schedule, num_splits;

  ScheduleTensors(std::int64_t parts, std::int64_t batch)
      : schedule(DataType::kI32, {parts, 8}), num_splits(DataType::kI32, {batch + 1}) {}

  template <class Op>
  void give_to(Op& op) const {
    op.schedule = schedule.view();
    op.num_splits = num_splits.view();
  }
};

/// Fills the schedule of `op`, whose tensors are in host memory.
template <class Op>
void make_schedule_on(const std::string& backend, const Op& op) {
  Execution on = on_backend(backend);
  if (on.device == Device{}) return make_schedule(op, on);
  const cases::OnGpu copies(op, on.device);
  const Op& there = std::get<Op>(copies.operation());
  cases::Workspace workspace(on.device, make_schedule_workspace_bytes(there, on));
  workspace.give_to(on);
  make_schedule(there, on);
  copies.copy_all_back();
}

TEST_P(Schedule, GivesTheValuesOfACallWithoutOne) {
  const Execution on = on_backend(GetParam());
  for (const std::int64_t split_size : {0, 16}) {
    DenseProblem dense({.seqlens = {900, 0, 1, 64, 300}, .h_q = 2, .d_qk = 16, .d_v = 8, .page = 8});
    dense.split_size = split_size;
    DenseDecode op = dense.op();
    run(op);
    dense.expect_all_seen();
    const auto without = bytes_of(dense.out);
    for (const std::int64_t parts :
         {schedule_parts(op, on), std::int64_t{1}, std::int64_t{2}, std::int64_t{7}, std::int64_t{200}}) {
      const ScheduleTensors tensors(parts, 5);
      tensors.give_to(op);
      make_schedule_on(GetParam(), op);
      dense.out.fill_nan();
      run(op);
      dense.expect_all_seen();
      if (split_size > 0 || parts == schedule_parts(op, on)) {
        EXPECT_EQ(bytes_of(dense.out), without) << parts;
      }
    }
  }
}

TEST_P(Schedule, GivesTheValuesOfASparseCallWithoutOne) {
  const Execution on = on_backend(GetParam());
  for (const std::int64_t split_size : {0, 16}) {
    SparseProblem sparse({.batch = 3, .h_q = 2, .d_qk = 16, .d_v = 8, .topk = 600, .extra_topk = 50});
    sparse.select_at_random();
    sparse.topk_length = int_vector({600, 0, 17});
    sparse.split_size = split_size;
    SparseDecode op = sparse.op();
    run(op);
    const auto without = bytes_of(sparse.out);
    for (const std::int64_t parts : {schedule_parts(op, on), std::int64_t{1}, std::int64_t{7}}) {
      const ScheduleTensors tensors(parts, 3);
      tensors.give_to(op);
      make_schedule_on(GetParam(), op);
      sparse.out.fill_nan();
      run(op);
      sparse.expect_seen([&](std::int64_t b, std::int64_t i) {
        return sparse.selected(b, i, b == 0 ? 600 : b == 1 ? 0 : 17, 50);
      });
      if (split_size > 0 || parts == schedule_parts(op, on)) {
        EXPECT_EQ(bytes_of(sparse.out), without) << parts;
      }
    }
  }
}

TEST_P(Schedule, NeedsNeitherQueriesNorOutputs) {
  DenseProblem problem({.seqlens = {40, 9}});
  const ScheduleTensors tensors(4, 2);
  DenseDecode op = problem.op();
  tensors.give_to(op);
  op.q = {};
  op.out = {};
  op.lse = {};
  make_schedule_on(GetParam(), op);
  EXPECT_EQ(tensors.num_splits.at({0}), 0);
  EXPECT_GE(tensors.num_splits.at({2}), 2);
}

TEST_P(Schedule, MadeForOtherLengthsIsNeverAWrongResultOfTheCpu) {
  DenseProblem problem({.seqlens = {900, 5, 64}, .h_q = 2, .d_qk = 16, .d_v = 8, .page = 8});
  for (const std::int64_t split_size : {0, 16}) {
    problem.split_size = split_size;
    DenseDecode op = problem.op();
    const ScheduleTensors tensors(4, 3);
    tensors.give_to(op);
    const cases::Tensor old_lengths = int_vector({64, 900, 5});
    op.cache_seqlens = old_lengths.view();
    make_schedule_on(GetParam(), op);
    op.cache_seqlens = problem.cache_seqlens.view();
    try {
      run(op);
      EXPECT_NE(GetParam(), "cpu") << "a stale schedule must be an error";
      if (cases::device_of(GetParam()) == Device{}) problem.expect_all_seen();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kValue);
      EXPECT_NE(std::string(error.what()).find("dense_decode: schedule"), std::string::npos) << error.what();
    }
  }
}

TEST_P(Schedule, OfGarbageIsNeverAWrongResult) {
  cases::Random random(3);
  for (int round = 0; round < 50; ++round) {
    SparseProblem problem({.batch = 3, .h_q = 2, .d_qk = 16, .d_v = 8, .topk = 40});
    problem.select_at_random();
    SparseDecode op = problem.op();
    ScheduleTensors tensors(3, 3);
    tensors.give_to(op);
    make_schedule_on(GetParam(), op);
    const std::int64_t values[] = {-1, 0, 1, 2, 3, 8, 39, 40, 41, kIntMax, kIntMin};
    const auto value = static_cast<double>(values[random.between(0, 10)]);
    if (random.chance(0.3)) {
      tensors.num_splits.set({random.between(0, 3)}, value);
    } else {
      tensors.schedule.set({random.between(0, 2), random.between(0, 7)}, value);
    }
    try {
      run(op);
      problem.expect_all_seen();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kValue);
    }
  }
}

TEST_P(Schedule, RowsCoverEveryKeyOnce) {
  const std::vector<std::int64_t> lengths = {900, 0, 1, 640, 300};
  for (const std::int64_t split_size : {0, 100}) {
    for (const std::int64_t parts : {1, 3, 8, 50}) {
      const cases::Tensor seqlens = int_vector(lengths);
      const ScheduleTensors tensors(parts, 5);
      MakeSchedule op;
      op.cache_seqlens = seqlens.view();
      op.max_seqlen = 1000;
      op.split_size = split_size;
      tensors.give_to(op);
      run(op);
      std::int64_t seq = 0;
      std::int64_t key = 0;
      for (std::int64_t p = 0; p < parts; ++p) {
        const Row row = row_at(tensors.schedule.view(), {p});
        EXPECT_EQ(row[5], split_size);
        if (row[0] > row[2]) continue;  // no work
        EXPECT_EQ(row[0], seq);
        EXPECT_EQ(row[1], key);
        seq = std::int64_t(row[2]);
        key = std::int64_t(row[3]);
        if (key == lengths[std::size_t(seq)]) {
          ++seq;
          key = 0;
        }
      }
      EXPECT_EQ(seq, 5);
      EXPECT_EQ(key, 0);
      const Row splits = row_at(tensors.num_splits.view(), {});
      if (split_size == 100) {
        EXPECT_EQ(splits, (Row{0, 9, 10, 11, 18, 21}));
      }
    }
  }
}

/// Outputs of a case, all bytes; none if a backend of a GPU does not compute it.
std::vector<std::vector<std::byte>> outputs_of(const cases::Case& what, const std::string& backend,
                                               int threads) {
  Execution on = on_backend(backend);
  on.threads = threads;
  std::vector<std::vector<std::byte>> result;
  try {
    for (const cases::Result& output : cases::run_case(what, on)) result.push_back(bytes_of(output.got));
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUnsupported || on.device == Device{}) throw;
  }
  return result;
}

TEST_P(SameBits, OnAnyNumberOfThreadsAndInEveryRun) {
  for (const std::string& operation : cases::operation_names()) {
    if (!computes(GetParam(), operation)) continue;
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
      cases::Random random(seed);
      cases::Case what = cases::random_case(operation, random);
      if (operation.starts_with("mha")) what.metadata["deterministic"] = std::string(1, '1');
      const auto one = outputs_of(what, GetParam(), 1);
      for (const int threads : {1, 2, 3, 8}) {
        EXPECT_EQ(outputs_of(what, GetParam(), threads), one)
            << operation << " seed " << seed << " " << threads;
      }
    }
  }
}

TEST_P(SameBits, OfKeyAndValueGradientsNeedNoDeterminism) {
  MhaProblem problem({.cu_seqlens_q = {0, 150, 190},
                      .cu_seqlens_k = {0, 140, 300},
                      .total_q = 190,
                      .total_k = 300,
                      .h_q = 4,
                      .h_kv = 2});
  run(problem.forward());
  MhaBackward op = problem.backward();
  op.deterministic = false;
  run(op, 1);
  const auto d_k = bytes_of(problem.d_k);
  const auto d_v = bytes_of(problem.d_v);
  for (const int threads : {1, 2, 3, 8}) {
    run(op, threads);
    EXPECT_EQ(bytes_of(problem.d_k), d_k) << threads;
    EXPECT_EQ(bytes_of(problem.d_v), d_v) << threads;
  }
}

TEST_P(SameBits, OnAnyNumberOfThreadsForLongSequences) {
  DenseProblem problem({.seqlens = {3000, 100, 1700}, .h_q = 3, .d_qk = 24, .d_v = 16, .page = 64});
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

}  // namespace
}  // namespace flashmla
