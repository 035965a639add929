// The cache format fp8_v32: 512 e4m3 values, 4 f32 scales and 64 bf16 RoPE values in one row.
#pragma once

#include <cstdint>
#include <cstring>

#include "flashmla/kv_format.h"
#include "kv/host_device.h"
#include "kv/paged_cache.h"

namespace flashmla {

/// 656 bytes a token: values at 0, scales at 512, RoPE values at 528. Rows may be any distance apart.
/// A scale is any positive f32, one per 128 values; this library writes powers of two.
struct Fp8V32 {
  static constexpr KvFormat kFormat = KvFormat::kFp8V32;
  static constexpr const char* kName = "fp8_v32";
  static constexpr int kQuantized = 512;
  static constexpr int kRope = 64;
  static constexpr int kWidth = kQuantized + kRope;
  static constexpr int kGroup = 128;
  static constexpr int kGroups = kQuantized / kGroup;
  static constexpr int kScaleBytes = 4 * kGroups;
  static constexpr int kUsedScaleBytes = kScaleBytes;
  static constexpr int kRowBytes = kQuantized + kScaleBytes + 2 * kRope;
  /// Bytes of a token that stand behind each other, its values first.
  static constexpr int kTogetherBytes = kRowBytes;
  /// Distance between tokens of a block in bytes; 0: free.
  static constexpr int kTokenStride = 0;

  FLASHMLA_HOST_DEVICE static Fp8Token token(const PagedCache& cache, std::int64_t block, std::int64_t row) {
    std::uint8_t* begin = cache.block(block) + row * cache.token_stride;
    return {begin, begin + kQuantized, begin + kQuantized + kScaleBytes};
  }

  FLASHMLA_HOST_DEVICE static float read_scale(const std::uint8_t* scales, int group) {
    float scale;
    memcpy(&scale, scales + 4 * group, 4);
    return scale;
  }

  FLASHMLA_HOST_DEVICE static void write_scale(std::uint8_t* scales, int group, float scale) {
    memcpy(scales + 4 * group, &scale, 4);
  }
};

}  // namespace flashmla
