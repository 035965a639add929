// Dense decode on the emulator: every kernel in every order of events, races, and memory that is not its own.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "../operations/dense_problem.h"
#include "../operations/sparse_memory.h"
#include "cases/case.h"
#include "cases/random.h"
#include "cuda/emulator/launch.h"
#include "cuda/emulator/settings.h"
#include "guarded.h"

namespace flashmla {
namespace {

using emulator::Mode;
using emulator::ScopedSettings;
using emulator::Settings;

constexpr std::int64_t kSharedBytes[] = {99 * 1024, 163 * 1024, 227 * 1024};

Settings settings_for(std::int64_t shared_bytes, std::uint64_t seed) {
  Settings settings{.seed = seed, .threads = 1};
  settings.device.sm_count = 3;
  settings.device.shared_bytes_per_block = static_cast<std::size_t>(shared_bytes);
  return settings;
}

Settings checked_settings(std::int64_t shared_bytes, std::uint64_t seed) {
  Settings settings = settings_for(shared_bytes, seed);
  settings.checked = emulator::kSeesAccesses;
  return settings;
}

/// Where accesses are not seen, AddressSanitizer slows everything down, and finds in one run what it finds.
constexpr bool kManyRuns = emulator::kSeesAccesses;

/// Outputs of a case by the reference.
class Expected {
 public:
  explicit Expected(const cases::Case& what)
      : results_(cases::run_case(what, Execution{.backend = "reference"})) {}

  void compare(const cases::Step& step) const {
    for (const cases::Result& result : results_) {
      const cases::Comparison compared = cases::compare(
          result.operation, result.output, step.outputs.at(result.output).view(), result.got.view());
      EXPECT_TRUE(compared.passed) << compared.description;
    }
  }

 private:
  std::vector<cases::Result> results_;
};

/// Runs a case on the emulator and compares.
void expect_right(const cases::Case& what, const Expected& expected) {
  const std::vector<cases::Step> steps = cases::prepare(what);
  run_guarded(std::get<DenseDecode>(steps.front().operation));
  expected.compare(steps.front());
}

// --- Every kernel -----------------------------------------------------------------------------------

struct Kernel {
  std::int64_t shared_bytes;
  DataType type;
  std::int64_t rows;  ///< of a block: 16, 32 or 64
};

class EachDenseDecodeKernel : public testing::TestWithParam<Kernel> {
 protected:
  /// The last block has rows that do not exist. There are more tiles than one look-up of rows has, an empty
  /// sequence, and one whose only tile is not full.
  static cases::Case make_case(bool causal, std::int64_t split_size) {
    const Kernel& kernel = GetParam();
    return cases::make_dense_decode({.batch = 3,
                                     .s_q = 3,
                                     .h_q = kernel.rows == 16   ? 5
                                            : kernel.rows == 32 ? 9
                                                                : 25,
                                     .page = 7,
                                     .seqlens = {270, 0, 19},
                                     .type = kernel.type,
                                     .causal = causal,
                                     .split_size = split_size,
                                     .gaps = true,
                                     .invalid_blocks = true},
                                    1);
  }

