// Merges what the splits of a sequence left: `out = sum_i 2^(lse_i - lse) out_i` with `lse = log2 sum_i
// 2^lse_i`.
//
// Warps take the rows of all sequences in turn, 128 columns each; a row that was not divided has been written
// already. All multiprocessors take part, and splits are added in order: the bits do not depend on who does
// it.
#pragma once

#include <cstdint>

#include "cuda/ptx/control.h"
#include "cuda/ptx/math.h"
#include "cuda/ptx/memory.h"
#include "cuda/ptx/threads.h"
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
  std::int64_t batch;
  std::int32_t rows;
  std::int32_t group;
  std::int32_t h_kv;
  std::int32_t d_v;
};

inline constexpr int kMergeThreads = 128;
inline constexpr int kMergeColumns = 128;  ///< of a warp: 4 of each lane

template <class T>
class MergeWarp {
  using Float = tile::FloatType<T>;

 public:
  FLASHMLA_DEVICE explicit MergeWarp(const MergeParams& params) : params_(params), lane_(ptx::lane_index()) {}

  FLASHMLA_DEVICE void run() {
    const std::int64_t pieces = (params_.d_v + kMergeColumns - 1) / kMergeColumns;
    const std::int64_t works = params_.batch * params_.h_kv * params_.rows * pieces;
    const std::int64_t warps = std::int64_t{ptx::grid_size().x} * (kMergeThreads / ptx::kWarpSize);
    const std::int64_t first = std::int64_t{ptx::block_index().x} * (kMergeThreads / ptx::kWarpSize);
    for (std::int64_t work = first + ptx::warp_index(); work < works; work += warps) {
      const std::int64_t row = work / pieces;
      merge(row, static_cast<std::int32_t>(work % pieces) * kMergeColumns);
    }
  }

 private:
  FLASHMLA_DEVICE std::int32_t slot_of(std::int64_t seq) const {
    const std::int32_t slot = params_.num_splits[seq * params_.num_splits_stride];
    return slot < 0 ? 0 : slot > params_.slots ? static_cast<std::int32_t>(params_.slots) : slot;
  }

  /// `row` counts those of all kv heads of all sequences.
  FLASHMLA_DEVICE void merge(std::int64_t row, std::int32_t first_column) {
    const std::int64_t rows_of_sequence = std::int64_t{params_.h_kv} * params_.rows;
    const std::int64_t seq = row / rows_of_sequence;
    const std::int64_t in_sequence = row % rows_of_sequence;
    const std::int32_t begin = slot_of(seq);
    const std::int32_t splits = slot_of(seq + 1) - begin;
    if (splits < 2) return;
    lse_ = params_.partial_lse + begin * rows_of_sequence + in_sequence;
    out_ = params_.partial_out + (begin * rows_of_sequence + in_sequence) * params_.d_v;
    split_stride_ = rows_of_sequence;

    const float largest = largest_lse(splits);
    const float base = largest == tile::kMinusInfinity ? 0 : largest;
    float sums[4] = {};
    const float weight_sum = add_splits(splits, base, first_column + lane_ * 4, sums);
    write(seq, in_sequence, first_column, base, weight_sum, sums);
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
    constexpr int kInFlight = 8;  // loads that a lane does not wait for one by one
    float weight_sum = 0;
    for (std::int32_t first = 0; first < splits; first += ptx::kWarpSize) {
      const std::int32_t mine = first + lane_;
      const float weight = mine < splits ? ptx::exp2_approx(ptx::add(lse_[mine * split_stride_], -base)) : 0;
      const std::int32_t count = splits - first < ptx::kWarpSize ? splits - first : ptx::kWarpSize;
      for (std::int32_t i = 0; i < count; i += kInFlight) {
        ptx::Bytes16 loaded[kInFlight] = {};
        FLASHMLA_UNROLL
        for (int j = 0; j < kInFlight; ++j) {
          if (i + j < count && column < params_.d_v) {
            loaded[j] = ptx::load_once(out_ + (first + i + j) * split_stride_ * params_.d_v + column);
          }
        }
        FLASHMLA_UNROLL
        for (int j = 0; j < kInFlight; ++j) {
          const float shared_weight = ptx::shuffle(weight, (i + j) % ptx::kWarpSize);
          if (i + j >= count) continue;
          weight_sum = ptx::add(weight_sum, shared_weight);
          FLASHMLA_UNROLL
          for (int k = 0; k < 4; ++k) {
            sums[k] = ptx::fma(shared_weight, __builtin_bit_cast(float, loaded[j].words[k]), sums[k]);
          }
        }
      }
    }
    return weight_sum;
  }

  FLASHMLA_DEVICE void write(std::int64_t seq, std::int64_t in_sequence, std::int32_t first_column,
                             float base, float weight_sum, const float (&sums)[4]) const {
    const bool sees_nothing = weight_sum == 0;
    const std::int64_t kv_head = in_sequence / params_.rows;
    const auto row = static_cast<std::int32_t>(in_sequence % params_.rows);
    const std::int64_t query = row / params_.group;
    const std::int64_t head = kv_head * params_.group + row % params_.group;
    if (lane_ == 0 && first_column == 0) {
      params_.lse[seq * params_.lse_strides[0] + head * params_.lse_strides[1] +
                  query * params_.lse_strides[2]] =
          sees_nothing ? -tile::kMinusInfinity
                       : ptx::multiply(ptx::add(base, ptx::log2_approx(weight_sum)), tile::kLn2);
    }
    const std::int32_t column = first_column + lane_ * 4;
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
  const float* lse_ = nullptr;  ///< of the row's first split
  const float* out_ = nullptr;
  std::int64_t split_stride_ = 0;  ///< in rows
};

template <class T>
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(const __grid_constant__ MergeParams params) {
  ptx::wait_for_previous_kernel();
  MergeWarp<T>(params).run();
}

}  // namespace flashmla::cuda
