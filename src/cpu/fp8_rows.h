// One token's row to and from an FP8 cache as in kv/row.h, with vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/engine.h"
#include "kv/row.h"

namespace flashmla::cpu {

template <class Format>
void store_token(const Engine& engine, const std::uint16_t* latent, const std::uint16_t* rope,
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
  engine.quantize(latent, inverse_scales, Format::kGroups, Format::kGroup, token.values);
  std::memcpy(token.scales, scales, sizeof(scales));
  std::memcpy(token.rope, rope, 2 * Format::kRope);
}

/// The same past the caches; `engine.streams` must exist.
template <class Format>
void stream_token(const Engine& engine, const std::uint16_t* latent, const std::uint16_t* rope,
                  const Fp8Token& token) {
  alignas(64) std::uint8_t row[Format::kTogetherBytes];
  const auto in_row = [&](std::uint8_t* part) {
    const std::ptrdiff_t at = part - token.values;
    return at >= 0 && at < Format::kTogetherBytes ? row + at : part;
  };
  store_token<Format>(engine, latent, rope, {row, in_row(token.scales), in_row(token.rope)});
  engine.streams.copy(row, Format::kTogetherBytes, token.values);
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
