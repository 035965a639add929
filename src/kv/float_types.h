// Conversions between float and the narrow types of a cache (bf16, f16, e4m3, ue8m0), on raw bits.
#pragma once

#include <cstdint>

#include "kv/host_device.h"

namespace flashmla {

FLASHMLA_HOST_DEVICE constexpr std::uint32_t bits_of(float value) {
  return __builtin_bit_cast(std::uint32_t, value);
}

FLASHMLA_HOST_DEVICE constexpr float float_of(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

/// Sign bit, 8 exponent bits, 7 mantissa bits: the upper half of a float.
FLASHMLA_HOST_DEVICE constexpr float bf16_to_float(std::uint16_t code) {
  return float_of(std::uint32_t{code} << 16);
}

/// To nearest even; a NaN stays a NaN.
FLASHMLA_HOST_DEVICE constexpr std::uint16_t float_to_bf16(float value) {
  const std::uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// IEEE binary16: 5 exponent bits, 10 mantissa bits.
FLASHMLA_HOST_DEVICE constexpr float f16_to_float(std::uint16_t code) {
  const std::uint32_t sign = (code & 0x8000u) << 16;
  const std::uint32_t exponent = (code >> 10) & 31u;
  const std::uint32_t mantissa = code & 1023u;
  if (exponent == 31) return float_of(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return float_of(sign | bits_of(magnitude));
  }
  return float_of(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

/// To nearest even; what is 65520 or more becomes infinite; a NaN stays a NaN.
FLASHMLA_HOST_DEVICE constexpr std::uint16_t float_to_f16(float value) {
  const std::uint32_t sign = (bits_of(value) >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits_of(value) & 0x7fffffffu;
  std::uint32_t code = 0;
  if (magnitude > 0x7f800000u) {
    code = 0x7e00u | ((magnitude >> 13) & 1023u);
  } else if (magnitude >= bits_of(65536.0f)) {
    code = 0x7c00u;
  } else if (magnitude >= bits_of(0x1p-14f)) {
    code = ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) >> 13) - (112u << 10);
  } else {
    // Below 2^-14 the code counts steps of 2^-24, which is the distance between floats at 0.5.
    code = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  }
  return static_cast<std::uint16_t>(sign | code);
}

/// A float between `value` and zero, or at `value`, whose last bit says whether `value` was exact
/// ("round to odd"). Rounding the result to a type of at most 22 significant bits is then the same as
/// rounding `value` once.
FLASHMLA_HOST_DEVICE constexpr float double_to_odd_float(double value) {
  const float nearest = static_cast<float>(value);
  const double error = static_cast<double>(nearest) - value;
  if (!(error < 0 || error > 0)) return nearest;
  const bool away_from_zero = (error > 0) == (value > 0);
  return float_of((bits_of(nearest) - (away_from_zero ? 1u : 0u)) | 1u);
}

/// One rounding, to nearest even.
FLASHMLA_HOST_DEVICE constexpr std::uint16_t double_to_bf16(double value) {
  return float_to_bf16(double_to_odd_float(value));
}

/// One rounding, to nearest even.
FLASHMLA_HOST_DEVICE constexpr std::uint16_t double_to_f16(double value) {
  return float_to_f16(double_to_odd_float(value));
}

inline constexpr float kLargestE4m3 = 448.0f;

/// OCP e4m3fn: 4 exponent bits, 3 mantissa bits, no infinities; 0x7f and 0xff are NaN, read
/// as the same one.
/// Source: OCP 8-bit Floating Point Specification, revision 1.0.
FLASHMLA_HOST_DEVICE constexpr float e4m3_to_float(std::uint8_t code) {
  const std::uint32_t sign = (code & 0x80u) << 24;
  const std::uint32_t magnitude = code & 0x7fu;
  if (magnitude == 0x7fu) return float_of(0x7fc00000u);
  if (magnitude < 8) return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-9f));
  return float_of(sign | ((magnitude + (120u << 3)) << 20));
}

/// To nearest even; finite values beyond 448 become 448; what is not finite becomes NaN.
FLASHMLA_HOST_DEVICE constexpr std::uint8_t float_to_e4m3(float value) {
  const std::uint32_t sign = (bits_of(value) >> 24) & 0x80u;
  const std::uint32_t magnitude = bits_of(value) & 0x7fffffffu;
  std::uint32_t code = 0;
  if (magnitude >= 0x7f800000u) {
    code = 0x7fu;
  } else if (magnitude >= bits_of(kLargestE4m3)) {
    code = 0x7eu;
  } else if (magnitude >= bits_of(0x1p-6f)) {
    code = ((magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20) - (120u << 3);
  } else {
    // Below 2^-6 the code counts steps of 2^-9, which is the distance between floats at 2^14.
    code = bits_of(float_of(magnitude) + 0x1p14f) - bits_of(0x1p14f);
  }
  return static_cast<std::uint8_t>(sign | code);
}

/// A power of two: `2^(code - 127)`; 255 is NaN.
/// Source: OCP Microscaling Formats (MX) Specification, revision 1.0.
FLASHMLA_HOST_DEVICE constexpr float ue8m0_to_float(std::uint8_t code) {
  if (code == 255) return float_of(0x7fc00000u);
  if (code == 0) return 0x1p-127f;
  return float_of(std::uint32_t{code} << 23);
}

/// The inverse for powers of two in `[2^-127, 2^127]`.
FLASHMLA_HOST_DEVICE constexpr std::uint8_t power_of_two_to_ue8m0(float power) {
  return static_cast<std::uint8_t>(bits_of(power) >> 23);
}

}  // namespace flashmla
