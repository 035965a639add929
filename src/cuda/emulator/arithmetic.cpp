// The fast approximations, as exact as the host can, and conversions of packed numbers, bit for bit.
#include <algorithm>
#include <bit>
#include <cmath>

#include "cuda/emulator/instructions.h"
#include "kv/float_types.h"

namespace flashmla::emulator {
namespace {

constexpr float kSmallestNormal = 0x1p-126f;

/// `.ftz`: subnormal numbers count as zero.
float flushed(float x) { return std::abs(x) < kSmallestNormal ? std::copysign(0.0f, x) : x; }

std::uint32_t pack(std::uint32_t low, std::uint32_t high) { return low | high << 16; }

std::uint16_t low_half(std::uint32_t packed) { return static_cast<std::uint16_t>(packed); }
std::uint16_t high_half(std::uint32_t packed) { return static_cast<std::uint16_t>(packed >> 16); }

/// Conversions of a GPU give one NaN.
std::uint16_t to_bf16(float x) { return std::isnan(x) ? 0x7fff : flashmla::float_to_bf16(x); }
std::uint16_t to_f16(float x) { return std::isnan(x) ? 0x7fff : flashmla::float_to_f16(x); }
/// `.satfinite`: infinity becomes the largest number.
std::uint8_t to_e4m3(float x) {
  if (std::isnan(x)) return 0x7f;
  return flashmla::float_to_e4m3(std::clamp(x, -flashmla::kLargestE4m3, flashmla::kLargestE4m3));
}

std::uint16_t e4m3_code_to_f16(std::uint32_t code) {
  return to_f16(flashmla::e4m3_to_float(static_cast<std::uint8_t>(code)));
}

}  // namespace

float exp2_approx(float x) { return flushed(std::exp2(flushed(x))); }
float log2_approx(float x) { return std::log2(flushed(x)); }
float reciprocal_approx(float x) { return flushed(1.0f / flushed(x)); }

std::uint32_t pack_bf16(float low, float high) { return pack(to_bf16(low), to_bf16(high)); }
std::uint32_t pack_f16(float low, float high) { return pack(to_f16(low), to_f16(high)); }
float f16_to_float(std::uint16_t bits) {
  const float x = flashmla::f16_to_float(bits);
  return std::isnan(x) ? std::bit_cast<float>(0x7fffffffu) : x;
}

std::uint32_t e4m3_to_f16(std::uint32_t codes) {
  return pack(e4m3_code_to_f16(codes & 0xff), e4m3_code_to_f16(codes >> 8 & 0xff));
}

std::uint32_t pack_e4m3(float low, float high) {
  return to_e4m3(low) | static_cast<std::uint32_t>(to_e4m3(high)) << 8;
}

// A product of two 11-bit numbers is exact in a float, so it is rounded once.
std::uint32_t multiply_f16(std::uint32_t a, std::uint32_t b) {
  return pack(to_f16(f16_to_float(low_half(a)) * f16_to_float(low_half(b))),
              to_f16(f16_to_float(high_half(a)) * f16_to_float(high_half(b))));
}

// One of two 8-bit numbers too, unless it is subnormal: a double holds it.
std::uint32_t multiply_bf16(std::uint32_t a, std::uint32_t b) {
  const auto product = [](std::uint16_t x, std::uint16_t y) -> std::uint16_t {
    const double exact = double{flashmla::bf16_to_float(x)} * double{flashmla::bf16_to_float(y)};
    return std::isnan(exact) ? 0x7fff : flashmla::double_to_bf16(exact);
  };
  return pack(product(low_half(a), low_half(b)), product(high_half(a), high_half(b)));
}

}  // namespace flashmla::emulator
