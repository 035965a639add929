// The split of decode work: every key once and in order, balanced, and checked against garbage.
#include "schedule/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace flashmla {
namespace {

constexpr std::int64_t kRowStride = 11;
constexpr std::int64_t kSplitsStride = 3;

struct Made {
  std::vector<std::int32_t> rows;
  std::vector<std::int32_t> num_splits;
};

Made make(const ScheduleRequest& request) {
  Made made;
  made.rows.assign(static_cast<std::size_t>(request.parts * kRowStride), -77);
  made.num_splits.assign(static_cast<std::size_t>((request.batch + 1) * kSplitsStride), -77);
  make_schedule(request, made.rows.data(), kRowStride, made.num_splits.data(), kSplitsStride);
  return made;
}

bool is_valid(const ScheduleRequest& request, const Made& made) {
  return schedule_is_valid(request, made.rows.data(), kRowStride, made.num_splits.data(), kSplitsStride);
}

PartRow row_of(const Made& made, std::int64_t p) { return PartRow::load(made.rows.data() + p * kRowStride); }

std::int32_t splits_before(const Made& made, std::int64_t b) {
  return made.num_splits[static_cast<std::size_t>(b * kSplitsStride)];
}

/// A request with storage for its lengths.
struct RandomRequest {
  std::vector<std::int32_t> lengths;
  std::vector<std::int32_t> extra;
  ScheduleRequest request;

