// Operands and accumulators for tests of matrix products: every kind of sum that the matrix unit may round.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "cuda/ptx/target.h"
#include "values.h"

namespace flashmla::wrappers {

/// How a 16-bit number is laid out.
struct Format {
  int mantissa_bits;
  int bias;
  int largest_exponent;  // as it is stored; Inf and NaN

  template <class T>
  static constexpr Format of();
};
template <>
constexpr Format Format::of<ptx::Bf16>() {
  return {.mantissa_bits = 7, .bias = 127, .largest_exponent = 255};
}
template <>
constexpr Format Format::of<ptx::F16>() {
  return {.mantissa_bits = 10, .bias = 15, .largest_exponent = 31};
}

/// What the numbers of one product look like.
struct Mix {
  int exponents = 0;     ///< of operands: uniform in `center +- exponents`
  int center = 0;        ///< without the bias
  int accumulator = 0;   ///< exponents of accumulators: `2 * center + accumulator +- 4`
  int zeros = 0;         ///< percent of operands and accumulators, of either sign
  int subnormals = 0;    ///< percent of operands
  int specials = 0;      ///< per mille of operands and accumulators that are infinite or NaN
  bool cancels = false;  ///< neighbours along the sum cancel each other but for few bits
};

/// The mixes that a test walks through; some of a mix's numbers are drawn anew each time.
inline Mix any_mix(Random& random, const Format& format) {
  const int top = format.largest_exponent - 1 - format.bias;
  const int bottom = 1 - format.bias;
  switch (random.between(0, 11)) {
    case 0:  // as in attention
      return {.exponents = 2};
    case 1:  // accumulators far above and far below the products
      return {.exponents = 2, .accumulator = random.between(-40, 40)};
    case 2:  // products of very different sizes
      return {.exponents = 7, .accumulator = random.between(-14, 14)};
    case 3:
      return {.exponents = 14, .accumulator = random.between(-30, 30)};
    case 4:  // any bits
      return {.exponents = format.largest_exponent, .accumulator = random.between(-100, 100)};
    case 5:  // sums that overflow
      return {.exponents = 3, .center = top - 3, .accumulator = random.between(-4, 4)};
    case 6:  // the smallest numbers
      return {.exponents = 3, .center = bottom + 2, .accumulator = random.between(-20, 20), .subnormals = 50};
    case 7:  // products at the lower end of f32
      return {.exponents = 4, .center = -66, .accumulator = random.between(-20, 20)};
    case 8:  // subnormal operands beside large ones
      return {.exponents = format.largest_exponent, .subnormals = 40};
    case 9:
      return {.exponents = 4, .accumulator = random.between(-20, 20), .zeros = random.between(5, 100)};
    case 10:
      return {.exponents = 4, .zeros = 5, .specials = random.between(1, 40)};
    default:
      return {.exponents = 3, .accumulator = random.between(-30, 10), .cancels = true};
  }
}

/// A 16-bit number of the mix.
inline std::uint32_t operand(Random& random, const Format& format, const Mix& mix) {
  const std::uint32_t sign = (random.bits() & 1) << 15;
  const auto special = static_cast<std::uint32_t>(format.largest_exponent) << format.mantissa_bits;
  if (random.between(0, 999) < mix.specials)
    return sign | special | (random.percent(30) ? random.bits() & 0x7f : 0);
  if (random.percent(mix.zeros)) return sign;
  const std::uint32_t mantissa = random.bits() & ((1u << format.mantissa_bits) - 1);
  if (random.percent(mix.subnormals)) return sign | mantissa;
  const int drawn = mix.center + format.bias + random.between(-mix.exponents, mix.exponents);
  const int exponent = std::clamp(drawn, 0, format.largest_exponent - 1);
  return sign | static_cast<std::uint32_t>(exponent) << format.mantissa_bits | mantissa;
}

/// Two neighbours along the sum, the first in the lower half. `flips` is 0x8000 where the second one shall be
/// the negative of the first but for its last bits, else 0.
inline std::uint32_t operand_pair(Random& random, const Format& format, const Mix& mix, std::uint32_t flips) {
  const std::uint32_t first = operand(random, format, mix);
  if (!mix.cancels) return first | operand(random, format, mix) << 16;
  const std::uint32_t change = random.percent(20) ? random.bits() & 3 : 0;
  return first | (first ^ flips ^ change) << 16;
}

inline float accumulator(Random& random, const Mix& mix) {
  const std::uint32_t sign = random.bits() & 0x80000000u;
  if (random.between(0, 999) < mix.specials) {
    return std::bit_cast<float>(sign | 0x7f800000u | (random.percent(30) ? random.bits() & 0x7fffffu : 0));
  }
  if (random.percent(mix.zeros)) return std::bit_cast<float>(sign);
  const int exponent = std::clamp(127 + 2 * mix.center + mix.accumulator + random.between(-4, 4), 0, 254);
  return std::bit_cast<float>(sign | static_cast<std::uint32_t>(exponent) << 23 |
                              (random.bits() & 0x7fffffu));
}

}  // namespace flashmla::wrappers
