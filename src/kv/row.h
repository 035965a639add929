// One token's row to and from an FP8 cache, for every format.
#pragma once

#include <cstdint>
#include <cstring>

#include "kv/float_types.h"
#include "kv/host_device.h"
#include "kv/paged_cache.h"

namespace flashmla {

/// The smallest power of two that is at least `max(amax / 448, 1e-4)`.
FLASHMLA_HOST_DEVICE constexpr float fp8_scale_of(float amax) {
  const float ratio = amax / kLargestE4m3;
  const std::uint32_t bits = bits_of(ratio > 1e-4f ? ratio : 1e-4f);
  const std::uint32_t exponent = (bits + 0x7fffffu) >> 23;
  return float_of(exponent << 23);
}

/// One e4m3 value of a cache as bf16 bits: the value that every kernel attends over.
FLASHMLA_HOST_DEVICE constexpr std::uint16_t fp8_value_to_bf16(std::uint8_t value, float scale) {
  return float_to_bf16(e4m3_to_float(value) * scale);
}

/// Reads a token as bf16 bits, `row[Format::kWidth]`.
template <class Format>
FLASHMLA_HOST_DEVICE void load_row(const Fp8Token& token, std::uint16_t* row) {
  for (int group = 0; group < Format::kGroups; ++group) {
    const float scale = Format::read_scale(token.scales, group);
    for (int i = group * Format::kGroup; i < (group + 1) * Format::kGroup; ++i) {
      row[i] = fp8_value_to_bf16(token.values[i], scale);
    }
  }
  memcpy(row + Format::kQuantized, token.rope, 2 * Format::kRope);
}

/// The scale of a group of bf16 values. Values that are not finite take no part.
FLASHMLA_HOST_DEVICE constexpr float fp8_group_scale(const std::uint16_t* values, int count) {
  std::uint32_t amax = 0;
  for (int i = 0; i < count; ++i) {
    const std::uint32_t magnitude = values[i] & 0x7fffu;
    if (magnitude < 0x7f80u && magnitude > amax) amax = magnitude;
  }
  return fp8_scale_of(bf16_to_float(static_cast<std::uint16_t>(amax)));
}

/// Quantizes bf16 bits, `latent[Format::kQuantized]`, and copies `rope[Format::kRope]` into a token.
template <class Format>
FLASHMLA_HOST_DEVICE void store_row(const std::uint16_t* latent, const std::uint16_t* rope,
                                    const Fp8Token& token) {
  for (int group = 0; group < Format::kGroups; ++group) {
    const int begin = group * Format::kGroup;
    const float scale = fp8_group_scale(latent + begin, Format::kGroup);
    const float inverse = 1.0f / scale;  // exact: a power of two between 2^-13 and 2^120
    Format::write_scale(token.scales, group, scale);
    for (int i = begin; i < begin + Format::kGroup; ++i) {
      token.values[i] = float_to_e4m3(bf16_to_float(latent[i]) * inverse);
    }
  }
  for (int i = Format::kUsedScaleBytes; i < Format::kScaleBytes; ++i) token.scales[i] = 0;
  memcpy(token.rope, rope, 2 * Format::kRope);
}

}  // namespace flashmla
