// make_schedule on the emulator: the rows and splits of the algorithm that the host runs.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cases/random.h"
#include "cases/tensor.h"
#include "cuda/emulator/settings.h"
#include "cuda/portable/schedule.h"
#include "guarded.h"
#include "schedule/request.h"
#include "schedule/schedule.h"

namespace flashmla {
namespace {

using cases::Random;
using cases::Tensor;

struct Problem {
  Tensor cache_seqlens, topk_length, extra_topk_length, schedule, num_splits;
  MakeSchedule op;
};

/// Lengths up to `most`, many of them alike, and some out of range.
Tensor random_lengths(std::int64_t batch, std::int64_t most, Random& random) {
  Tensor lengths(DataType::kI32, {batch});
  const std::int64_t usual = random.between(0, most);
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int64_t length = random.chance(0.5)    ? usual
                                : random.chance(0.1)  ? 0
                                : random.chance(0.02) ? -random.between(1, 1 << 30)
                                : random.chance(0.02) ? most + random.between(1, 1 << 30)
                                                      : random.between(0, most);
    lengths.set({b}, static_cast<double>(length));
  }
  return lengths;
}

/// Mostly a few sequences and parts; sometimes more of them than the kernel has threads.
std::int64_t random_count(Random& random) {
  return random.chance(0.9) ? random.between(1, 40) : random.between(400, 1600);
}

Problem random_problem(Random& random) {
  Problem made;
  const std::int64_t batch = random.chance(0.02) ? 0 : random_count(random);
  const std::int64_t parts = random_count(random);
  const std::int64_t mosts[] = {1, 40, 300, 3000, 100'000, 50'000'000};
  const std::int64_t most = random.between(0, mosts[random.between(0, 5)]);
  if (random.chance(0.6)) {
    made.cache_seqlens = random_lengths(batch, most, random);
    made.op.max_seqlen = most;
  } else {
    made.op.topk = most;
    made.op.extra_topk = random.chance(0.5) ? 0 : random.between(0, 2000);
    if (random.chance(0.5)) made.topk_length = random_lengths(batch, most, random);
    if (random.chance(0.5)) made.extra_topk_length = random_lengths(batch, made.op.extra_topk, random);
  }
  const std::int64_t least_split = most * std::max<std::int64_t>(batch, 1) / (1 << 30) + 1;
  if (random.chance(0.4)) made.op.split_size = least_split * random.between(1, 2000);
  made.schedule = Tensor(DataType::kI32, {parts, 8}, {random.chance(0.2) ? 11 : 8, 1});
  made.num_splits = Tensor(DataType::kI32, {batch + 1});
  made.op.cache_seqlens = made.cache_seqlens.view();
  made.op.topk_length = made.topk_length.view();
  made.op.extra_topk_length = made.extra_topk_length.view();
  made.op.schedule = made.schedule.view();
  made.op.num_splits = made.num_splits.view();
  return made;
}

void expect_that_of_the_host(const Problem& problem) {
  const Tensor schedule = problem.schedule;
  const Tensor num_splits = problem.num_splits;
  make_schedule(schedule_request(problem.op, portable::kScheduleTile), schedule.view().as<std::int32_t>(),
                schedule.view().strides[0], num_splits.view().as<std::int32_t>(),
                num_splits.view().strides[0]);
  run_guarded(problem.op);
  // All bytes, so that gaps are as they were.
  EXPECT_TRUE(std::ranges::equal(problem.schedule.memory(), schedule.memory()));
  EXPECT_TRUE(std::ranges::equal(problem.num_splits.memory(), num_splits.memory()));
}

TEST(EmulatedSchedule, IsThatOfTheHost) {
  const emulator::ScopedSettings scoped({.threads = 1});
  // AddressSanitizer slows everything down.
  const std::uint64_t count = emulator::kSeesAccesses ? 3000 : 300;
  for (std::uint64_t seed = 1; seed <= count && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    expect_that_of_the_host(random_problem(random));
  }
}

TEST(EmulatedSchedule, HasNoRaceAndStaysInItsMemory) {
  if (!emulator::kSeesAccesses) GTEST_SKIP() << "a build with AddressSanitizer does not see races";
  for (std::uint64_t seed = 10'001; seed <= 10'150 && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    const emulator::ScopedSettings scoped({.seed = seed, .checked = true, .threads = 1});
    Random random(seed);
    expect_that_of_the_host(random_problem(random));
  }
}

}  // namespace
}  // namespace flashmla
