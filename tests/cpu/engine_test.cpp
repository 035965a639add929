// Each instruction set's engine against plain arithmetic in double; engines that this processor lacks are
// left out.
#include "cpu/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kv/float_types.h"
#include "kv/row.h"

namespace flashmla::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class EngineTest : public testing::TestWithParam<const Engine*> {
 protected:
  const Engine& engine() const { return *GetParam(); }

  float normal() { return normal_(random_); }

  /// 16-bit rows with normal values, and the pointers to them.
  struct Rows {
    std::vector<std::vector<std::uint16_t>> bits;
    std::vector<const void*> pointers;
    double at(int row, int column) const {
      return bf16_to_float(bits[static_cast<std::size_t>(row)][static_cast<std::size_t>(column)]);
    }
  };
  Rows random_rows(int count, int width) {
    Rows rows;
    for (int i = 0; i < count; ++i) {
      rows.bits.emplace_back();
      for (int j = 0; j < width; ++j) rows.bits.back().push_back(float_to_bf16(normal()));
    }
    for (const auto& row : rows.bits) rows.pointers.push_back(row.data());
    return rows;
  }

  std::int64_t padded(int rows) const {
    return (rows + engine().lanes - 1) / engine().lanes * engine().lanes;
  }

  /// A score block of this many rows.
  std::vector<float> score_block(std::int64_t rows, float value = kInfinity) const {
    return std::vector<float>(static_cast<std::size_t>(rows * engine().block_tokens), value);
  }

  /// Where a score block has a token and a row.
  std::size_t at(int token, int row) const {
    const int lanes = engine().lanes;
    return static_cast<std::size_t>((row / lanes * engine().block_tokens + token) * lanes + row % lanes);
  }

  std::vector<float> scores_of(const Rows& rows, const Rows& keys, int tokens, int width,
                               const std::int32_t* limits, int few_rows = 0) {
    const int count = static_cast<int>(rows.pointers.size());
    const std::int64_t panel_rows = padded(count);
    const int steps = (width / engine().pack + kPanelSteps - 1) / kPanelSteps * kPanelSteps;
    std::vector<Unit> panel(static_cast<std::size_t>(panel_rows * steps), 0xffffffff);
    engine().pack_rows(rows.pointers.data(), DataType::kBf16, count, width, panel_rows, few_rows,
                       panel.data());
    std::vector<float> scratch(engine().token_scratch(width), kInfinity);
    std::vector<const Unit*> units(static_cast<std::size_t>(tokens));
    engine().token_units(keys.pointers.data(), DataType::kBf16, tokens, width, scratch.data(), units.data());
    std::vector<float> scores = score_block(panel_rows);
    engine().scores({.panel = panel.data(),
                     .rows = panel_rows,
                     .few_rows = few_rows,
                     .tokens = units.data(),
                     .count = tokens,
                     .width = width,
                     .limits = limits,
                     .scratch = scratch.data(),
                     .scores = scores.data()});
    return scores;
  }

  /// A factor block: this memory, or that of `scores` where an engine works in place.
  struct Factors {
    std::vector<std::byte> memory;
    void* block;
    Factors(const Engine& engine, std::vector<float>& scores)
        : memory(static_cast<std::size_t>(engine.factor_bytes) * kMaxRows *
                 static_cast<std::size_t>(engine.block_tokens)),
          block(memory.empty() ? static_cast<void*>(scores.data()) : memory.data()) {}
  };

  /// Adds values of kColumnTile columns, times the numbers of a score block, to `sums`.
  void accumulate_products(std::vector<float> numbers, const Rows& values, int tokens, int first, int last,
                           const float* correction, std::vector<float>& sums) const {
    // With P = 2^0 and delta = 0, the gradients of the scores are those of the weights.
    const std::size_t rows = numbers.size() / static_cast<std::size_t>(engine().block_tokens);
    std::vector<float> zeros(numbers.size());
    const std::vector<float> nothing(rows);
    const std::vector<std::int32_t> from(static_cast<std::size_t>(tokens), 0);
    const std::vector<std::int32_t> to(static_cast<std::size_t>(tokens), static_cast<std::int32_t>(rows));
    const Factors ones(engine(), zeros);
    const Factors factors(engine(), numbers);
    engine().gradient_of_query_rows({.tokens = tokens,
                                     .rows = static_cast<std::int64_t>(rows),
                                     .softmax_scale = 1,
                                     .lse_log2 = nothing.data(),
                                     .delta = nothing.data(),
                                     .first_row = from.data(),
                                     .last_row = to.data(),
                                     .scores = zeros.data(),
                                     .d_weights = numbers.data(),
                                     .weights = ones.block,
                                     .d_scores = factors.block});
    accumulate(factors.block, values, tokens, first, last, nullptr, correction, sums);
  }

