// The matrix unit: one step written to be read, and the same step for whole tiles.
#include "cuda/emulator/matrix_unit.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>

#include "cuda/emulator/fragments.h"

namespace flashmla::emulator {
namespace {

constexpr int kMostRows = 64;
constexpr int kMostDepth = 16;
constexpr int kLanes = 8;  // columns that the tile form computes at a time
constexpr std::uint32_t kNan = 0x7fffffffu;

/// Exponents of zeros: below any sum of two others, and small enough that two of them fit 16 bits.
constexpr int kNoExponent = -8192;

struct Format {
  int fraction_bits;
  int exponent_bits;

  constexpr int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  constexpr int special_exponent() const { return (1 << exponent_bits) - 1; }
};

constexpr Format kF32{23, 8};

constexpr Format format_of(OperandType type) {
  return type == OperandType::kBf16 ? Format{7, 8} : Format{10, 5};
}

/// A number: `significand * 2^(exponent - fraction_bits)`, not normalized; its exponent is kNoExponent if it
/// is zero.
struct Number {
  std::int32_t significand = 0;
  int exponent = kNoExponent;
};

struct Fields {
  bool negative;
  int exponent;
  std::int32_t fraction;
};

constexpr Fields fields_of(Format format, std::uint32_t code) {
  return {((code >> (format.fraction_bits + format.exponent_bits)) & 1) != 0,
          static_cast<int>(code >> format.fraction_bits) & format.special_exponent(),
          static_cast<std::int32_t>(code & ((1u << format.fraction_bits) - 1))};
}

constexpr Number number_of(Format format, std::uint32_t code) {
  const Fields fields = fields_of(format, code);
  const std::int32_t hidden_bit = fields.exponent > 0 ? 1 << format.fraction_bits : 0;
  const std::int32_t magnitude = hidden_bit | fields.fraction;
  if (magnitude == 0) return {};
  return {fields.negative ? -magnitude : magnitude, std::max(fields.exponent, 1) - format.bias()};
}

constexpr bool is_finite(Format format, std::uint32_t code) {
  return fields_of(format, code).exponent != format.special_exponent();
}

/// The value as a float; used only where infinities and NaN meet.
float float_of(Format format, std::uint32_t code) {
  const Fields fields = fields_of(format, code);
  if (!is_finite(format, code)) {
    if (fields.fraction != 0) return std::bit_cast<float>(kNan);
    const float infinity = std::numeric_limits<float>::infinity();
    return fields.negative ? -infinity : infinity;
  }
  const Number number = number_of(format, code);
  return std::ldexp(static_cast<float>(number.significand), number.exponent - format.fraction_bits);
}

/// A step with an operand that is infinite or NaN: the sum is one of these too.
float special_step(Format format, std::span<const std::uint16_t> a, std::span<const std::uint16_t> b,
                   float accumulator) {
  // Signs of zeros and infinities are all that is needed: products of finite numbers must not overflow.
  double sum = std::isfinite(accumulator) ? 0.0 : accumulator;
  for (std::size_t k = 0; k < a.size(); ++k) {
    if (is_finite(format, a[k]) && is_finite(format, b[k])) continue;
    sum += static_cast<double>(float_of(format, a[k])) * static_cast<double>(float_of(format, b[k]));
  }
  return std::isnan(sum) ? std::bit_cast<float>(kNan) : static_cast<float>(sum);
}

/// `significand * 2^exponent`, truncated toward zero to an integer.
std::int64_t truncated_to_integer(std::int64_t significand, int exponent) {
  if (exponent >= 0) return significand * (std::int64_t{1} << exponent);
  if (exponent <= -63) return 0;
  return significand / (std::int64_t{1} << -exponent);
}

/// `sum * 2^exponent`, truncated toward zero to f32.
float truncated_to_float(std::int64_t sum, int exponent) {
  if (sum == 0) return 0.0f;
  auto magnitude = static_cast<std::uint64_t>(std::abs(sum));
  // An f32 has 24 bits, and none below 2^-149.
  const int dropped_bits = std::max(static_cast<int>(std::bit_width(magnitude)) - 24, -149 - exponent);
  if (dropped_bits >= 64) return 0.0f;
  if (dropped_bits > 0) magnitude = magnitude >> dropped_bits << dropped_bits;
  // Exact, or 2^128 and more, which becomes infinite.
  const double value = std::ldexp(static_cast<double>(magnitude), exponent);
  const float result = value >= 0x1p128 ? std::numeric_limits<float>::infinity() : static_cast<float>(value);
  return result == 0.0f ? 0.0f : std::copysign(result, sum < 0 ? -1.0f : 1.0f);
}

/// Operands taken apart for the tile form: numbers with the significand as a float, so that it can be scaled.
template <int kRows, int kColumns>
struct Decoded {
  alignas(16) std::array<std::array<float, kColumns>, kRows> significand;
  alignas(16) std::array<std::array<std::int16_t, kColumns>, kRows> exponent;
  bool finite;
};

using DecodedA = Decoded<kMostRows, kMostDepth>;
using DecodedB = Decoded<kMostDepth, kLanes>;

template <OperandType kType, int kRows, int kColumns>
void decode(const std::uint16_t* codes, int stride, int rows, int columns,
            Decoded<kRows, kColumns>& decoded) {
  constexpr Format kFormat = format_of(kType);
  int largest = 0;
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < columns; ++column) {
      const std::uint32_t code = codes[row * stride + column];
      const Number number = number_of(kFormat, code);
      decoded.significand[row][column] = static_cast<float>(number.significand);
      decoded.exponent[row][column] = static_cast<std::int16_t>(number.exponent);
      largest = std::max(largest, fields_of(kFormat, code).exponent);
    }
  }
  decoded.finite = largest != kFormat.special_exponent();
}

