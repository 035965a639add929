// Conversions of the narrow float types, over every code and at every rounding edge.
#include "kv/float_types.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <random>

namespace flashmla {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();

/// `value` rounded to `mantissa` explicit bits with exponents from `lowest` up, by exact arithmetic.
double rounded(double value, int mantissa, int lowest) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), lowest);
  const double step = std::ldexp(1.0, exponent - mantissa);
  return std::nearbyint(value / step) * step;
}

/// Random bit patterns: every exponent, and half of them close to a tie of 7, 10 or 3 mantissa bits.
float random_float(std::mt19937_64& random) {
  std::uint32_t bits = static_cast<std::uint32_t>(random());
  const int tie_bits[] = {15, 12, 19};
  if (random() % 2 == 0) {
    const int tie = tie_bits[random() % 3];
    bits = (bits >> tie << tie | 1u << tie) + static_cast<std::uint32_t>(random() % 3) - 1u;
  }
  return float_of(bits);
}

TEST(Bf16, ReadsEveryCodeBack) {
  for (std::uint32_t code = 0; code < 65536; ++code) {
    const float value = bf16_to_float(static_cast<std::uint16_t>(code));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(value))));
    } else {
      EXPECT_EQ(float_to_bf16(value), code);
      EXPECT_EQ(double_to_bf16(value), code);
    }
  }
}

TEST(Bf16, RoundsToNearestEven) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 300000; ++i) {
    const float value = random_float(random);
    if (!std::isfinite(value)) continue;
    const double expected = rounded(value, 7, -126);
    const float limit = bf16_to_float(0x7f7f);
    const float got = bf16_to_float(float_to_bf16(value));
    if (std::abs(expected) > limit) {
      ASSERT_EQ(got, std::copysign(kInfinity, value));
    } else {
      ASSERT_EQ(got, expected) << value;
    }
  }
}

TEST(Bf16, KeepsNan) {
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(float_of(0x7f800001u)))));
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(float_of(0xffffffffu)))));
  EXPECT_TRUE(std::isnan(bf16_to_float(double_to_bf16(std::nan("")))));
}

TEST(F16, ReadsEveryCodeBack) {
  for (std::uint32_t code = 0; code < 65536; ++code) {
    const float value = f16_to_float(static_cast<std::uint16_t>(code));
    if (std::isnan(value)) {
      EXPECT_GT(code & 0x7fffu, 0x7c00u);
      EXPECT_TRUE(std::isnan(f16_to_float(float_to_f16(value))));
    } else {
      EXPECT_EQ(float_to_f16(value), code);
      EXPECT_EQ(double_to_f16(value), code);
    }
  }
  EXPECT_EQ(f16_to_float(0x3c00), 1.0f);
  EXPECT_EQ(f16_to_float(0x0001), 0x1p-24f);
  EXPECT_EQ(f16_to_float(0xfbff), -65504.0f);
  EXPECT_EQ(f16_to_float(0x7c00), kInfinity);
}

TEST(F16, RoundsToNearestEvenAndOverflowsToInfinity) {
  std::mt19937_64 random(2);
  for (int i = 0; i < 300000; ++i) {
    const float value = random_float(random);
    if (!std::isfinite(value)) continue;
    const double expected = rounded(value, 10, -14);
    const float got = f16_to_float(float_to_f16(value));
    if (std::abs(expected) > 65504) {
      ASSERT_EQ(got, std::copysign(kInfinity, value));
    } else {
      ASSERT_EQ(got, expected) << value;
    }
  }
  EXPECT_EQ(float_to_f16(65519.0f), 0x7bff);
  EXPECT_EQ(float_to_f16(65520.0f), 0x7c00);
}

TEST(DoubleToNarrow, RoundsOnce) {
  // Just above a tie: a detour over float would lose the last bit and round to even, down.
  EXPECT_EQ(double_to_bf16(1.0 + 0x1p-8 + 0x1p-40), float_to_bf16(1.0f + 0x1p-7f));
  EXPECT_EQ(double_to_bf16(1.0 + 0x1p-8), float_to_bf16(1.0f));
  EXPECT_EQ(double_to_bf16(1.0 + 0x3p-8 - 0x1p-40), float_to_bf16(1.0f + 0x1p-7f));
  EXPECT_EQ(double_to_f16(1.0 + 0x1p-11 + 0x1p-40), float_to_f16(1.0f + 0x1p-10f));
  EXPECT_EQ(double_to_f16(-0x1p-25 - 0x1p-60), 0x8001);
  EXPECT_EQ(double_to_f16(-0x1p-25), 0x8000);
  EXPECT_EQ(double_to_bf16(1e300), 0x7f80);
  EXPECT_EQ(double_to_bf16(-1e-300), 0x8000);
}

TEST(E4m3, ReadsEveryCodeBack) {
  for (int code = 0; code < 256; ++code) {
    const float value = e4m3_to_float(static_cast<std::uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value));
    } else {
      EXPECT_EQ(float_to_e4m3(value), code);
    }
  }
  EXPECT_EQ(e4m3_to_float(0x7e), 448.0f);
  EXPECT_EQ(e4m3_to_float(0x01), 0x1p-9f);
  EXPECT_EQ(e4m3_to_float(0x08), 0x1p-6f);
  EXPECT_EQ(e4m3_to_float(0xb8), -1.0f);
}

TEST(E4m3, RoundsToNearestEvenAndSaturates) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 300000; ++i) {
    const float value = i % 2 == 0 ? random_float(random) : std::ldexp(random_float(random), -120);
    if (!std::isfinite(value)) continue;
    const double expected = std::clamp(rounded(value, 3, -6), -448.0, 448.0);
    ASSERT_EQ(e4m3_to_float(float_to_e4m3(value)), expected) << value;
  }
  for (int code = 0; code < 0x7e; ++code) {
    const float low = e4m3_to_float(static_cast<std::uint8_t>(code));
    const float high = e4m3_to_float(static_cast<std::uint8_t>(code + 1));
    const float tie = (low + high) / 2;
    EXPECT_EQ(float_to_e4m3(tie), code + code % 2);
    EXPECT_EQ(float_to_e4m3(std::nextafter(tie, 0.0f)), code);
    EXPECT_EQ(float_to_e4m3(std::nextafter(tie, 1000.0f)), code + 1);
  }
}

TEST(E4m3, TurnsWhatIsNotFiniteIntoNan) {
  EXPECT_EQ(float_to_e4m3(kInfinity), 0x7f);
  EXPECT_EQ(float_to_e4m3(-kInfinity), 0xff);
  EXPECT_EQ(float_to_e4m3(kNan) & 0x7f, 0x7f);
}

TEST(Ue8m0, IsThePowerOfTwoOfItsCode) {
  for (int code = 0; code < 255; ++code) {
    const float value = ue8m0_to_float(static_cast<std::uint8_t>(code));
    EXPECT_EQ(value, std::ldexp(1.0f, code - 127));
    EXPECT_EQ(power_of_two_to_ue8m0(value), code);
  }
  EXPECT_TRUE(std::isnan(ue8m0_to_float(255)));
}

}  // namespace
}  // namespace flashmla