  /// Values of kColumnTile columns onto `sums`.
  void accumulate(const void* factors, const Rows& values, int tokens, int first, int last,
                  const std::int32_t* limits, const float* correction, std::vector<float>& sums) const {
    std::vector<float> panel(engine().value_panel_size(kColumnTile), kInfinity);
    engine().value_panel(values.pointers.data(), DataType::kBf16, tokens, kColumnTile, kColumnTile,
                         panel.data());
    engine().accumulate({.factors = factors,
                         .first_row = first,
                         .last_row = last,
                         .tokens = tokens,
                         .limits = limits,
                         .values = panel.data(),
                         .value_stride = kColumnTile,
                         .columns = kColumnTile,
                         .correction = correction,
                         .sums = sums.data(),
                         .stride = kColumnTile});
  }

  std::mt19937 random_{1234};

 private:
  std::normal_distribution<float> normal_;
};

INSTANTIATE_TEST_SUITE_P(Engines, EngineTest, testing::ValuesIn(engines()),
                         [](const auto& parameter) { return std::string(parameter.param->instruction_set); });

bool same_number(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

TEST_P(EngineTest, WidenIsExactForEveryNumber) {
  std::vector<std::uint16_t> codes(65536);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint16_t>(i);
  std::vector<float> wide(codes.size());
  engine().widen(codes.data(), DataType::kBf16, 65536, wide.data());
  for (std::size_t i = 0; i < codes.size(); ++i)
    ASSERT_TRUE(same_number(wide[i], bf16_to_float(codes[i]))) << i;
  engine().widen(codes.data(), DataType::kF16, 65536, wide.data());
  for (std::size_t i = 0; i < codes.size(); ++i)
    ASSERT_TRUE(same_number(wide[i], f16_to_float(codes[i]))) << i;
}

/// Numbers of every magnitude, halfway cases of bf16 and f16, and the special ones.
std::vector<float> interesting_floats() {
  std::vector<float> values = {0.0f,     -0.0f,    kInfinity, -kInfinity, std::nanf(""),
                               65504.0f, 65519.9f, 65520.0f,  1e9f};
  for (std::uint32_t i = 0; i < 65536; ++i) {
    for (const std::uint32_t low : {0x7fffu, 0x8000u, 0x8001u, 0x1000u, 0x0fffu, 0x3000u}) {
      values.push_back(float_of(i << 16 | low));
    }
  }
  return values;
}

TEST_P(EngineTest, NarrowRoundsToNearestEven) {
  const std::vector<float> values = interesting_floats();
  const int count = static_cast<int>(values.size());
  std::vector<std::uint16_t> bits(values.size());
  engine().narrow(values.data(), 1.0f, count, DataType::kBf16, bits.data());
  for (std::size_t i = 0; i < bits.size(); ++i) {
    ASSERT_TRUE(same_number(bf16_to_float(bits[i]), bf16_to_float(float_to_bf16(values[i])))) << values[i];
  }
  engine().narrow(values.data(), 1.0f, count, DataType::kF16, bits.data());
  for (std::size_t i = 0; i < bits.size(); ++i) {
    ASSERT_TRUE(same_number(f16_to_float(bits[i]), f16_to_float(float_to_f16(values[i])))) << values[i];
  }
}

TEST_P(EngineTest, NarrowWritesNoMoreThanCount) {
  for (int count = 0; count <= 40; ++count) {
    std::vector<float> values(41, 3.0f);
    std::vector<float> out(41, 7.0f);
    engine().narrow(values.data(), 2.0f, count, DataType::kF32, out.data());
    for (int i = 0; i <= 40; ++i) ASSERT_EQ(out[static_cast<std::size_t>(i)], i < count ? 6.0f : 7.0f);
  }
}

TEST_P(EngineTest, DequantizeGivesTheBitsOfTheFormat) {
  std::vector<std::uint8_t> codes(256);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i);
  std::vector<std::uint16_t> out(256);
  for (const float scale : {1.0f, 0.75f, 1.2345e-4f, 0x1p-13f, 0x1p100f, 0x1p-126f, 3.3e38f}) {
    engine().dequantize(codes.data(), &scale, 1, 256, out.data());
    for (std::size_t i = 0; i < 256; ++i) {
      ASSERT_TRUE(same_number(bf16_to_float(out[i]), bf16_to_float(fp8_value_to_bf16(codes[i], scale))))
          << "code " << i << ", scale " << scale;
    }
  }
}

