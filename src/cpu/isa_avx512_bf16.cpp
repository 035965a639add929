// The engine for processors with AVX512_BF16: scores are products of bf16 pairs.
#include "cpu/engine.h"

#if defined(__AVX512BF16__)
#include "cpu/isa_avx512.h"
#include "cpu/tiles.h"

namespace flashmla::cpu {
static constexpr Engine kEngine = Tiles<Bf16Operand<Avx512Bf16>>::engine("avx512_bf16");
const Engine* const kAvx512Bf16Engine = &kEngine;
}  // namespace flashmla::cpu
#else
namespace flashmla::cpu {
const Engine* const kAvx512Bf16Engine = nullptr;
}  // namespace flashmla::cpu
#endif
