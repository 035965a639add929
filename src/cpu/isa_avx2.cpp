// The engine for processors with AVX2, FMA and F16C.
#include "cpu/engine.h"

#if defined(__AVX2__)
#include <immintrin.h>

#include "cpu/tiles.h"

namespace flashmla::cpu {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  using F32 = float __attribute__((vector_size(32)));
  using I32 = std::int32_t __attribute__((vector_size(32)));
  using U16 = std::uint16_t __attribute__((vector_size(16)));
  using U8 = std::uint8_t __attribute__((vector_size(8)));
  using TwoU16 = std::uint16_t __attribute__((vector_size(32)));
  using TwoU8 = std::uint8_t __attribute__((vector_size(16)));

  static F32 fma(F32 a, F32 b, F32 c) { return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
  static F32 max(F32 a, F32 b) { return (F32)_mm256_max_ps((__m256)a, (__m256)b); }
  static I32 widen(U16 from) { return (I32)_mm256_cvtepu16_epi32((__m128i)from); }
  static I32 widen(U8 from) { return (I32)_mm256_cvtepu8_epi32(_mm_loadu_si64(&from)); }
  static F32 widen_f16(U16 from) { return (F32)_mm256_cvtph_ps((__m128i)from); }
  static U16 narrow_f16(F32 from) { return (U16)_mm256_cvtps_ph((__m256)from, _MM_FROUND_TO_NEAREST_INT); }

  /// By the places of both bytes, in each half of the vector.
  static TwoU16 look_up(TwoU16 table, TwoU16 index) {
    const __m256i halves = _mm256_broadcastsi128_si256(_mm256_castsi256_si128((__m256i)table));
    return (TwoU16)_mm256_shuffle_epi8(halves, (__m256i)(index * 0x0202 + 0x0100));
  }

  static void stream(void* to, I32 value) { _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)value); }
  static void stream_fence() { _mm_sfence(); }
};

}  // namespace

static constexpr Engine kEngine = Tiles<F32Operand<Avx2>>::engine("avx2");
const Engine* const kAvx2Engine = &kEngine;
}  // namespace flashmla::cpu
#else
namespace flashmla::cpu {
const Engine* const kAvx2Engine = nullptr;
}  // namespace flashmla::cpu
#endif
