// Each instruction set's engine against plain arithmetic in double; engines that this processor lacks are
// left out.
#include "cpu/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
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
    engine().dequantize(codes.data(), scale, 256, out.data());
    for (std::size_t i = 0; i < 256; ++i) {
      ASSERT_TRUE(same_number(bf16_to_float(out[i]), bf16_to_float(fp8_value_to_bf16(codes[i], scale))))
          << "code " << i << ", scale " << scale;
    }
  }
}

TEST_P(EngineTest, QuantizeGivesTheBytesOfTheFormat) {
  std::vector<std::uint16_t> source;
  for (std::uint32_t i = 0; i < 65536; ++i) source.push_back(static_cast<std::uint16_t>(i));
  std::vector<std::uint8_t> out(source.size());
  for (const float scale : {1.0f, 0x1p-13f, 0x1p7f}) {
    engine().quantize(source.data(), 1 / scale, 65536, out.data());
    for (std::size_t i = 0; i < source.size(); ++i) {
      const float scaled = bf16_to_float(source[i]) / scale;
      if (std::isfinite(scaled) && std::abs(scaled) > 448) continue;  // never asked for
      ASSERT_EQ(out[i], float_to_e4m3(scaled)) << bf16_to_float(source[i]) << " / " << scale;
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
  constexpr int kWidth = 72;
  for (const int count : {1, 3, 16, 33, 128}) {
    for (const int tokens : {1, 5, 8, 13, 64}) {
      const Rows rows = random_rows(count, kWidth);
      const Rows keys = random_rows(tokens, kWidth);
      const std::int64_t panel_rows = padded(count);
      std::vector<Unit> panel(static_cast<std::size_t>(panel_rows * kWidth), 0xffffffff);
      engine().pack_rows(rows.pointers.data(), DataType::kBf16, count, kWidth, panel_rows, panel.data());
      std::vector<float> scratch(static_cast<std::size_t>(tokens * kWidth));
      std::vector<const Unit*> units(static_cast<std::size_t>(tokens));
      engine().key_rows(keys.pointers.data(), DataType::kBf16, tokens, kWidth, scratch.data(), units.data());
      std::vector<float> scores(static_cast<std::size_t>(tokens * panel_rows), kInfinity);
      engine().scores(panel.data(), panel_rows, units.data(), tokens, kWidth / engine().pack, scores.data());
      for (int token = 0; token < tokens; ++token) {
        for (int row = 0; row < panel_rows; ++row) {
          double expected = 0;
          for (int i = 0; i < kWidth && row < count; ++i) expected += rows.at(row, i) * keys.at(token, i);
          ASSERT_NEAR(scores[static_cast<std::size_t>(token * panel_rows + row)], expected, 2e-5)
              << "token " << token << ", row " << row;
        }
      }
    }
  }
}

/// What softmax keeps of a block of rows.
struct SoftmaxState {
  std::vector<float> max, sum, correction, weights;
  explicit SoftmaxState(std::int64_t rows)
      : max(static_cast<std::size_t>(rows), -kInfinity),
        sum(static_cast<std::size_t>(rows), 0.0f),
        correction(static_cast<std::size_t>(rows)),
        weights(static_cast<std::size_t>(rows * kBlockTokens), kInfinity) {}
};

TEST_P(EngineTest, SoftmaxAndAccumulateGiveTheWeightedMean) {
  constexpr int kRows = 21;
  constexpr int kColumns = kColumnTile;
  static constexpr double kScaleLog2 = 1.5;
  for (const int tokens : {1, 2, 7, 64}) {
    const std::int64_t rows = padded(kRows);
    SoftmaxState state(rows);
    std::vector<float> sums(static_cast<std::size_t>(rows) * kColumns, kInfinity);
    std::vector<std::vector<double>> logits(kRows), values;
    for (int block = 0; block < 3; ++block) {
      std::vector<float> scores(static_cast<std::size_t>(tokens * rows));
      for (float& score : scores) score = normal();
      std::vector<std::int32_t> limits(static_cast<std::size_t>(rows), tokens);
      for (int row = 0; row < kRows; ++row) limits[static_cast<std::size_t>(row)] = row % (tokens + 1);
      const Rows block_values = random_rows(tokens, kColumns);
      for (int token = 0; token < tokens; ++token) {
        values.emplace_back();
        for (int i = 0; i < kColumns; ++i) values.back().push_back(block_values.at(token, i));
        for (int row = 0; row < kRows; ++row) {
          const bool seen = token < limits[static_cast<std::size_t>(row)];
          const double score = scores[static_cast<std::size_t>(token * rows + row)];
          logits[static_cast<std::size_t>(row)].push_back(seen ? score * kScaleLog2 : -kInfinity);
        }
      }
      engine().softmax({.tokens = tokens,
                        .rows = rows,
                        .scores = scores.data(),
                        .scale_log2 = static_cast<float>(kScaleLog2),
                        .limits = limits.data(),
                        .max = state.max.data(),
                        .sum = state.sum.data(),
                        .correction = state.correction.data(),
                        .weights = state.weights.data()});
      std::vector<float> panel(kBlockTokens * kColumns, kInfinity);
      engine().value_panel(block_values.pointers.data(), DataType::kBf16, tokens, kColumns, kColumns,
                           panel.data());
      engine().accumulate({.factors = state.weights.data(),
                           .rows = rows,
                           .first_row = 0,
                           .last_row = kRows,
                           .tokens = tokens,
                           .values = panel.data(),
                           .stride = kColumns,
                           .correction = block == 0 ? nullptr : state.correction.data(),
                           .sums = sums.data(),
                           .columns = kColumns});
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
        ASSERT_NEAR(sums[row * kColumns + i] / std::max(sum, 1.0), mean[i] / std::max(sum, 1.0), 1e-5)
            << tokens << " tokens, row " << row << ", column " << i;
      }
    }
  }
}

TEST_P(EngineTest, NanInAScoreMakesTheSumOfItsRowNan) {
  SoftmaxState state(engine().lanes);
  std::vector<float> scores(static_cast<std::size_t>(4 * engine().lanes), 1.0f);
  scores[static_cast<std::size_t>(2 * engine().lanes + 1)] = std::nanf("");
  engine().softmax({.tokens = 4,
                    .rows = engine().lanes,
                    .scores = scores.data(),
                    .scale_log2 = 1.0f,
                    .limits = nullptr,
                    .max = state.max.data(),
                    .sum = state.sum.data(),
                    .correction = state.correction.data(),
                    .weights = state.weights.data()});
  EXPECT_TRUE(std::isnan(state.sum[1]));
  EXPECT_EQ(state.sum[0], 4.0f);
}

}  // namespace
}  // namespace flashmla::cpu
