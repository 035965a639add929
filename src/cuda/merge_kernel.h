// Merges what the splits of a sequence left: `out = sum_i 2^(lse_i - lse) out_i` with `lse = log2 sum_i
// 2^lse_i`.
//
// A warp takes 128 columns of a row; a row that was not divided has been written already. All multiprocessors
// take part, and splits are added in order: the bits do not depend on who does it.
#pragma once

#include <cstdint>

#include "cuda/ptx/control.h"
#include "cuda/ptx/math.h"
#include "cuda/ptx/memory.h"
#include "cuda/ptx/threads.h"
#include "cuda/tile/divisor.h"
#include "cuda/tile/float_type.h"
#include "cuda/tile/online_softmax.h"

namespace flashmla::cuda {

/// Strides in elements. Rows of a sequence and kv head are numbered `query * group + head`.
struct MergeParams {
  const float* partial_out;  ///< [slots, h_kv, rows, d_v]
  const float* partial_lse;  ///< [slots, h_kv, rows], in units of log 2; -inf where a row saw nothing
  std::int64_t slots;
  const std::int32_t* num_splits;
  std::int64_t num_splits_stride;
  std::uint16_t* out;
  std::int64_t out_strides[3];  ///< batch, query, head
  float* lse;
  std::int64_t lse_strides[3];  ///< batch, head, query
  std::int32_t batch;
  std::int32_t rows;  ///< of a sequence and kv head
  std::int32_t h_kv;
  std::int32_t d_v;
  tile::Divisor group;   ///< query heads of a kv head
  tile::Divisor pieces;  ///< of 128 columns that a row has
};

inline constexpr int kMergeThreads = 128;
/// Of a multiprocessor. Said so, the compiler keeps 16 loads in flight.
inline constexpr int kMergeBlocks = 4;
inline constexpr int kMergeColumns = 128;  ///< of a warp: 4 of each lane

/// Blocks along x take the rows of a sequence and kv head, along y the kv heads, along z the sequences. Warps
/// look for divided sequences 32 at a time: most batches have few.
template <class T>
class MergeWarp {
  using Float = tile::FloatType<T>;

 public:
  FLASHMLA_DEVICE explicit MergeWarp(const MergeParams& params)
      : params_(params), lane_(ptx::lane_index()), head_(static_cast<std::int32_t>(ptx::block_index().y)) {
    const auto work = static_cast<std::int32_t>(ptx::block_index().x) * (kMergeThreads / ptx::kWarpSize) +
                      ptx::warp_index();
    row_ = params.pieces.quotient(work);
    first_column_ = params.pieces.remainder(work) * kMergeColumns;
  }

  FLASHMLA_DEVICE void run() {
    if (row_ >= params_.rows) return;
    const auto step = static_cast<std::int32_t>(ptx::grid_size().z);
    const auto begin = static_cast<std::int32_t>(ptx::block_index().z);
    for (std::int32_t first = begin; first < params_.batch; first += step * ptx::kWarpSize) {
      const std::int64_t seq = first + std::int64_t{step} * lane_;
      const bool divided = seq < params_.batch && slot_of(seq + 1) - slot_of(seq) >= 2;
      const std::uint32_t found = ptx::warp_ballot(divided);
      for (int i = 0; i < ptx::kWarpSize; ++i) {
        if ((found >> i & 1) != 0) merge(first + step * i);
      }
    }
  }

 private:
  FLASHMLA_DEVICE std::int32_t slot_of(std::int64_t seq) const {
    const std::int32_t slot = params_.num_splits[seq * params_.num_splits_stride];
    return slot < 0 ? 0 : slot > params_.slots ? static_cast<std::int32_t>(params_.slots) : slot;
  }

  FLASHMLA_DEVICE void merge(std::int32_t seq) {
    const std::int32_t begin = slot_of(seq);
    const std::int32_t splits = slot_of(seq + 1) - begin;
    const std::int64_t first = (std::int64_t{begin} * params_.h_kv + head_) * params_.rows + row_;
    lse_ = params_.partial_lse + first;
    out_ = params_.partial_out + first * params_.d_v;
    split_stride_ = std::int64_t{params_.h_kv} * params_.rows;

    const float largest = largest_lse(splits);
    const float base = largest == tile::kMinusInfinity ? 0 : largest;
    float sums[4] = {};
    const float weight_sum = add_splits(splits, base, first_column_ + lane_ * 4, sums);
    write(seq, base, weight_sum, sums);
  }