TEST_P(EngineTest, DequantizeOfNormalNumbersAndOfOneOtherGivesTheBitsOfTheFormat) {
  constexpr int kGroup = 64;
  std::uniform_int_distribution<int> normal_code(0x08, 0x7e);
  for (int power = -126; power <= 127; ++power) {
    for (const float factor : {1.0f, 1.5f}) {
      const float scale = std::ldexp(factor, power);
      for (const int other : {-1, 0x00, 0x80, 0x07, 0x7f, 0xff}) {
        std::vector<std::uint8_t> codes(kGroup);
        for (auto& code : codes) code = static_cast<std::uint8_t>(normal_code(random_) | (random_() & 0x80));
        if (other >= 0) codes[random_() % kGroup] = static_cast<std::uint8_t>(other);
        std::vector<std::uint16_t> out(kGroup);
        engine().dequantize(codes.data(), &scale, 1, kGroup, out.data());
        for (std::size_t i = 0; i < kGroup; ++i) {
          ASSERT_TRUE(same_number(bf16_to_float(out[i]), bf16_to_float(fp8_value_to_bf16(codes[i], scale))))
              << "code " << int{codes[i]} << ", scale " << scale;
        }
      }
    }
  }
}

TEST_P(EngineTest, QuantizeGivesTheBytesOfTheFormat) {
  std::vector<std::uint16_t> source;
  for (std::uint32_t i = 0; i < 65536; ++i) source.push_back(static_cast<std::uint16_t>(i));
  std::vector<std::uint8_t> out(source.size());
  for (const float scale : {1.0f, 0x1p-13f, 0x1p7f}) {
    const float inverse_scale = 1 / scale;
    engine().quantize(source.data(), &inverse_scale, 1, 65536, out.data());
    for (std::size_t i = 0; i < source.size(); ++i) {
      const float scaled = bf16_to_float(source[i]) / scale;
      if (std::isfinite(scaled) && std::abs(scaled) > 448) continue;  // never asked for
      ASSERT_EQ(out[i], float_to_e4m3(scaled)) << bf16_to_float(source[i]) << " / " << scale;
    }
  }
}

TEST_P(EngineTest, QuantizeOfNormalNumbersAndOfOneOtherGivesTheBytesOfTheFormat) {
  constexpr int kGroup = 64;
  // A number's steps of 2^-7 that a code has no room for are among them, halves of a step too.
  std::uniform_int_distribution<int> normal(0x08 << 4, (0x7e << 4) + 8);
  for (int power = -13; power <= 120; ++power) {
    const float inverse_scale = std::ldexp(1.0f, -power);
    const int bias = (120 + power) << 7;
    for (const int other : {-1, 0x0000, 0x0001, bias + (0x08 << 4) - 1, 0x7f80, 0x7fc1}) {
      std::vector<std::uint16_t> source(kGroup);
      for (auto& bits : source) {
        const int magnitude = std::min(bias + normal(random_), 0x7f7f);
        bits = static_cast<std::uint16_t>(magnitude | static_cast<int>(random_() & 0x8000));
      }
      const std::size_t at = random_() % kGroup;
      if (other >= 0) source[at] = static_cast<std::uint16_t>(other | (source[at] & 0x8000));
      std::vector<std::uint8_t> out(kGroup);
      engine().quantize(source.data(), &inverse_scale, 1, kGroup, out.data());
      for (std::size_t i = 0; i < kGroup; ++i) {
        ASSERT_EQ(out[i], float_to_e4m3(bf16_to_float(source[i]) * inverse_scale))
            << std::hex << source[i] << " / 2^" << std::dec << power;
      }
    }
  }
}