/// 2^exponent, for exponents that a normal double has.
double power_of_two(int exponent) {
  return std::bit_cast<double>(static_cast<std::uint64_t>(exponent + 1023) << 52);
}

/// Adds the accumulator to the products' sum, in units of 2^(emax - kAlignmentBits), and rounds.
float finish(std::int64_t products, float accumulator, int emax) {
  const double unit = power_of_two(emax - kAlignmentBits);
  const double aligned = static_cast<double>(accumulator) * power_of_two(kAlignmentBits - emax);
  const std::int64_t sum = products + static_cast<std::int64_t>(aligned);
  const double value = static_cast<double>(sum) * unit;
  const double magnitude = std::abs(value);
  if (magnitude < 0x1p-126 || magnitude >= 0x1p128) return truncated_to_float(sum, emax - kAlignmentBits);
  constexpr std::uint64_t kBitsOfF32 = ~((std::uint64_t{1} << 29) - 1);
  return static_cast<float>(std::bit_cast<double>(std::bit_cast<std::uint64_t>(value) & kBitsOfF32));
}

/// One row of A, kLanes columns of B, all finite. Each loop over lanes is a few vector instructions.
template <OperandType kType>
void multiply_lanes(const DecodedA& a, int row, const DecodedB& b, int depth, float* accumulators) {
  std::array<std::int16_t, kLanes> emax;
  for (int n = 0; n < kLanes; ++n) {
    emax[n] =
        static_cast<std::int16_t>(number_of(kF32, std::bit_cast<std::uint32_t>(accumulators[n])).exponent);
  }
  for (int k = 0; k < depth; ++k) {
    for (int n = 0; n < kLanes; ++n) {
      emax[n] = std::max(emax[n], static_cast<std::int16_t>(a.exponent[row][k] + b.exponent[k][n]));
    }
  }
  // Products are below 4 * 2^emax, 2^27 units: the sum of sixteen is below 2^31.
  constexpr int kFloatBias = 127;
  constexpr int kUnits = kFloatBias + kAlignmentBits - 2 * format_of(kType).fraction_bits;
  std::array<std::int32_t, kLanes> sums{};
  for (int k = 0; k < depth; ++k) {
    const float significand = a.significand[row][k];
    const std::int16_t exponent = a.exponent[row][k];
    for (int n = 0; n < kLanes; ++n) {
      // The factor is a power of two, or 0 where it would be so small that nothing remains of the product.
      const auto biased = std::max<std::int16_t>(
          static_cast<std::int16_t>(exponent + b.exponent[k][n] - emax[n] + kUnits), std::int16_t{0});
      const auto factor = std::bit_cast<float>(static_cast<std::int32_t>(biased) << 23);
      sums[n] += static_cast<std::int32_t>(significand * b.significand[k][n] * factor);
    }
  }
  for (int n = 0; n < kLanes; ++n) {
    const bool all_zero = emax[n] <= kNoExponent / 2;
    accumulators[n] = all_zero ? 0.0f : finish(sums[n], accumulators[n], emax[n]);
  }
}

/// The same columns with infinities or NaN among the operands.
void step_lanes(OperandType type, const std::uint16_t* a, const std::uint16_t* b, int b_stride, int depth,
                float* accumulators) {
  for (int n = 0; n < kLanes; ++n) {
    std::array<std::uint16_t, kMostDepth> column;
    for (int k = 0; k < depth; ++k) column[k] = b[k * b_stride + n];
    const auto size = static_cast<std::size_t>(depth);
    accumulators[n] = product_step(type, {a, size}, {column.data(), size}, accumulators[n]);
  }
}