  RandomRequest(std::mt19937_64& random, bool fixed) {
    const auto upto = [&](std::int64_t most) {
      return std::uniform_int_distribution<std::int64_t>(0, most)(random);
    };
    request.batch = upto(3) == 0 ? upto(300) : upto(8);
    request.parts = 1 + (upto(2) == 0 ? upto(299) : upto(16));
    request.tile = upto(1) == 0 ? 64 : 1 + upto(130);
    const std::int64_t kinds[] = {1, 64, 1000, 70000, std::numeric_limits<std::int32_t>::max()};
    const std::int64_t longest = kinds[upto(4)];
    const bool dense = upto(1) == 0;
    for (std::int64_t b = 0; b < request.batch; ++b) {
      lengths.push_back(static_cast<std::int32_t>(upto(3) == 0 ? -upto(1) : upto(longest)));
      extra.push_back(static_cast<std::int32_t>(upto(200) - 20));
    }
    if (dense) {
      request.cache_seqlens = {lengths.data(), 1};
      request.max_seqlen = longest - longest / 10;
    } else {
      request.topk = std::min<std::int64_t>(longest, 1 << 30);
      request.extra_topk = upto(1) * 150;
      if (upto(2) > 0) request.topk_length = {lengths.data(), 1};
      if (upto(2) > 0) request.extra_topk_length = {extra.data(), 1};
    }
    if (fixed)
      request.split_size = 1 + upto(longest > 100000 ? 1 << 28 : 300) + (longest > 100000 ? 1 << 20 : 0);
  }
};

/// Walks the splits of all parts and checks that they tile the batch in order.
void expect_every_key_once(const ScheduleRequest& request, const Made& made) {
  std::int64_t seq = 0;
  std::int64_t key = 0;
  std::int64_t number = 0;
  for (std::int64_t p = 0; p < request.parts; ++p) {
    PartSplits splits(request, row_of(made, p));
    for (Split split{}; splits.next(split);) {
      ASSERT_EQ(split.seq, seq);
      ASSERT_EQ(split.begin, key);
      ASSERT_EQ(split.number, number);
      const std::int64_t length = request.length_of(seq);
      ASSERT_TRUE(length == 0 || split.end > split.begin);
      if (request.split_size > 0) {
        ASSERT_EQ(split.end, std::min(length, key + request.split_size));
      }
      ASSERT_LE(split.end, length);
      key = split.end;
      ++number;
      if (key < length) continue;
      ASSERT_EQ(splits_before(made, seq + 1) - splits_before(made, seq), number);
      ++seq;
      key = 0;
      number = 0;
    }
  }
  ASSERT_EQ(seq, request.batch);
  ASSERT_EQ(key, 0);
}

TEST(Schedule, PutsEveryKeyIntoOneSplitInOrder) {
  for (std::uint64_t seed = 0; seed < 6000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const RandomRequest of(random, seed % 2 == 1);
    const Made made = make(of.request);
    ASSERT_NO_FATAL_FAILURE(expect_every_key_once(of.request, made));
    ASSERT_TRUE(is_valid(of.request, made));
  }
}

TEST(Schedule, WritesNothingBetweenItsRows) {
  std::mt19937_64 random(1);
  const RandomRequest of(random, false);
  const Made made = make(of.request);
  for (std::int64_t p = 0; p < of.request.parts; ++p) {
    for (std::int64_t i = PartRow::kSize; i < kRowStride; ++i) {
      EXPECT_EQ(made.rows[static_cast<std::size_t>(p * kRowStride + i)], -77);
    }
  }
}

TEST(Schedule, CutsAtTilesAndLeavesNoSliver) {
  for (std::uint64_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const RandomRequest of(random, false);
    const ScheduleRequest& request = of.request;
    const Made made = make(request);
    for (std::int64_t p = 0; p < request.parts; ++p) {
      PartSplits splits(request, row_of(made, p));
      for (Split split{}; splits.next(split);) {
        const std::int64_t length = request.length_of(split.seq);
        const std::int64_t tiles = schedule::ceil_div(split.end - split.begin, request.tile);
        ASSERT_EQ(split.begin % request.tile, 0);
        ASSERT_TRUE((split.begin == 0 && split.end == length) || tiles >= request.min_split_tiles);
      }
    }
  }
}

TEST(Schedule, GivesNoPartMuchMoreThanItsShare) {
  for (std::uint64_t seed = 0; seed < 4000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const RandomRequest of(random, seed % 2 == 1);
    const ScheduleRequest& request = of.request;
    const Made made = make(request);
    const std::int64_t split_cost =
        request.overhead_tiles + schedule::ceil_div(request.split_size, request.tile);
    const std::int64_t slack =
        request.split_size > 0 ? split_cost : 2 * request.min_split_tiles + request.overhead_tiles;
    const std::int64_t share = schedule::total_cost(request) / request.parts;
    for (std::int64_t p = 0; p < request.parts; ++p) {
      std::int64_t cost = 0;
      PartSplits splits(request, row_of(made, p));
      for (Split split{}; splits.next(split);) {
        cost += schedule::ceil_div(split.end - split.begin, request.tile);
        if (split.begin == 0 || request.split_size > 0) cost += request.overhead_tiles;
      }
      ASSERT_LE(cost, share + slack + 1);
    }
  }
}

TEST(Schedule, SpreadsOneLongSequenceOverAllParts) {
  const std::int32_t length = 4096;
  ScheduleRequest request{.cache_seqlens = {&length, 1}, .batch = 1, .max_seqlen = 8192, .parts = 16};
  const Made made = make(request);
  EXPECT_EQ(splits_before(made, 1), 16);
  EXPECT_EQ(row_of(made, 15).end_key, 4096);
}

TEST(Schedule, OfFixedSplitsDoesNotDependOnPartsOrBatch) {
  const std::int32_t lengths[] = {1000, 0, 257, 256, 90000};
  for (const std::int64_t parts : {1, 3, 64}) {
    for (std::int64_t batch = 1; batch <= 5; ++batch) {
      ScheduleRequest request{.cache_seqlens = {lengths, 1},
                              .batch = batch,
                              .max_seqlen = 65536,
                              .split_size = 256,
                              .parts = parts};
      const Made made = make(request);
      const std::int32_t expected[] = {0, 4, 5, 7, 8, 8 + 256};
      for (std::int64_t b = 0; b <= batch; ++b) EXPECT_EQ(splits_before(made, b), expected[b]);
    }
  }
}

TEST(Schedule, SpreadsFixedSplitsEvenly) {
  const std::int32_t length = 1024;
  const ScheduleRequest request{
      .cache_seqlens = {&length, 1}, .batch = 1, .max_seqlen = 1024, .split_size = 256, .parts = 4};
  const Made made = make(request);
  for (std::int64_t p = 0; p < 4; ++p) EXPECT_EQ(row_of(made, p).begin_key, p * 256);
}

TEST(Schedule, CutsLengthsToTheirRange) {
  const std::int32_t lengths[] = {-5, std::numeric_limits<std::int32_t>::min(), 500, 100};
  ScheduleRequest request{.cache_seqlens = {lengths, 1}, .batch = 4, .max_seqlen = 300};
  EXPECT_EQ(request.length_of(0), 0);
  EXPECT_EQ(request.length_of(1), 0);
  EXPECT_EQ(request.length_of(2), 300);
  EXPECT_EQ(request.length_of(3), 100);
  request = {.topk_length = {lengths, 1},
             .extra_topk_length = {lengths, 1},
             .batch = 4,
             .topk = 64,
             .extra_topk = 200};
  EXPECT_EQ(request.length_of(0), 0);
  EXPECT_EQ(request.length_of(2), 264);
  EXPECT_EQ(request.length_of(3), 164);
}

TEST(Schedule, ReadsLengthsThroughTheirStride) {
  const std::int32_t lengths[] = {100, -1, 0, -1, 7};
  const ScheduleRequest request{.cache_seqlens = {lengths, 2}, .batch = 3, .max_seqlen = 300};
  EXPECT_EQ(request.length_of(0), 100);
  EXPECT_EQ(request.length_of(1), 0);
  EXPECT_EQ(request.length_of(2), 7);
}

TEST(Schedule, OfAnEmptyBatchHasEmptyParts) {
  const ScheduleRequest request{.batch = 0, .parts = 3};
  const Made made = make(request);
  EXPECT_EQ(made.num_splits[0], 0);
  for (std::int64_t p = 0; p < 3; ++p) EXPECT_TRUE(row_of(made, p).empty());
  EXPECT_TRUE(is_valid(request, made));
}

TEST(ScheduleIsValid, RefusesAnyChangedNumber) {
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const RandomRequest of(random, seed % 2 == 1);
    Made made = make(of.request);
    const std::int64_t p = std::uniform_int_distribution<std::int64_t>(0, of.request.parts - 1)(random);
    const int column = std::uniform_int_distribution<int>(0, PartRow::kSize - 1)(random);
    // What an empty part says about keys means nothing, so only its emptiness can be changed.
    const bool empty = row_of(made, p).empty();
    if (empty && column < 5) continue;
    std::int32_t& number = made.rows[static_cast<std::size_t>(p * kRowStride + column)];
    const std::int32_t before = number;
    number = seed % 4 < 2 ? static_cast<std::int32_t>(random()) : before + (before == 0 ? 1 : -1);
    if (number == before) continue;
    ASSERT_FALSE(is_valid(of.request, made)) << "part " << p << " column " << column;
    number = before;
    ASSERT_TRUE(is_valid(of.request, made));
    const std::int64_t b = std::uniform_int_distribution<std::int64_t>(0, of.request.batch)(random);
    ++made.num_splits[static_cast<std::size_t>(b * kSplitsStride)];
    ASSERT_FALSE(is_valid(of.request, made)) << "num_splits " << b;
  }
}