TEST_P(EngineTest, LargestFiniteLooksAtEveryLaneAndLeavesOutInfinityAndNan) {
  constexpr int kGroup = 64;
  constexpr int kGroups = 3;
  const auto largest_of = [&](const std::vector<std::uint16_t>& source) {
    std::vector<std::uint16_t> found(kGroups, 0xffff);
    engine().largest_finite(source.data(), kGroups, kGroup, found.data());
    return found;
  };
  // With zeros around: the largest number, a small one, the smallest subnormal, and their negatives.
  for (const std::uint16_t code : {0x7f7f, 0xff7f, 0x3f80, 0xbf80, 0x0001, 0x8001}) {
    for (int at = 0; at < kGroups * kGroup; ++at) {
      std::vector<std::uint16_t> source(kGroups * kGroup, 0);
      source[static_cast<std::size_t>(at)] = code;
      std::vector<std::uint16_t> expected(kGroups, 0);
      expected[static_cast<std::size_t>(at / kGroup)] = code & 0x7fff;
      ASSERT_EQ(largest_of(source), expected) << "at " << at;
    }
  }
  for (const std::uint16_t bad : {0x7f80, 0xff80, 0x7fc0, 0xffff, 0x7f81}) {
    for (int at = 0; at < kGroups * kGroup; ++at) {
      std::vector<std::uint16_t> source(kGroups * kGroup, 0x0042);
      source[static_cast<std::size_t>(at)] = bad;
      ASSERT_EQ(largest_of(source), std::vector<std::uint16_t>(kGroups, 0x0042)) << "at " << at;
    }
  }
  EXPECT_EQ(largest_of(std::vector<std::uint16_t>(kGroups * kGroup, 0x7f80)),
            std::vector<std::uint16_t>(kGroups, 0));
}

TEST_P(EngineTest, WeightedSumTakesEachRowByItsWeight) {
  for (const int width : {1, 8, 24, 33, 512}) {
    const Rows rows = random_rows(3, width);
    const float weights[] = {0.5f, -2.0f, 0.125f};
    std::vector<float> out(static_cast<std::size_t>(width) + 1, 7.0f);
    engine().weighted_sum({.rows = rows.pointers.data(),
                           .weights = weights,
                           .count = 3,
                           .type = DataType::kBf16,
                           .width = width,
                           .out_type = DataType::kF32,
                           .out = out.data()});
    for (int i = 0; i < width; ++i) {
      const double expected = 0.5 * rows.at(0, i) - 2 * rows.at(1, i) + 0.125 * rows.at(2, i);
      ASSERT_NEAR(out[static_cast<std::size_t>(i)], expected, 1e-5) << i;
    }
    EXPECT_EQ(out.back(), 7.0f);
  }
}

TEST_P(EngineTest, StreamsCopyAnyLengthToAnyPlace) {
  const Streams& streams = engine().streams;
  if (streams.copy == nullptr) GTEST_SKIP() << "no stores past the caches";
  std::vector<std::uint8_t> source(400);
  for (std::size_t i = 0; i < source.size(); ++i) source[i] = static_cast<std::uint8_t>(i * 7 + 1);
  for (std::size_t begin = 0; begin < 128; begin += 5) {
    for (std::size_t bytes = 0; bytes <= 330; ++bytes) {
      alignas(64) std::uint8_t out[512] = {};
      streams.copy(source.data() + 3, static_cast<std::int64_t>(bytes), out + begin);
      streams.fence();
      for (std::size_t i = 0; i < sizeof(out); ++i) {
        const bool inside = i >= begin && i < begin + bytes;
        ASSERT_EQ(out[i], inside ? source[i - begin + 3] : 0) << begin << " " << bytes << " " << i;
      }
    }
  }
}

TEST_P(EngineTest, AllFiniteFindsOneBadNumberAnywhere) {
  for (const int width : {1, 7, 64, 65}) {
    std::vector<std::uint16_t> row(static_cast<std::size_t>(width), 0x3f80);
    EXPECT_TRUE(engine().all_finite(row.data(), DataType::kBf16, width));
    for (std::size_t i = 0; i < row.size(); ++i) {
      for (const std::uint16_t bad : {0x7f80, 0xff80, 0x7fc0}) {
        row[i] = bad;
        EXPECT_FALSE(engine().all_finite(row.data(), DataType::kBf16, width)) << i;
      }
      row[i] = 0x7c00;
      EXPECT_TRUE(engine().all_finite(row.data(), DataType::kBf16, width)) << i;
      EXPECT_FALSE(engine().all_finite(row.data(), DataType::kF16, width)) << i;
      row[i] = 0x3f80;
    }
  }
}

