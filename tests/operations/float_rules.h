// The narrow floats of the cache formats, computed from their definitions, apart from the library.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace flashmla {

/// OCP e4m3fn: sign, 4 exponent bits with bias 7, 3 mantissa bits; 0x7f and 0xff are NaN.
inline double e4m3_value(int code) {
  const double sign = (code & 0x80) != 0 ? -1.0 : 1.0;
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<double>::quiet_NaN();
  if (exponent == 0) return sign * std::ldexp(mantissa, -9);
  return sign * std::ldexp(8 + mantissa, exponent - 10);
}

/// The code whose value is nearest to `x`, of two the even one; found by looking at all of them.
inline int nearest_e4m3(double x) {
  const int sign = std::signbit(x) ? 0x80 : 0;
  int best = 0;
  for (int code = 1; code <= 0x7e; ++code) {
    const double distance = std::fabs(e4m3_value(code) - std::fabs(x));
    const double least = std::fabs(e4m3_value(best) - std::fabs(x));
    if (distance < least || (distance == least && code % 2 == 0)) best = code;
  }
  return sign | best;
}

/// To nearest even with 8 significant bits, subnormals below 2^-126, infinity from 2^128 on.
inline double round_to_bf16(double x) {
  if (!std::isfinite(x) || x == 0) return x;
  int exponent = 0;
  std::frexp(x, &exponent);  // |x| in [2^(exponent - 1), 2^exponent)
  const double unit = std::ldexp(1.0, std::max(exponent - 8, -133));
  const double rounded = std::nearbyint(x / unit) * unit;
  return std::fabs(rounded) < std::ldexp(1.0, 128)
             ? rounded
             : std::copysign(std::numeric_limits<double>::infinity(), x);
}

/// A power of two with bias 127; 255 is NaN.
inline double ue8m0_value(int code) {
  return code == 255 ? std::numeric_limits<double>::quiet_NaN() : std::ldexp(1.0, code - 127);
}

}  // namespace flashmla
