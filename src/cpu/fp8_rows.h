// One token's row to and from an FP8 cache as in kv/row.h, with vectors.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/engine.h"
#include "kv/row.h"

namespace flashmla::cpu {

template <class Format>
void store_token(const Engine& engine, const std::uint16_t* latent, const std::uint16_t* rope,
                 const Fp8Token& token) {
  for (int group = 0; group < Format::kGroups; ++group) {
    const int begin = group * Format::kGroup;
    const float scale = fp8_group_scale(latent + begin, Format::kGroup);
    Format::write_scale(token.scales, group, scale);
    engine.quantize(latent + begin, 1.0f / scale, Format::kGroup, token.values + begin);
  }
  for (int i = Format::kUsedScaleBytes; i < Format::kScaleBytes; ++i) token.scales[i] = 0;
  std::memcpy(token.rope, rope, 2 * Format::kRope);
}

template <class Format>
void load_token(const Engine& engine, const Fp8Token& token, std::uint16_t* row) {
  for (int group = 0; group < Format::kGroups; ++group) {
    const int begin = group * Format::kGroup;
    engine.dequantize(token.values + begin, Format::read_scale(token.scales, group), Format::kGroup,
                      row + begin);
  }
  std::memcpy(row + Format::kQuantized, token.rope, 2 * Format::kRope);
}

}  // namespace flashmla::cpu