TEST_P(EngineTest, ScoresAreDotProducts) {
  for (const int width : {8, 64, 72, 576}) {
    for (const int count : {1, 3, 16, 33, 128}) {
      for (const int tokens : {1, 5, 13, 16, 31, engine().block_tokens - 1, engine().block_tokens}) {
        const Rows rows = random_rows(count, width);
        const Rows keys = random_rows(tokens, width);
        const std::vector<float> scores = scores_of(rows, keys, tokens, width, nullptr);
        for (int token = 0; token < tokens; ++token) {
          for (int row = 0; row < padded(count); ++row) {
            double expected = 0;
            for (int i = 0; i < width && row < count; ++i) expected += rows.at(row, i) * keys.at(token, i);
            ASSERT_NEAR(scores[at(token, row)], expected, 3e-7 * width)
                << "width " << width << ", token " << token << ", row " << row;
          }
        }
      }
    }
  }
}

TEST_P(EngineTest, ScoresOfFewRowsAreDotProducts) {
  constexpr int kTokens = 13;
  for (const int width : {8, 24, 64, 72, 192}) {
    for (int few = 1; few <= engine().most_few_rows; ++few) {
      const int count = engine().lanes + few;
      const Rows rows = random_rows(count, width);
      const Rows keys = random_rows(kTokens, width);
      const std::vector<float> scores = scores_of(rows, keys, kTokens, width, nullptr, few);
      for (int token = 0; token < kTokens; ++token) {
        for (int row = 0; row < padded(count); ++row) {
          double expected = 0;
          for (int i = 0; i < width && row < count; ++i) expected += rows.at(row, i) * keys.at(token, i);
          ASSERT_NEAR(scores[at(token, row)], expected, 3e-7 * width)
              << "width " << width << ", token " << token << ", row " << row;
        }
      }
    }
  }
}

TEST_P(EngineTest, ScoresDoNotDependOnWhereTokensLie) {
  constexpr int kWidth = 64;
  constexpr int kTokens = 48;
  const Rows rows = random_rows(20, kWidth);
  Rows keys = random_rows(kTokens, kWidth);
  const std::vector<float> apart = scores_of(rows, keys, kTokens, kWidth, nullptr);
  for (const int distance : {kWidth, 3 * kWidth, -2 * kWidth}) {
    std::vector<std::uint16_t> cache(static_cast<std::size_t>(std::abs(distance) * kTokens), 0x7fc0);  // NaN
    for (int token = 0; token < kTokens; ++token) {
      const auto& bits = keys.bits[static_cast<std::size_t>(token)];
      const int place = distance > 0 ? token : kTokens - 1 - token;
      const auto to = cache.begin() + place * std::abs(distance);
      std::copy(bits.begin(), bits.end(), to);
      keys.pointers[static_cast<std::size_t>(token)] = &*to;
    }
    EXPECT_EQ(scores_of(rows, keys, kTokens, kWidth, nullptr), apart) << distance;
  }
  std::fill(keys.pointers.begin(), keys.pointers.end(), keys.bits[5].data());
  const std::vector<float> same = scores_of(rows, keys, kTokens, kWidth, nullptr);
  for (int token = 0; token < kTokens; ++token) EXPECT_EQ(same[at(token, 7)], apart[at(5, 7)]) << token;
}

TEST_P(EngineTest, ScoresBelowTheLimitsAreComplete) {
  constexpr int kWidth = 64;
  constexpr int kTokens = 64;
  const int count = 2 * engine().lanes + 3;
  const Rows rows = random_rows(count, kWidth);
  const Rows keys = random_rows(kTokens, kWidth);
  std::vector<std::int32_t> limits(static_cast<std::size_t>(padded(count)));
  for (std::size_t row = 0; row < limits.size(); ++row) {
    limits[row] = std::min(static_cast<int>(row) * 2, kTokens);
  }
  const std::vector<float> all = scores_of(rows, keys, kTokens, kWidth, nullptr);
  const std::vector<float> some = scores_of(rows, keys, kTokens, kWidth, limits.data());
  for (int row = 0; row < count; ++row) {
    for (int token = 0; token < limits[static_cast<std::size_t>(row)]; ++token) {
      ASSERT_EQ(some[at(token, row)], all[at(token, row)]) << "token " << token << ", row " << row;
    }
  }
}