  FLASHMLA_DEVICE float largest_lse(std::int32_t splits) const {
    float largest = tile::kMinusInfinity;
    for (std::int32_t i = lane_; i < splits; i += ptx::kWarpSize) {
      largest = ptx::max(largest, lse_[i * split_stride_]);
    }
    FLASHMLA_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) largest = ptx::max(largest, ptx::shuffle_xor(largest, mask));
    return largest;
  }

  /// Adds up weighted values of four columns; returns the sum of the weights.
  FLASHMLA_DEVICE float add_splits(std::int32_t splits, float base, std::int32_t column,
                                   float (&sums)[4]) const {
    constexpr int kInFlight = 16;  // loads that a lane does not wait for one by one
    const float* values = out_ + (column < params_.d_v ? column : 0);
    float weight_sum = 0;
    for (std::int32_t first = 0; first < splits; first += kInFlight) {
      ptx::Bytes16 loaded[kInFlight] = {};
      FLASHMLA_UNROLL
      for (int j = 0; j < kInFlight; ++j) {
        if (first + j < splits)
          loaded[j] = ptx::load_once(values + (first + j) * split_stride_ * params_.d_v);
      }
      const std::int32_t mine = first + lane_ % kInFlight;
      const float weight = mine < splits ? ptx::exp2_approx(ptx::add(lse_[mine * split_stride_], -base)) : 0;
      FLASHMLA_UNROLL
      for (int j = 0; j < kInFlight; ++j) {
        const float weight_of_split = ptx::shuffle(weight, j);
        if (first + j >= splits) continue;
        weight_sum = ptx::add(weight_sum, weight_of_split);
        FLASHMLA_UNROLL
        for (int k = 0; k < 4; ++k) {
          sums[k] = ptx::fma(weight_of_split, __builtin_bit_cast(float, loaded[j].words[k]), sums[k]);
        }
      }
    }
    return weight_sum;
  }

  FLASHMLA_DEVICE void write(std::int64_t seq, float base, float weight_sum, const float (&sums)[4]) const {
    const bool sees_nothing = weight_sum == 0;
    const std::int64_t query = params_.group.quotient(row_);
    const std::int64_t head = head_ * std::int64_t{params_.group.divisor()} + params_.group.remainder(row_);
    if (lane_ == 0 && first_column_ == 0) {
      params_.lse[seq * params_.lse_strides[0] + head * params_.lse_strides[1] +
                  query * params_.lse_strides[2]] =
          sees_nothing ? -tile::kMinusInfinity
                       : ptx::multiply(ptx::add(base, ptx::log2_approx(weight_sum)), tile::kLn2);
    }
    const std::int32_t column = first_column_ + lane_ * 4;
    if (column >= params_.d_v) return;
    const float factor = sees_nothing ? 0 : 1 / weight_sum;
    struct alignas(8) Packed {
      std::uint32_t pairs[2];
    };
    std::uint16_t* to = params_.out + seq * params_.out_strides[0] + query * params_.out_strides[1] +
                        head * params_.out_strides[2] + column;
    *reinterpret_cast<Packed*>(to) = {
        {Float::pack(ptx::multiply(sums[0], factor), ptx::multiply(sums[1], factor)),
         Float::pack(ptx::multiply(sums[2], factor), ptx::multiply(sums[3], factor))}};
  }

  const MergeParams& params_;
  int lane_;
  std::int32_t head_;  ///< kv head
  std::int32_t row_;   ///< of the sequence and kv head
  std::int32_t first_column_;
  const float* lse_ = nullptr;  ///< of the row's first split
  const float* out_ = nullptr;
  std::int64_t split_stride_ = 0;  ///< in rows
};

template <class T>
__global__ void __launch_bounds__(kMergeThreads, kMergeBlocks)
    merge_kernel(const __grid_constant__ MergeParams params) {
  ptx::wait_for_previous_kernel();
  MergeWarp<T>(params).run();
}

}  // namespace flashmla::cuda