  /// Runs the case with and without a mask, with whole and with divided sequences.
  static void expect_right_with(const std::vector<Settings>& all) {
    for (const bool causal : {false, true}) {
      for (const std::int64_t split_size : {0, 80}) {
        const cases::Case what = make_case(causal, split_size);
        const Expected expected(what);
        for (const Settings& settings : all) {
          SCOPED_TRACE("causal " + std::to_string(causal) + ", split_size " + std::to_string(split_size) +
                       ", seed " + std::to_string(settings.seed) + ", mode " +
                       std::to_string(static_cast<int>(settings.mode)));
          const ScopedSettings scoped(settings);
          expect_right(what, expected);
        }
      }
    }
  }
};

std::vector<Kernel> every_kernel() {
  std::vector<Kernel> all;
  for (const std::int64_t shared_bytes : kSharedBytes) {
    for (const DataType type : {DataType::kBf16, DataType::kF16}) {
      for (const std::int64_t rows : {16, 32, 64}) all.push_back({shared_bytes, type, rows});
    }
  }
  return all;
}

std::string kernel_name(const testing::TestParamInfo<Kernel>& info) {
  return std::to_string(info.param.rows) + (info.param.type == DataType::kBf16 ? "_bf16_" : "_f16_") +
         std::to_string(info.param.shared_bytes / 1024) + "KB";
}

INSTANTIATE_TEST_SUITE_P(, EachDenseDecodeKernel, testing::ValuesIn(every_kernel()), kernel_name);

TEST_P(EachDenseDecodeKernel, HasNoRaceAndStaysInItsMemory) {
  if (!emulator::kSeesAccesses) GTEST_SKIP() << "a build with AddressSanitizer does not see races";
  expect_right_with(
      {checked_settings(GetParam().shared_bytes, 1), checked_settings(GetParam().shared_bytes, 2)});
}

TEST_P(EachDenseDecodeKernel, IsRightWhenCopiesAreEarlyOrLate) {
  std::vector<Settings> all;
  for (const Mode mode : {Mode::kRandom, Mode::kEarly, Mode::kLate}) {
    if (!kManyRuns && mode != Mode::kRandom) continue;
    all.push_back(settings_for(GetParam().shared_bytes, 3));
    all.back().mode = mode;
  }
  expect_right_with(all);
}

TEST_P(EachDenseDecodeKernel, KeepsInfinitiesFromQueriesThatDoNotSeeThem) {
  const Kernel& kernel = GetParam();
  const ScopedSettings scoped(checked_settings(kernel.shared_bytes, 4));
  DenseProblem problem({.seqlens = {40},
                        .s_q = kernel.rows == 16 ? 8 : kernel.rows / 2,
                        .h_q = 2,
                        .d_qk = 64,
                        .d_v = 64,
                        .type = kernel.type});
  problem.causal = true;
  const std::int64_t last = problem.token(0, 38);
  const std::int64_t page = problem.sizes.page;
  // Behind the columns of the queries that are not zero, so that logits stay finite.
  for (std::int64_t i = 0; i < problem.sizes.s_q; ++i) {
    for (std::int64_t head = 0; head < 2; ++head) problem.q.set({0, i, head, 5}, 0.25);
  }
  Row row = random_row(64, problem.random);
  row[5] = -kInfinity;  // a logit of -inf: the weight is 0, and 0 times infinity is NaN
  set_row(problem.kv_cache.view(), {last / page, last % page, 0}, row);
  run_guarded(problem.op());
  problem.expect_seen([&](std::int64_t, std::int64_t i) { return first(40 - problem.sizes.s_q + 1 + i); });
}

// --- Random cases -----------------------------------------------------------------------------------

class SharedMemoryClass : public testing::TestWithParam<std::int64_t> {};
std::string class_name(const testing::TestParamInfo<std::int64_t>& info) {
  return std::to_string(info.param / 1024);
}

INSTANTIATE_TEST_SUITE_P(KB, SharedMemoryClass, testing::ValuesIn(kSharedBytes), class_name);

TEST_P(SharedMemoryClass, IsRightInRandomCases) {
  const int count = kManyRuns ? 30 : 8;
  int supported = 0;
  for (int i = 1; i <= count; ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    SCOPED_TRACE(seed);
    cases::Random random(static_cast<std::uint64_t>(GetParam()) * 1000 + seed);
    const cases::Case what = cases::random_case("dense_decode", random);
    const std::vector<cases::Step> steps = cases::prepare(what);
    Settings settings = checked_settings(GetParam(), seed);
    settings.device.sm_count = random.pick(std::vector{1, 2, 9, 48, 132});
    const ScopedSettings scoped(settings);
    try {
      run_guarded(std::get<DenseDecode>(steps.front().operation));
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), ErrorKind::kUnsupported) << error.what();
      continue;
    }
    ++supported;
    Expected(what).compare(steps.front());
  }
  EXPECT_GE(supported, count / 2);
}

TEST_P(SharedMemoryClass, GivesARowTheSameBitsInEveryBatchWithAFixedSplitSize) {
  DenseProblem whole({.seqlens = {150, 0, 33, 64}, .s_q = 2, .h_q = 12, .page = 8});
  whole.split_size = 40;
  const ScopedSettings scoped(settings_for(GetParam(), 5));
  run_guarded(whole.op());
  whole.expect_all_seen();
  for (std::int64_t b = 0; b < 4; ++b) {
    const cases::Tensor out = whole.out;
    const cases::Tensor lse = whole.lse;
    DenseDecode op = whole.op();
    for (TensorView* view : {&op.q, &op.block_table, &op.cache_seqlens, &op.out, &op.lse}) {
      view->data = view->as<char>() + b * view->strides[0] * std::int64_t(size_of(view->type));
      view->shape[0] = 1;
    }
    whole.out.fill_nan();
    whole.lse.fill_nan();
    Settings other = settings_for(GetParam(), 6 + static_cast<std::uint64_t>(b));
    other.device.sm_count = 1 + static_cast<int>(b) * 3;
    const ScopedSettings other_gpu(other);
    run_guarded(op);
    for (std::int64_t head = 0; head < 12; ++head) {
      EXPECT_EQ(row_at(whole.lse.view(), {b, head}), row_at(lse.view(), {b, head}));
      for (std::int64_t i = 0; i < 2; ++i) {
        EXPECT_EQ(row_at(whole.out.view(), {b, i, head}), row_at(out.view(), {b, i, head}));
      }
    }
    whole.out = out;
    whole.lse = lse;
  }
}

