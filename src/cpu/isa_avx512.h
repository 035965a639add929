// Vectors of AVX-512, for the files that are compiled with it.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace flashmla::cpu {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16;
  using F32 = float __attribute__((vector_size(64)));
  using I32 = std::int32_t __attribute__((vector_size(64)));
  using U16 = std::uint16_t __attribute__((vector_size(32)));
  using U8 = std::uint8_t __attribute__((vector_size(16)));
  using TwoU16 = std::uint16_t __attribute__((vector_size(64)));
  using TwoU8 = std::uint8_t __attribute__((vector_size(32)));

  static F32 fma(F32 a, F32 b, F32 c) { return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }

  static F32 max(F32 a, F32 b) { return (F32)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b); }
  static I32 widen(U16 from) { return (I32)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)from); }
  static I32 widen(U8 from) { return (I32)_mm512_maskz_cvtepu8_epi32(0xffff, (__m128i)from); }

  // The zero-masked forms: the plain ones of gcc 12 warn of an uninitialized vector.
  static F32 widen_f16(U16 from) { return (F32)_mm512_maskz_cvtph_ps(0xffff, (__m256i)from); }
  static U16 narrow_f16(F32 from) {
    return (U16)_mm512_maskz_cvtps_ph(0xffff, (__m512)from, _MM_FROUND_TO_NEAREST_INT);
  }

  static TwoU16 look_up(TwoU16 table, TwoU16 index) {
    return (TwoU16)_mm512_maskz_permutexvar_epi16(0xffffffff, (__m512i)index, (__m512i)table);
  }

  static void stream(void* to, I32 value) { _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)value); }
  static void stream_fence() { _mm_sfence(); }
};

#if defined(__AVX512BF16__)
struct Avx512Bf16 : Avx512 {
  /// vdpbf16ps: both products of a pair onto one f32 sum.
  static F32 dot(F32 sum, I32 a, I32 b) {
    return (F32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};
#endif

}  // namespace
}  // namespace flashmla::cpu
