// Arithmetic with a chosen rounding, the fast approximations, and conversions of packed numbers.
//
// Products that shall be fused are written with fma(): nvcc would fuse others too, a host compiler would not.
#pragma once

#include "cuda/ptx/target.h"
#ifndef FLASHMLA_ON_GPU
#include "cuda/emulator/instructions.h"
#endif

namespace flashmla::ptx {

/// `fma.rn.f32`: `a * b + c` with one rounding.
FLASHMLA_DEVICE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

/// `mul.rn.f32`, never fused with an addition.
FLASHMLA_DEVICE float multiply(float a, float b) {
#ifdef FLASHMLA_ON_GPU
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

/// `add.rn.f32`, never fused with a product.
FLASHMLA_DEVICE float add(float a, float b) {
#ifdef FLASHMLA_ON_GPU
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

/// `ex2.approx.ftz.f32`: 2^x with a relative error of at most 2^-22; results below 2^-126 are 0.
FLASHMLA_DEVICE float exp2_approx(float x) {
#ifdef FLASHMLA_ON_GPU
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulator::exp2_approx(x);
#endif
}

/// `lg2.approx.ftz.f32`: log2(x) with an absolute error of at most 2^-22 for x in [0.5, 2], a relative one
/// elsewhere.
FLASHMLA_DEVICE float log2_approx(float x) {
#ifdef FLASHMLA_ON_GPU
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulator::log2_approx(x);
#endif
}

/// `rcp.approx.ftz.f32`: 1 / x with an error of at most 1 ulp.
FLASHMLA_DEVICE float reciprocal_approx(float x) {
#ifdef FLASHMLA_ON_GPU
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulator::reciprocal_approx(x);
#endif
}

/// `max.f32`: the other one if one is NaN; +0 is larger than -0.
FLASHMLA_DEVICE float max(float a, float b) {
#ifdef FLASHMLA_ON_GPU
  return __builtin_fmaxf(a, b);
#else
  // The host's fmaxf() gives NaN for signaling ones, and any of two zeros. Equal numbers have equal bits, but
  // for the zeros.
  if (a == b) {
    return __builtin_bit_cast(float,
                              __builtin_bit_cast(std::uint32_t, a) & __builtin_bit_cast(std::uint32_t, b));
  }
  return a > b || b != b ? a : b;
#endif
}

/// `cvt.rn.bf16x2.f32`: two bf16, `low` in the lower half. NaN becomes 0x7fff.
FLASHMLA_DEVICE std::uint32_t pack_bf16(float low, float high) {
#ifdef FLASHMLA_ON_GPU
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  return emulator::pack_bf16(low, high);
#endif
}

/// `cvt.rn.f16x2.f32`: two f16, `low` in the lower half; what is 65520 or more becomes infinite. NaN becomes
/// 0x7fff.
FLASHMLA_DEVICE std::uint32_t pack_f16(float low, float high) {
#ifdef FLASHMLA_ON_GPU
  std::uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  return emulator::pack_f16(low, high);
#endif
}

/// The two bf16 of `packed`, exact.
FLASHMLA_DEVICE float low_bf16(std::uint32_t packed) { return __builtin_bit_cast(float, packed << 16); }
FLASHMLA_DEVICE float high_bf16(std::uint32_t packed) {
  return __builtin_bit_cast(float, packed & 0xffff0000u);
}

/// `cvt.f32.f16`: the two f16 of `packed`, exact; NaN becomes 0x7fffffff.
FLASHMLA_DEVICE float low_f16(std::uint32_t packed) {
#ifdef FLASHMLA_ON_GPU
  float value;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.f32.f16 %0, low;\n}"
      : "=f"(value)
      : "r"(packed));
  return value;
#else
  return emulator::f16_to_float(static_cast<std::uint16_t>(packed));
#endif
}
FLASHMLA_DEVICE float high_f16(std::uint32_t packed) { return low_f16(packed >> 16); }

/// `cvt.rn.f16x2.e4m3x2`: two e4m3 codes (the lower 16 bits) as two f16, exact; NaN codes become 0x7fff. From
/// SM89 on; before, by moving bits.
FLASHMLA_DEVICE std::uint32_t e4m3_to_f16(std::uint32_t codes) {
#ifdef FLASHMLA_ON_GPU
#if __CUDA_ARCH__ >= 890
  std::uint32_t packed;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.rn.f16x2.e4m3x2 %0, low;\n}"
      : "=r"(packed)
      : "r"(codes));
  return packed;
#else
  // e4m3 behind the sign of f16 is the value times 2^-8; NaN codes are set by hand.
  const std::uint32_t spread = (codes & 0xffu) | ((codes & 0xff00u) << 8);
  const std::uint32_t shifted = ((spread & 0x00800080u) << 8) | ((spread & 0x007f007fu) << 7);
  std::uint32_t packed;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(packed) : "r"(shifted), "r"(0x5c005c00u));
  if ((codes & 0x7fu) == 0x7fu) packed = (packed & 0xffff0000u) | 0x7fffu;
  if ((codes & 0x7f00u) == 0x7f00u) packed = (packed & 0x0000ffffu) | 0x7fff0000u;
  return packed;
#endif
#else
  return emulator::e4m3_to_f16(codes);
#endif
}

/// `cvt.rn.satfinite.e4m3x2.f32`: two e4m3 codes, `low` in the lower byte; beyond 448, infinity too, is 448,
/// and NaN is 0x7f.
/// From SM89 on.
FLASHMLA_DEVICE std::uint32_t pack_e4m3(float low, float high) {
#ifdef FLASHMLA_ON_GPU
  std::uint16_t packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
#else
  return emulator::pack_e4m3(low, high);
#endif
}

/// `mul.rn.f16x2`: two products.
FLASHMLA_DEVICE std::uint32_t multiply_f16(std::uint32_t a, std::uint32_t b) {
#ifdef FLASHMLA_ON_GPU
  std::uint32_t product;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
#else
  return emulator::multiply_f16(a, b);
#endif
}

/// `mul.rn.bf16x2` (before SM90: `fma` with -0): two products.
FLASHMLA_DEVICE std::uint32_t multiply_bf16(std::uint32_t a, std::uint32_t b) {
#ifdef FLASHMLA_ON_GPU
  std::uint32_t product;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
  return product;
#else
  return emulator::multiply_bf16(a, b);
#endif
}

}  // namespace flashmla::ptx
