// The cache format fp8_model1: rows of 448 e4m3 and 64 bf16 RoPE values, their scales behind the rows.
#pragma once

#include <cstdint>

#include "flashmla/kv_format.h"
#include "kv/float_types.h"
#include "kv/host_device.h"
#include "kv/paged_cache.h"

namespace flashmla {

/// 584 bytes a token in two places of its block: 576 bytes of values and RoPE values at `row * 576`,
/// and behind all rows, at `page * 576 + row * 8`, 7 ue8m0 scales (one per 64 values) and an unused
/// byte, which is written as 0.
struct Fp8Model1 {
  static constexpr KvFormat kFormat = KvFormat::kFp8Model1;
  static constexpr const char* kName = "fp8_model1";
  static constexpr int kQuantized = 448;
  static constexpr int kRope = 64;
  static constexpr int kWidth = kQuantized + kRope;
  static constexpr int kGroup = 64;
  static constexpr int kGroups = kQuantized / kGroup;
  static constexpr int kScaleBytes = 8;
  static constexpr int kUsedScaleBytes = kGroups;
  static constexpr int kRowBytes = kQuantized + 2 * kRope + kScaleBytes;
  /// Bytes of a token that stand behind each other, its values first.
  static constexpr int kTogetherBytes = kQuantized + 2 * kRope;
  /// Distance between tokens of a block in bytes, as the tensor's stride must tell it.
  static constexpr int kTokenStride = kRowBytes;

  FLASHMLA_HOST_DEVICE static Fp8Token token(const PagedCache& cache, std::int64_t block, std::int64_t row) {
    std::uint8_t* begin = cache.block(block);
    std::uint8_t* values = begin + row * kTogetherBytes;
    return {values, begin + cache.page * kTogetherBytes + row * kScaleBytes, values + kQuantized};
  }

  FLASHMLA_HOST_DEVICE static float read_scale(const std::uint8_t* scales, int group) {
    return ue8m0_to_float(scales[group]);
  }

  /// `scale` is a power of two.
  FLASHMLA_HOST_DEVICE static void write_scale(std::uint8_t* scales, int group, float scale) {
    scales[group] = power_of_two_to_ue8m0(scale);
  }
};

}  // namespace flashmla
