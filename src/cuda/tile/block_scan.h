// Prefix sums over the threads of a block.
#pragma once

#include <cstdint>

#include "cuda/ptx/threads.h"

namespace flashmla::tile {

template <int kThreads>
struct BlockScanShared {
  std::int64_t warp_sums[kThreads / ptx::kWarpSize];
};

FLASHMLA_DEVICE std::int64_t shuffle_64(std::int64_t value, int lane) {
  const auto bits = static_cast<std::uint64_t>(value);
  const std::uint32_t low = ptx::shuffle(static_cast<std::uint32_t>(bits), lane);
  const std::uint32_t high = ptx::shuffle(static_cast<std::uint32_t>(bits >> 32), lane);
  return static_cast<std::int64_t>(std::uint64_t{high} << 32 | low);
}

/// The sum of `value` over this thread and those before it. All threads call it.
template <int kThreads>
FLASHMLA_DEVICE std::int64_t block_inclusive_sum(std::int64_t value, BlockScanShared<kThreads>& shared) {
  static_assert(kThreads % ptx::kWarpSize == 0);
  const int lane = ptx::lane_index();
  for (int distance = 1; distance < ptx::kWarpSize; distance *= 2) {
    const std::int64_t before = shuffle_64(value, lane >= distance ? lane - distance : lane);
    if (lane >= distance) value += before;
  }
  if (lane == ptx::kWarpSize - 1) shared.warp_sums[ptx::warp_index()] = value;
  ptx::sync_block();
  for (int warp = 0; warp < ptx::warp_index(); ++warp) value += shared.warp_sums[warp];
  ptx::sync_block();
  return value;
}

}  // namespace flashmla::tile
