// One token's row to and from an FP8 cache as in kv/row.h, with vectors.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/engine.h"
#include "kv/row.h"

namespace flashmla::cpu {

/// Copies a row, or a part of it, past the caches or not.
inline void copy_row(const Engine& engine, bool streamed, const void* from, std::size_t bytes, void* to) {
  if (streamed) return engine.streams.copy(from, static_cast<std::int64_t>(bytes), to);
  std::memcpy(to, from, bytes);
}

template <class Format>
void store_token(const Engine& engine, bool streamed, const std::uint16_t* latent, const std::uint16_t* rope,
                 const Fp8Token& token) {
  std::uint16_t amax[Format::kGroups];
  engine.largest_finite(latent, Format::kGroups, Format::kGroup, amax);
  std::uint8_t scales[Format::kScaleBytes] = {};
  float inverse_scales[Format::kGroups];
  for (int group = 0; group < Format::kGroups; ++group) {
    const float scale = fp8_scale_of(bf16_to_float(amax[group]));
    Format::write_scale(scales, group, scale);
    inverse_scales[group] = 1.0f / scale;
  }
  const auto quantize = streamed ? engine.streams.quantize : engine.quantize;
  quantize(latent, inverse_scales, Format::kGroups, Format::kGroup, token.values);
  copy_row(engine, streamed, scales, sizeof(scales), token.scales);
  copy_row(engine, streamed, rope, 2 * Format::kRope, token.rope);
}

template <class Format>
void load_token(const Engine& engine, const Fp8Token& token, std::uint16_t* row) {
  float scales[Format::kGroups];
  for (int group = 0; group < Format::kGroups; ++group) {
    scales[group] = Format::read_scale(token.scales, group);
  }
  engine.dequantize(token.values, scales, Format::kGroups, Format::kGroup, row);
  std::memcpy(row + Format::kQuantized, token.rope, 2 * Format::kRope);
}

}  // namespace flashmla::cpu