/// What softmax keeps of a block of rows.
struct SoftmaxState {
  std::vector<float> max, sum, correction;
  explicit SoftmaxState(std::int64_t rows)
      : max(static_cast<std::size_t>(rows), -kInfinity),
        sum(static_cast<std::size_t>(rows), 0.0f),
        correction(static_cast<std::size_t>(rows)) {}

  SoftmaxBlock block(int tokens, std::int64_t rows, double scale_log2, const std::int32_t* limits,
                     float* scores, void* factors) {
    return {.tokens = tokens,
            .rows = rows,
            .scale_log2 = static_cast<float>(scale_log2),
            .limits = limits,
            .scores = scores,
            .factors = factors,
            .max = max.data(),
            .sum = sum.data(),
            .correction = correction.data()};
  }
};

TEST_P(EngineTest, SoftmaxAndAccumulateGiveTheWeightedMean) {
  constexpr int kRows = 53;
  constexpr int kColumns = kColumnTile;
  static constexpr double kScaleLog2 = 1.5;
  for (const int tokens : {1, 2, 7, 33, engine().block_tokens}) {
    const std::int64_t rows = padded(kRows);
    SoftmaxState state(rows);
    std::vector<float> sums(static_cast<std::size_t>(rows) * kColumns, kInfinity);
    std::vector<std::vector<double>> logits(kRows), values;
    for (int block = 0; block < 3; ++block) {
      std::vector<float> scores = score_block(rows);
      std::vector<std::int32_t> limits(static_cast<std::size_t>(rows), tokens);
      for (int row = 0; row < kRows; ++row)
        limits[static_cast<std::size_t>(row)] = row * tokens / (kRows - 1);
      const Rows block_values = random_rows(tokens, kColumns);
      for (int token = 0; token < tokens; ++token) {
        values.emplace_back();
        for (int i = 0; i < kColumns; ++i) values.back().push_back(block_values.at(token, i));
        for (int row = 0; row < rows; ++row) scores[at(token, row)] = normal();
        for (int row = 0; row < kRows; ++row) {
          const bool seen = token < limits[static_cast<std::size_t>(row)];
          logits[static_cast<std::size_t>(row)].push_back(seen ? scores[at(token, row)] * kScaleLog2
                                                               : -kInfinity);
        }
      }
      const Factors factors(engine(), scores);
      engine().softmax(state.block(tokens, rows, kScaleLog2, limits.data(), scores.data(), factors.block));
      accumulate(factors.block, block_values, tokens, 0, kRows, limits.data(),
                 block == 0 ? nullptr : state.correction.data(), sums);
    }
    for (std::size_t row = 0; row < kRows; ++row) {
      const double max = *std::max_element(logits[row].begin(), logits[row].end());
      double sum = 0;
      std::vector<double> mean(kColumns, 0.0);
      for (std::size_t token = 0; token < values.size(); ++token) {
        const double weight = std::isinf(logits[row][token]) ? 0 : std::exp2(logits[row][token] - max);
        sum += weight;
        for (std::size_t i = 0; i < kColumns; ++i) mean[i] += weight * values[token][i];
      }
      ASSERT_NEAR(state.sum[row], sum, 1e-5 * sum) << "row " << row;
      if (sum > 0) {
        ASSERT_NEAR(state.max[row], max, 1e-5);
      }
      for (std::size_t i = 0; i < kColumns; ++i) {
        ASSERT_NEAR(sums[row * kColumns + i] / std::max(sum, 1.0), mean[i] / std::max(sum, 1.0), 1e-4)
            << tokens << " tokens, row " << row << ", column " << i;
      }
    }
  }
}

