// The engine for AVX-512 processors: f32 multiply-add.
#include "cpu/engine.h"

#if defined(__AVX512F__)
#include "cpu/isa_avx512.h"
#include "cpu/tiles.h"

namespace flashmla::cpu {
static constexpr Engine kEngine = Tiles<F32Operand<Avx512>>::engine("avx512");
const Engine* const kAvx512Engine = &kEngine;
}  // namespace flashmla::cpu
#else
namespace flashmla::cpu {
const Engine* const kAvx512Engine = nullptr;
}  // namespace flashmla::cpu
#endif
