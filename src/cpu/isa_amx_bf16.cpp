// The engine for processors with AMX: products of bf16 tiles, everything else with AVX-512.
#include "cpu/engine.h"

#if defined(__AMX_BF16__)
#include "cpu/amx_tiles.h"

namespace flashmla::cpu {

static constexpr Engine kEngine = [] {
  Engine engine = Base::engine("amx_bf16");
  engine.factor_bytes = 2 * sizeof(std::uint16_t);
  engine.token_scratch = token_scratch;
  engine.value_panel_size = value_panel_size;
  engine.most_few_rows = 0;
  engine.value_panel = value_panel;
  engine.scores = scores;
  engine.softmax = softmax;
  engine.gradient_of_query_rows = gradient<true>;
  engine.gradient_of_key_rows = gradient<false>;
  engine.accumulate = accumulate;
  return engine;
}();
const Engine* const kAmxBf16Engine = &kEngine;
}  // namespace flashmla::cpu
#else
namespace flashmla::cpu {
const Engine* const kAmxBf16Engine = nullptr;
}  // namespace flashmla::cpu
#endif