TEST(ScheduleIsValid, RefusesTheScheduleOfOtherLengths) {
  std::int32_t lengths[] = {1000, 3000, 500};
  const ScheduleRequest request{.cache_seqlens = {lengths, 1}, .batch = 3, .max_seqlen = 4096, .parts = 4};
  const Made made = make(request);
  ASSERT_TRUE(is_valid(request, made));
  lengths[1] = row_of(made, 2).begin_key;
  ASSERT_EQ(row_of(made, 2).begin_seq, 1);
  EXPECT_FALSE(is_valid(request, made));
  lengths[1] = 3000;
  lengths[2] = 499;
  EXPECT_FALSE(is_valid(request, made));
}

TEST(ScheduleIsValid, RefusesASequenceBehindTheBatch) {
  const std::vector<std::int32_t> lengths = {1000, 3000};
  const ScheduleRequest request{.cache_seqlens = {lengths.data(), 1}, .batch = 2, .max_seqlen = 4096};
  Made made = make(request);
  ASSERT_EQ(made.rows[2], 1);
  made.rows[2] = 2;
  EXPECT_FALSE(is_valid(request, made));
}

TEST(ScheduleIsValid, RefusesFixedSplitsCutElsewhere) {
  const std::int32_t length = 1000;
  ScheduleRequest request{
      .cache_seqlens = {&length, 1}, .batch = 1, .max_seqlen = 1000, .split_size = 256, .parts = 2};
  Made made = make(request);
  const auto cut_at = [&](std::int32_t key, std::int32_t splits_before_cut, std::int32_t splits) {
    PartRow{0, 0, 0, key, 0, 256, {0, 0}}.store(made.rows.data());
    PartRow{0, key, 0, 1000, splits_before_cut, 256, {0, 0}}.store(made.rows.data() + kRowStride);
    made.num_splits[kSplitsStride] = splits;
  };
  cut_at(256, 1, 4);
  EXPECT_TRUE(is_valid(request, made));
  cut_at(300, 2, 5);
  EXPECT_FALSE(is_valid(request, made));
}

TEST(ScheduleIsValid, IsSafeOnGarbage) {
  const std::int32_t extremes[] = {
      std::numeric_limits<std::int32_t>::min(), std::numeric_limits<std::int32_t>::max(), -1, 0, 1, 2};
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    std::mt19937_64 random(seed);
    const RandomRequest of(random, seed % 2 == 1);
    Made made = make(of.request);
    for (auto& number : made.rows) {
      if (random() % 4 == 0)
        number = random() % 2 == 0 ? extremes[random() % 6] : static_cast<std::int32_t>(random());
    }
    is_valid(of.request, made);
  }
}

}  // namespace
}  // namespace flashmla