TEST_P(EngineTest, AccumulateLeavesOtherRowsAlone) {
  constexpr int kTokens = 5;
  const std::int64_t rows = padded(40);
  const Rows values = random_rows(kTokens, kColumnTile);
  const std::vector<float> ones(static_cast<std::size_t>(rows), 1.0f);
  for (const auto& [first, last] : {std::pair{0, 1}, {3, 5}, {7, 33}, {16, 32}, {31, 40}}) {
    const std::vector<float> factors = score_block(rows, 1.0f);
    std::vector<float> sums(static_cast<std::size_t>(rows * kColumnTile), 7.0f);
    accumulate_products(factors, values, kTokens, first, last, ones.data(), sums);
    for (int row = 0; row < rows; ++row) {
      for (int i = 0; i < kColumnTile; ++i) {
        double expected = 7;
        for (int t = 0; t < kTokens && row >= first && row < last; ++t) expected += values.at(t, i);
        ASSERT_NEAR(sums[static_cast<std::size_t>(row * kColumnTile + i)], expected, 1e-4)
            << "rows " << first << " to " << last << ", row " << row;
      }
    }
  }
}

TEST_P(EngineTest, FactorsCountWithSixteenBits) {
  const std::int64_t rows = engine().lanes;
  Rows one = random_rows(1, kColumnTile);
  std::fill(one.bits[0].begin(), one.bits[0].end(), float_to_bf16(1.0f));
  for (const float factor : {1.0f, 1.00390625f, 0.99999f, -1.2345678f, 3e38f, -1e-30f}) {
    std::vector<float> sums(static_cast<std::size_t>(rows * kColumnTile));
    accumulate_products(score_block(rows, factor), one, 1, 0, static_cast<int>(rows), nullptr, sums);
    ASSERT_NEAR(sums[0] / factor, 1.0, 0x1.01p-16) << factor;
  }
}

TEST_P(EngineTest, InfiniteFactorsAndValuesGiveInfinity) {
  const std::int64_t rows = engine().lanes;
  for (const float factor : {1.0f, 0.3f, -2.0f, kInfinity, -kInfinity}) {
    for (const float value : {2.0f, kInfinity}) {
      Rows one = random_rows(1, kColumnTile);
      std::fill(one.bits[0].begin(), one.bits[0].end(), float_to_bf16(value));
      std::vector<float> sums(static_cast<std::size_t>(rows * kColumnTile));
      accumulate_products(score_block(rows, factor), one, 1, 0, static_cast<int>(rows), nullptr, sums);
      if (std::isinf(factor * value)) {
        ASSERT_EQ(sums[5], factor * value) << factor << " * " << value;
      } else {
        ASSERT_NEAR(sums[5], factor * value, 1e-4);
      }
    }
  }
}

TEST_P(EngineTest, SoftmaxOfTheLargestLogitIsExactlyOne) {
  const std::int64_t rows = engine().lanes;
  SoftmaxState state(rows);
  std::vector<float> scores = score_block(rows, 1.2345f);
  const Factors factors(engine(), scores);
  engine().softmax(state.block(3, rows, 0.7, nullptr, scores.data(), factors.block));
  EXPECT_EQ(state.sum[1], 3.0f);
}

TEST_P(EngineTest, NanInAScoreMakesItsRowNan) {
  const std::int64_t rows = engine().lanes;
  SoftmaxState state(rows);
  std::vector<float> scores = score_block(rows, 1.0f);
  scores[at(2, 1)] = std::nanf("");
  scores[at(2, 0)] = kInfinity;
  const Factors factors(engine(), scores);
  engine().softmax(state.block(4, rows, 1.0, nullptr, scores.data(), factors.block));
  EXPECT_TRUE(std::isnan(state.sum[1]));
  EXPECT_TRUE(std::isnan(state.max[1]));
  EXPECT_TRUE(std::isnan(state.sum[0]));
  EXPECT_EQ(state.max[0], kInfinity);
  EXPECT_EQ(state.sum[2], 4.0f);
}

TEST_P(EngineTest, BlendAddsWithFactors) {
  for (const int count : {1, 7, 64, 65}) {
    std::vector<float> target(66, 3.0f);
    const std::vector<float> source(66, 5.0f);
    engine().blend(target.data(), 2.0f, source.data(), 0.5f, count);
    for (int i = 0; i <= count; ++i) {
      ASSERT_EQ(target[static_cast<std::size_t>(i)], i < count ? 8.5f : 3.0f) << i;
    }
  }
}

}  // namespace
}  // namespace flashmla::cpu
