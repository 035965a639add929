// The two 16-bit types of an attention kernel's operands.
#pragma once

#include <cstdint>

#include "cuda/ptx/math.h"
#include "cuda/ptx/target.h"

namespace flashmla::tile {

template <class T>
struct FloatType;

template <>
struct FloatType<ptx::Bf16> {
  FLASHMLA_DEVICE static std::uint32_t pack(float low, float high) { return ptx::pack_bf16(low, high); }
  FLASHMLA_DEVICE static float low(std::uint32_t packed) { return ptx::low_bf16(packed); }
  FLASHMLA_DEVICE static float high(std::uint32_t packed) { return ptx::high_bf16(packed); }
  static constexpr std::uint32_t kExponent = 0x7f80;  ///< all ones in an infinity or NaN
  /// Log2 of the largest softmax weight, but for the slack of a base that lags behind.
  static constexpr float kLargestWeightLog = 0;
};

template <>
struct FloatType<ptx::F16> {
  FLASHMLA_DEVICE static std::uint32_t pack(float low, float high) { return ptx::pack_f16(low, high); }
  FLASHMLA_DEVICE static float low(std::uint32_t packed) { return ptx::low_f16(packed); }
  FLASHMLA_DEVICE static float high(std::uint32_t packed) { return ptx::high_f16(packed); }
  static constexpr std::uint32_t kExponent = 0x7c00;
  /// As high as the range allows: what is below 2^-25 is lost, and may be many.
  static constexpr float kLargestWeightLog = 11;
};

/// Whether one of the two packed numbers is an infinity or NaN.
template <class T>
FLASHMLA_DEVICE bool any_nonfinite(std::uint32_t packed) {
  constexpr std::uint32_t kLow = FloatType<T>::kExponent;
  constexpr std::uint32_t kHigh = kLow << 16;
  return (packed & kLow) == kLow || (packed & kHigh) == kHigh;
}

}  // namespace flashmla::tile
