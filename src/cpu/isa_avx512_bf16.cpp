// The engine for processors with AVX512_BF16: scores are products of bf16 pairs.
#include "cpu/engine.h"

#if defined(__AVX512BF16__)
#include "cpu/isa_avx512.h"
#include "cpu/tiles.h"

namespace flashmla::cpu {
namespace {

struct Avx512Bf16 : Avx512 {
  /// vdpbf16ps: both products of a pair onto one f32 sum.
  static F32 dot(F32 sum, I32 a, I32 b) {
    return (F32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};

}  // namespace

static constexpr Engine kEngine = Tiles<Bf16Operand<Avx512Bf16>>::engine("avx512_bf16");
const Engine* const kAvx512Bf16Engine = &kEngine;
}  // namespace flashmla::cpu
#else
namespace flashmla::cpu {
const Engine* const kAvx512Bf16Engine = nullptr;
}  // namespace flashmla::cpu
#endif