TEST_P(SharedMemoryClass, CountsOffsetsIn64Bits) {
  const SparseMemory q(64 * kGiB), kv_cache(64 * kGiB), block_table(64 * kGiB), out(64 * kGiB),
      lse(64 * kGiB);
  for (const SparseMemory* memory : {&q, &kv_cache, &block_table, &out, &lse}) {
    if (!memory->ok()) GTEST_SKIP() << "this system does not give out 320 GiB of address space";
  }
  const ScopedSettings scoped(checked_settings(GetParam(), 7));
  DenseProblem problem({.seqlens = {7, 3}, .s_q = 2});
  DenseDecode op = problem.op();
  q.take(op.q, kFar);
  kv_cache.take(op.kv_cache, kFar);
  block_table.take(op.block_table, kFar);
  out.take(op.out, kFar);
  lse.take(op.lse, kFar);
  run_guarded(op);
  cases::copy_elements(op.out, problem.out.view());
  cases::copy_elements(op.lse, problem.lse.view());
  problem.expect_all_seen();
}

// --- Schedules ---------------------------------------------------------------------------------------

TEST_P(SharedMemoryClass, MergesMoreSplitsThanAWarpHasLanes) {
  const ScopedSettings scoped(checked_settings(GetParam(), 8));
  DenseProblem problem({.seqlens = {70, 3}, .h_q = 2, .d_qk = 136, .d_v = 136});
  problem.split_size = 1;
  run_guarded(problem.op());
  problem.expect_all_seen();
}

/// Garbage that is more than any length, less than any, or nearly right.
std::int64_t hostile(cases::Random& random) {
  const std::int64_t values[] = {kIntMin, kIntMin + 1, -(1 << 20), -33,     -1,          0,      1,
                                 2,       3,           4,          31,      32,          64,     65,
                                 100,     128,         1 << 16,    1 << 30, kIntMax - 1, kIntMax};
  return values[random.between(0, static_cast<std::int64_t>(std::size(values)) - 1)];
}

TEST_P(SharedMemoryClass, StaysInItsMemoryWithAScheduleOfGarbage) {
  cases::Random random(static_cast<std::uint64_t>(GetParam()));
  for (std::uint64_t round = 0; round < 40; ++round) {
    SCOPED_TRACE(round);
    DenseProblem problem({.seqlens = {65, 0, 9, 130}, .s_q = 2, .h_q = 3, .d_qk = 64, .d_v = 48});
    const std::int64_t split_sizes[] = {0, 0, 16, 32, 100};
    problem.split_size = split_sizes[random.between(0, 4)];
    problem.causal = random.chance(0.5);
    // Few parts: a row of garbage may name all sequences with splits of any size.
    const cases::Tensor schedule(DataType::kI32, {3, 8});
    const cases::Tensor num_splits(DataType::kI32, {5});
    DenseDecode op = problem.op();
    op.schedule = schedule.view();
    op.num_splits = num_splits.view();
    const bool nearly_right = random.chance(0.5);
    if (nearly_right) {
      MakeSchedule make;
      make.cache_seqlens = problem.cache_seqlens.view();
      make.max_seqlen = problem.sizes.max_blocks() * problem.sizes.page;
      make.split_size = problem.split_size;
      make.schedule = schedule.view();
      make.num_splits = num_splits.view();
      const ScopedSettings scoped(settings_for(GetParam(), round));
      run_guarded(make);
    }
    for (const cases::Tensor* tensor : {&schedule, &num_splits}) {
      cases::for_each_index(tensor->view(), [&](std::span<const std::int64_t> index) {
        if (nearly_right && random.chance(0.9)) return;
        cases::set_element(tensor->view(), index, static_cast<double>(hostile(random)));
      });
    }
    const ScopedSettings scoped(checked_settings(GetParam(), round));
    EXPECT_NO_THROW(run_guarded(op));
  }
}

}  // namespace
}  // namespace flashmla
