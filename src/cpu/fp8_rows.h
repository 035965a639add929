// Rows of FP8 caches to and from bf16, with vectors: tokens as in kv/row.h, and plain codes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>

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

inline constexpr int kCodesInGroup = 64;

/// Numbers that load_codes writes for a row of `width`.
constexpr std::int64_t whole_groups(std::int64_t width) {
  return (width + kCodesInGroup - 1) / kCodesInGroup * kCodesInGroup;
}

/// A row of e4m3 codes without scales as bf16, which is exact. Reads `width` codes; what it writes behind
/// them means nothing.
inline void load_codes(const Engine& engine, const std::uint8_t* codes, std::int64_t width,
                       std::uint16_t* row) {
  constexpr float kOnes[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  std::int64_t at = 0;
  while (width - at >= kCodesInGroup) {
    const std::int64_t groups = std::min<std::int64_t>((width - at) / kCodesInGroup, std::size(kOnes));
    engine.dequantize(codes + at, kOnes, static_cast<int>(groups), kCodesInGroup, row + at);
    at += groups * kCodesInGroup;
  }
  if (at == width) return;
  std::uint8_t rest[kCodesInGroup] = {};
  std::memcpy(rest, codes + at, static_cast<std::size_t>(width - at));
  engine.dequantize(rest, kOnes, 1, kCodesInGroup, row + at);
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