bool all_finite(const float* values) {
  std::uint32_t largest = 0;
  for (int n = 0; n < kLanes; ++n) {
    largest = std::max(largest, std::bit_cast<std::uint32_t>(values[n]) & 0x7fffffffu);
  }
  return largest < 0x7f800000u;
}

template <OperandType kType>
void multiply_tile(ProductShape shape, const std::uint16_t* a, const std::uint16_t* b, float* accumulators) {
  DecodedA decoded_a;
  DecodedB decoded_b;
  decode<kType>(a, shape.depth, shape.rows, shape.depth, decoded_a);
  for (int column = 0; column < shape.columns; column += kLanes) {
    decode<kType>(b + column, shape.columns, shape.depth, kLanes, decoded_b);
    const bool finite = decoded_a.finite && decoded_b.finite;
    for (int row = 0; row < shape.rows; ++row) {
      float* lanes = accumulators + row * shape.columns + column;
      if (finite && all_finite(lanes)) {
        multiply_lanes<kType>(decoded_a, row, decoded_b, shape.depth, lanes);
      } else {
        step_lanes(kType, a + row * shape.depth, b + column, shape.columns, shape.depth, lanes);
      }
    }
  }
}

std::uint16_t half_of(std::uint32_t value, int half) {
  return static_cast<std::uint16_t>(value >> (16 * half));
}

}  // namespace

float product_step(OperandType type, std::span<const std::uint16_t> a, std::span<const std::uint16_t> b,
                   float accumulator) {
  const Format format = format_of(type);
  const auto finite = [format](std::uint16_t code) { return is_finite(format, code); };
  if (!std::isfinite(accumulator) || !std::ranges::all_of(a, finite) || !std::ranges::all_of(b, finite)) {
    return special_step(format, a, b, accumulator);
  }

  const Number c = number_of(kF32, std::bit_cast<std::uint32_t>(accumulator));
  int emax = c.exponent;
  for (std::size_t k = 0; k < a.size(); ++k) {
    const Number x = number_of(format, a[k]);
    const Number y = number_of(format, b[k]);
    if (x.significand != 0 && y.significand != 0) emax = std::max(emax, x.exponent + y.exponent);
  }
  if (emax == kNoExponent) return 0.0f;

  const int unit = emax - kAlignmentBits;
  std::int64_t sum = truncated_to_integer(c.significand, c.exponent - kF32.fraction_bits - unit);
  for (std::size_t k = 0; k < a.size(); ++k) {
    const Number x = number_of(format, a[k]);
    const Number y = number_of(format, b[k]);
    sum += truncated_to_integer(std::int64_t{x.significand} * y.significand,
                                x.exponent + y.exponent - 2 * format.fraction_bits - unit);
  }
  return truncated_to_float(sum, unit);
}

void multiply_step(OperandType type, ProductShape shape, const std::uint16_t* a, const std::uint16_t* b,
                   float* accumulators) {
  if (type == OperandType::kBf16) {
    multiply_tile<OperandType::kBf16>(shape, a, b, accumulators);
  } else {
    multiply_tile<OperandType::kF16>(shape, a, b, accumulators);
  }
}

void warp_mma(OperandType type, int depth, std::span<const std::array<std::uint32_t, 4>, 32> a,
              std::span<const std::array<std::uint32_t, 2>, 32> b,
              std::span<std::array<float, 4>, 32> accumulators) {
  constexpr int kRows = 16;
  std::array<std::uint16_t, kRows * kMostDepth> a_codes;
  std::array<std::uint16_t, kMostDepth * kLanes> b_codes;
  std::array<float, kRows * kLanes> sums;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < depth / 2; ++i) {
      const Element at = mma_a_element(lane, i);
      a_codes[at.row * depth + at.column] = half_of(a[lane][i / 2], i % 2);
    }
    for (int i = 0; i < depth / 4; ++i) {
      const Element at = mma_b_element(lane, i);
      b_codes[at.row * kLanes + at.column] = half_of(b[lane][i / 2], i % 2);
    }
    for (int i = 0; i < 4; ++i) {
      const Element at = mma_accumulator_element(lane, i);
      sums[at.row * kLanes + at.column] = accumulators[lane][i];
    }
  }
  multiply_step(type, {.rows = kRows, .columns = kLanes, .depth = depth}, a_codes.data(), b_codes.data(),
                sums.data());
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const Element at = mma_accumulator_element(lane, i);
      accumulators[lane][i] = sums[at.row * kLanes + at.column];
    }
  }
}

}  // namespace flashmla::emulator
