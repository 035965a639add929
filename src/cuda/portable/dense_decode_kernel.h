// The dense decode kernel for every GPU from SM80 on: attention of a tile of query rows over one part of the
// schedule, by mma.sync.
//
// Rows are the pairs (query token, query head) of one kv head, numbered `query * group + head`; kRows of them
// share a block's keys. Keys come in tiles of 32 rows of the cache, which are keys and values alike. For each
// tile
//   scores   S = Q K^T. Q stays in registers: warps share out its columns (kDepthParts), its rows, and the
//   keys.
//            Each warp stores its part of the sum to shared memory.
//   softmax  adds the parts; some threads for each row. Weights go to shared memory in 16 bits, and what
//            rounding took from them in 16 more.
//   values   O += P V. Each warp has 64 of the 512 value columns, for all rows, in registers. The second 16
//   bits
//            of the weights are multiplied only in tiles where they could show in the result.
#pragma once

#include <cstdint>

#include "cuda/ptx/control.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/math.h"
#include "cuda/ptx/matrix.h"
#include "cuda/ptx/threads.h"
#include "cuda/tile/float_type.h"
#include "cuda/tile/online_softmax.h"
#include "cuda/tile/paged_rows.h"
#include "cuda/tile/swizzle.h"
#include "schedule/schedule.h"

namespace flashmla::portable {

/// Strides in elements.
struct DenseDecodeParams {
  tile::PagedCacheParams cache;
  const std::uint16_t* q;
  std::int64_t q_strides[3];  ///< batch, query, head
  std::uint16_t* out;
  std::int64_t out_strides[3];  ///< batch, query, head
  float* lse;
  std::int64_t lse_strides[3];  ///< batch, head, query
  /// What splits of divided sequences leave for the merge: f32 `[slots, h_kv, rows, d_v]` and, in units of
  /// log 2, `[slots, h_kv, rows]`. Split `n` of a sequence has slot `num_splits[sequence] + n`.
  float* partial_out;
  float* partial_lse;
  std::int64_t slots;
  ScheduleRequest request;
  const std::int32_t* schedule;
  std::int64_t schedule_stride;
  const std::int32_t* num_splits;
  std::int64_t num_splits_stride;
  std::int32_t s_q;
  std::int32_t group;  ///< query heads of a kv head
  std::int32_t h_kv;
  std::int32_t d_qk;
  std::int32_t d_v;
  std::int32_t row_tiles;
  float logit_factor;  ///< softmax_scale * log2(e)
  bool causal;
};

inline constexpr int kMaxWidth = 576;
inline constexpr int kMaxValueWidth = 512;

template <class T_, int kRows_, int kStages_, int kDepthParts_>
struct DenseDecodeConfig {
  using T = T_;
  static constexpr int kRows = kRows_;
  static constexpr int kStages = kStages_;
  static constexpr int kDepthParts = kDepthParts_;

  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * ptx::kWarpSize;
  static constexpr int kKeys = 32;

  // Scores: a warp has kScoreTiles x 16 rows, kWarpKeys keys and kDepthSteps x 16 columns. Two row tiles a
  // warp halve what it reads of the keys; with two depth parts the registers hold only one.
  static constexpr int kScoreTiles = kDepthParts == 4 && kRows >= 32 ? 2 : 1;
  static constexpr int kRowGroups = kRows / (16 * kScoreTiles);
  static constexpr int kWarpKeys = kKeys * kRowGroups * kDepthParts / kWarps;
  static constexpr int kDepthSteps = kMaxWidth / 16 / kDepthParts;
  static_assert(kWarpKeys % 16 == 0 && kDepthSteps * kDepthParts * 16 == kMaxWidth);

  // Softmax: a thread has kThreadKeys keys of one row.
  static constexpr int kRowThreads = kThreads / kRows;
  static constexpr int kThreadKeys = kKeys / kRowThreads;

  // Values: a warp has 64 columns of all rows.
  static constexpr int kRowTiles = kRows / 16;
  static constexpr int kWarpColumns = kMaxValueWidth / kWarps;
};

template <class C>
struct DenseDecodeShared {
  std::uint16_t keys[C::kStages][C::kKeys * kMaxWidth];  ///< wide_row_offset
  float scores[C::kDepthParts][C::kRows * C::kKeys];     ///< logit_offset
  std::uint16_t weights[2][C::kRows * C::kKeys];         ///< narrow_row_offset; rounded, and the rest
  float row_factor[C::kRows];                            ///< of the sums so far
  std::uint8_t key_exists[C::kStages][C::kKeys];
  // What is needed once a split: registers are short.
  PartRow rest;  ///< of the part
  Split split;
  bool has_split;
  std::int32_t first_diagonal;  ///< the first key that the first query does not see
};

template <class C>
class DenseDecodeBlock {
  using T = typename C::T;
  using Float = tile::FloatType<T>;

 public:
  FLASHMLA_DEVICE explicit DenseDecodeBlock(const DenseDecodeParams& params)
      : params_(params),
        shared_(ptx::shared_memory<DenseDecodeShared<C>>()),
        row_begin_(static_cast<std::int32_t>(row_tile()) * C::kRows) {}

  FLASHMLA_DEVICE void run() {
    const Thread self = this_thread();
    if (self.index == 0) shared_.rest = part_row();
    while (next_split()) {
      attend();
      finish();
    }
  }

 private:
  /// A given schedule may hold anything: what it names is brought into range.
  FLASHMLA_DEVICE PartRow part_row() const {
    PartRow row = PartRow::load(params_.schedule + part() * params_.schedule_stride);
    const auto last_seq = static_cast<std::int32_t>(params_.request.batch - 1);
    row.begin_seq = row.begin_seq < 0 ? 0 : row.begin_seq;
    row.end_seq = row.end_seq > last_seq ? last_seq : row.end_seq;
    if (row.empty()) return row;
    const auto clamp_key = [&](std::int32_t key, std::int32_t seq) {
      const auto length = static_cast<std::int32_t>(params_.request.length_of(seq));
      return key < 0 ? 0 : key > length ? length : key;
    };
    row.begin_key = clamp_key(row.begin_key, row.begin_seq);
    row.end_key = clamp_key(row.end_key, row.end_seq);
    return row;
  }

  FLASHMLA_DEVICE bool next_split() {
    const Thread self = this_thread();
    if (self.index == 0) {
      PartSplits splits(params_.request, shared_.rest);
      Split split = {};
      shared_.has_split = splits.next(split);
      shared_.split = split;
      shared_.rest = splits.rest();
      if (shared_.has_split) {
        shared_.first_diagonal =
            static_cast<std::int32_t>(params_.request.length_of(split.seq)) - params_.s_q + 1;
      }
    }
    ptx::sync_block();
    return shared_.has_split;
  }

  // --- Which thread and block this is
  // --------------------------------------------------------------------------

  struct Thread {
    int index, warp, lane;
  };

  /// Asked anew in each step: 255 registers do not hold it through all of them.
  FLASHMLA_DEVICE static Thread this_thread() {
    const int index = ptx::reread_thread_index();
    return {index, index / ptx::kWarpSize, index % ptx::kWarpSize};
  }

  FLASHMLA_DEVICE std::uint32_t row_tile() const {
    return ptx::block_index().x % static_cast<std::uint32_t>(params_.row_tiles);
  }
  FLASHMLA_DEVICE std::uint32_t head_and_part() const {
    return ptx::block_index().x / static_cast<std::uint32_t>(params_.row_tiles);
  }
  FLASHMLA_DEVICE std::int32_t head() const {
    return static_cast<std::int32_t>(head_and_part() % static_cast<std::uint32_t>(params_.h_kv));
  }
  FLASHMLA_DEVICE std::int64_t part() const {
    return head_and_part() / static_cast<std::uint32_t>(params_.h_kv);
  }
  FLASHMLA_DEVICE std::int32_t rows() const { return params_.s_q * params_.group; }

  // --- One split ----------------------------------------------------------------------------------

  FLASHMLA_DEVICE void attend() {
    const Thread self = this_thread();
    const Split split = shared_.split;
    begin_ = static_cast<std::int32_t>(split.begin);
    end_ = static_cast<std::int32_t>(split.end);
    if (params_.causal) {
      const std::int32_t last_row = row_begin_ + C::kRows < rows() ? row_begin_ + C::kRows : rows();
      const std::int32_t visible = bound_of(last_row - 1);
      end_ = end_ < visible ? end_ : visible;
    }
    row_bound_ = min(bound_of(row_begin_ + self.index / C::kRowThreads), end_);

    look_up(0);
    for (int stage = 0; stage < C::kStages; ++stage) load_tile(stage, stage);
    load_queries(split.seq);
    start_rows();
    ptx::copy_async_wait<C::kStages - 1>();
    ptx::sync_block();
    int stage = 0;
    for (std::int32_t tile = 0; keys_from(tile) > 0; ++tile) {
      scores(stage);
      ptx::sync_block();
      const bool rest_matters = softmax(tile, stage);
      const bool exact = ptx::sync_block_or(rest_matters);
      if (params_.causal) keep_hidden_values_out(tile, stage);
      values(stage, exact);
      ptx::copy_async_wait<C::kStages - 2>();
      ptx::sync_block();
      load_tile(tile + C::kStages, stage);
      stage = stage + 1 == C::kStages ? 0 : stage + 1;
    }
    ptx::copy_async_wait<0>();
  }

  /// The first key that a row does not see, by its query.
  FLASHMLA_DEVICE std::int32_t bound_of(std::int32_t row) const {
    return params_.causal ? shared_.first_diagonal + row / params_.group : end_;
  }

  FLASHMLA_DEVICE static std::int32_t min(std::int32_t a, std::int32_t b) { return a < b ? a : b; }

  FLASHMLA_DEVICE void start_rows() {
    state_ = {};
    row_sum_ = 0;
    FLASHMLA_UNROLL
    for (int i = 0; i < C::kRowTiles; ++i) {
      FLASHMLA_UNROLL
      for (int j = 0; j < kColumnTiles; ++j) {
        FLASHMLA_UNROLL
        for (int k = 0; k < 4; ++k) out_[i][j][k] = 0;
      }
    }
  }

  // --- Loading --------------------------------------------------------------------------------------

  static constexpr int kWarpRows = C::kKeys / C::kWarps;  ///< rows of a tile that a warp loads
  static_assert(kWarpRows == 4);

  FLASHMLA_DEVICE tile::PagedRows paged_rows() const {
    return tile::PagedRows(params_.cache, shared_.split.seq, head());
  }

  /// Keys of this tile and those behind it; not positive behind the last one. `tile` may be some tiles behind
  /// it, where the number of a key need not be an i32.
  FLASHMLA_DEVICE std::int32_t keys_from(std::int32_t tile) const {
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(end_) - static_cast<std::uint32_t>(begin_) -
                                     static_cast<std::uint32_t>(tile) * C::kKeys);
  }

  /// Reads the page table for a tile that will be loaded; its latency is then not waited for.
  FLASHMLA_DEVICE void look_up(std::int32_t tile) {
    const Thread self = this_thread();
    const int key = self.warp * kWarpRows + self.lane % kWarpRows;
    next_block_ = key < keys_from(tile) ? paged_rows().block_of(begin_ + tile * C::kKeys + key) : -1;
  }

  /// Starts the copy of a tile into a stage; rows that do not exist become zeros, so that a weight of 0 hides
  /// them. One group of copies, empty behind the last tile.
  FLASHMLA_DEVICE void load_tile(std::int32_t tile, int stage) {
    const Thread self = this_thread();
    const std::int32_t keys = keys_from(tile);
    if (keys > 0) {
      const int key = self.warp * kWarpRows + self.lane % kWarpRows;
      const std::uint16_t* row =
          key < keys ? paged_rows().row(next_block_, begin_ + tile * C::kKeys + key) : nullptr;
      if (self.lane < kWarpRows) shared_.key_exists[stage][key] = row != nullptr;
      look_up(tile + 1);
      copy_rows(row, stage);
    }
    ptx::copy_async_commit();
  }

  /// A row has 72 chunks: two rounds of a warp, and a quarter of a round that four rows share.
  FLASHMLA_DEVICE void copy_rows(const std::uint16_t* row_of_lane, int stage) {
    const Thread self = this_thread();
    const int first_row = self.warp * kWarpRows;
    const auto address = reinterpret_cast<std::uint64_t>(row_of_lane);
    const auto low = static_cast<std::uint32_t>(address);
    const auto high = static_cast<std::uint32_t>(address >> 32);
    const auto row_of = [&](int lane) {
      return reinterpret_cast<const std::uint16_t*>(std::uint64_t{ptx::shuffle(high, lane)} << 32 |
                                                    ptx::shuffle(low, lane));
    };
    FLASHMLA_UNROLL
    for (int i = 0; i < kWarpRows; ++i) {
      const std::uint16_t* row = row_of(i);
      copy_chunk(row, stage, first_row + i, self.lane);
      copy_chunk(row, stage, first_row + i, 32 + self.lane);
    }
    copy_chunk(row_of(self.lane / 8), stage, first_row + self.lane / 8, 64 + self.lane % 8);
  }

  FLASHMLA_DEVICE void copy_chunk(const std::uint16_t* row, int stage, int tile_row, int chunk) {
    const bool exists = row != nullptr && chunk * tile::kChunk < params_.d_qk;
    std::uint16_t* to = shared_.keys[stage] + tile::wide_row_offset<kMaxWidth>(tile_row, chunk);
    ptx::copy_async_16(to, exists ? row + chunk * tile::kChunk : params_.q, exists ? 16 : 0);
  }

  /// Q as fragments of A; step `s` of a warp covers the columns of step `s * kDepthParts + depth_part()`.
  FLASHMLA_DEVICE void load_queries(std::int64_t seq) {
    const Thread self = this_thread();
    const std::uint16_t* q = params_.q + seq * params_.q_strides[0];
    FLASHMLA_UNROLL
    for (int i = 0; i < 2 * C::kScoreTiles; ++i) {
      const std::int32_t row =
          row_begin_ + (row_group(self.warp) * C::kScoreTiles + i / 2) * 16 + i % 2 * 8 + self.lane / 4;
      const std::uint16_t* from = q + row / params_.group * params_.q_strides[1] +
                                  (head() * params_.group + row % params_.group) * params_.q_strides[2];
      FLASHMLA_UNROLL
      for (int s = 0; s < C::kDepthSteps; ++s) {
        FLASHMLA_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int column = (s * C::kDepthParts + depth_part(self.warp)) * 16 + half * 8 + self.lane % 4 * 2;
          const bool exists = row < rows() && column < params_.d_qk;
          q_[i / 2][s][half * 2 + i % 2] =
              exists ? *reinterpret_cast<const std::uint32_t*>(from + column) : 0u;
        }
      }
    }
  }

  // --- Scores ---------------------------------------------------------------------------------------

  FLASHMLA_DEVICE static int depth_part(int warp) { return warp % C::kDepthParts; }
  FLASHMLA_DEVICE static int row_group(int warp) { return warp / C::kDepthParts % C::kRowGroups; }
  FLASHMLA_DEVICE static int key_group(int warp) { return warp / C::kDepthParts / C::kRowGroups; }

  FLASHMLA_DEVICE void scores(int stage) {
    const Thread self = this_thread();
    FLASHMLA_UNROLL
    for (int k = 0; k < C::kWarpKeys; k += 16) {
      const int first_key = key_group(self.warp) * C::kWarpKeys + k;
      float sums[C::kScoreTiles][2][4] = {};
      const std::uint16_t* key =
          shared_.keys[stage] + (first_key + self.lane / 16 * 8 + self.lane % 8) * kMaxWidth;
      const int chunk = depth_part(self.warp) * 2 + self.lane / 8 % 2;
      FLASHMLA_UNROLL
      for (int s = 0; s < C::kDepthSteps; ++s) {
        std::uint32_t b[4];
        ptx::load_matrix(b, key + tile::swizzled_chunk(s * C::kDepthParts * 2, chunk ^ (self.lane % 8)));
        FLASHMLA_UNROLL
        for (int i = 0; i < C::kScoreTiles; ++i) {
          ptx::mma_16x8x16<T>(sums[i][0], q_[i][s], b[0], b[1]);
          ptx::mma_16x8x16<T>(sums[i][1], q_[i][s], b[2], b[3]);
        }
      }
      store_scores(sums, first_key);
    }
  }

  FLASHMLA_DEVICE void store_scores(const float (&sums)[C::kScoreTiles][2][4], int first_key) {
    const Thread self = this_thread();
    float* scores = shared_.scores[depth_part(self.warp)];
    FLASHMLA_UNROLL
    for (int i = 0; i < C::kScoreTiles; ++i) {
      const int row = (row_group(self.warp) * C::kScoreTiles + i) * 16 + self.lane / 4;
      FLASHMLA_UNROLL
      for (int j = 0; j < 2; ++j) {
        const int column = first_key + j * 8 + self.lane % 4 * 2;
        store_pair(scores + tile::logit_offset(row, column), sums[i][j][0], sums[i][j][1]);
        store_pair(scores + tile::logit_offset(row + 8, column), sums[i][j][2], sums[i][j][3]);
      }
    }
  }

  struct alignas(8) Pair {
    float first, second;
  };
  FLASHMLA_DEVICE static void store_pair(float* to, float first, float second) {
    *reinterpret_cast<Pair*>(to) = {first, second};
  }

  // --- Softmax --------------------------------------------------------------------------------------

  /// Weights whose rounding error is below this share of the row's sum so far do not need their rest: the
  /// errors of a tile then add to less than 2^-11.5 of a typical value, and sums grow.
  static constexpr float kNegligible = 0x1p-14f;

  /// Returns whether the rest of a weight of this thread matters.
  FLASHMLA_DEVICE bool softmax(std::int32_t tile, int stage) {
    const Thread self = this_thread();
    const int row = self.index / C::kRowThreads;
    const int first_key = self.index % C::kRowThreads * C::kThreadKeys;
    float weights[C::kThreadKeys];
    read_logits(weights, row, first_key);
    const std::int32_t visible = row_bound_ - (begin_ + tile * C::kKeys + first_key);
    float largest = tile::kMinusInfinity;
    FLASHMLA_UNROLL
    for (int k = 0; k < C::kThreadKeys; ++k) {
      const bool seen = k < visible && shared_.key_exists[stage][first_key + k] != 0;
      weights[k] = seen ? ptx::multiply(weights[k], params_.logit_factor) : tile::kMinusInfinity;
      largest = ptx::max(largest, weights[k]);
    }
    const float factor = state_.advance(largest_in_row(largest));
    row_sum_ = ptx::multiply(row_sum_, factor);
    if (first_key == 0) shared_.row_factor[row] = factor;
    return store_weights(weights, row, first_key);
  }

  FLASHMLA_DEVICE void read_logits(float (&logits)[C::kThreadKeys], int row, int first_key) const {
    FLASHMLA_UNROLL
    for (int k = 0; k < C::kThreadKeys; k += kReadWidth) {
      const int at = tile::logit_offset(row, first_key + k);
      FLASHMLA_UNROLL
      for (int part = 0; part < C::kDepthParts; ++part) {
        const auto read = *reinterpret_cast<const ReadUnit*>(shared_.scores[part] + at);
        FLASHMLA_UNROLL
        for (int i = 0; i < kReadWidth; ++i) {
          logits[k + i] = part == 0 ? read.values[i] : ptx::add(logits[k + i], read.values[i]);
        }
      }
    }
  }
  static constexpr int kReadWidth = C::kThreadKeys < 4 ? C::kThreadKeys : 4;
  struct alignas(kReadWidth * 4) ReadUnit {
    float values[kReadWidth];
  };

  FLASHMLA_DEVICE static float largest_in_row(float value) {
    FLASHMLA_UNROLL
    for (int mask = C::kRowThreads / 2; mask > 0; mask /= 2) {
      value = ptx::max(value, ptx::shuffle_xor(value, mask));
    }
    return value;
  }

  FLASHMLA_DEVICE static float sum_of_row(float value) {
    FLASHMLA_UNROLL
    for (int mask = C::kRowThreads / 2; mask > 0; mask /= 2) {
      value = ptx::add(value, ptx::shuffle_xor(value, mask));
    }
    return value;
  }

  /// Turns logits into weights; stores both halves of them.
  FLASHMLA_DEVICE bool store_weights(const float (&logits)[C::kThreadKeys], int row, int first_key) {
    const float base = state_.subtrahend();
    float sum = 0;
    float largest_rest = 0;
    WeightUnit rounded;
    WeightUnit rest;
    FLASHMLA_UNROLL
    for (int k = 0; k < C::kThreadKeys; k += 2) {
      const float low = ptx::exp2_approx(ptx::add(logits[k], -base));
      const float high = ptx::exp2_approx(ptx::add(logits[k + 1], -base));
      const std::uint32_t packed = Float::pack(low, high);
      const float low_rest = ptx::add(low, -Float::low(packed));
      const float high_rest = ptx::add(high, -Float::high(packed));
      rounded.pairs[k / 2] = packed;
      rest.pairs[k / 2] = Float::pack(low_rest, high_rest);
      sum = ptx::add(sum, ptx::add(low, high));
      largest_rest = ptx::max(largest_rest, ptx::max(__builtin_fabsf(low_rest), __builtin_fabsf(high_rest)));
    }
    const int at = tile::narrow_row_offset(row, first_key / tile::kChunk) + first_key % tile::kChunk;
    *reinterpret_cast<WeightUnit*>(shared_.weights[0] + at) = rounded;
    *reinterpret_cast<WeightUnit*>(shared_.weights[1] + at) = rest;
    row_sum_ = ptx::add(row_sum_, sum);
    state_.sum = ptx::add(state_.sum, sum_of_row(sum));
    return largest_rest > kNegligible * state_.sum;
  }
  struct alignas(C::kThreadKeys * 2) WeightUnit {
    std::uint32_t pairs[C::kThreadKeys / 2];
  };

  // --- Values ---------------------------------------------------------------------------------------

  static constexpr int kColumnTiles = C::kWarpColumns / 8;

  FLASHMLA_DEVICE void values(int stage, bool exact) {
    const Thread self = this_thread();
    if (self.warp * C::kWarpColumns >= params_.d_v) return;
    rescale();
    for (int pass = 0; pass < (exact ? 2 : 1); ++pass) add_values(stage, shared_.weights[pass]);
  }

  FLASHMLA_DEVICE void rescale() {
    const Thread self = this_thread();
    float factors[2 * C::kRowTiles];
    bool all_one = true;
    FLASHMLA_UNROLL
    for (int i = 0; i < 2 * C::kRowTiles; ++i) {
      factors[i] = shared_.row_factor[i * 8 + self.lane / 4];
      all_one = all_one && factors[i] == 1;
    }
    if (ptx::warp_any(!all_one)) scale_rows(factors);
  }

  FLASHMLA_DEVICE void scale_rows(const float (&factors)[2 * C::kRowTiles]) {
    FLASHMLA_UNROLL
    for (int i = 0; i < C::kRowTiles; ++i) {
      FLASHMLA_UNROLL
      for (int j = 0; j < kColumnTiles; ++j) {
        FLASHMLA_UNROLL
        for (int k = 0; k < 4; ++k) out_[i][j][k] = ptx::multiply(out_[i][j][k], factors[2 * i + k / 2]);
      }
    }
  }

  FLASHMLA_DEVICE void add_values(int stage, const std::uint16_t* weights) {
    const Thread self = this_thread();
    FLASHMLA_UNROLL
    for (int k = 0; k < C::kKeys; k += 16) {
      std::uint32_t a[C::kRowTiles][4];
      FLASHMLA_UNROLL
      for (int i = 0; i < C::kRowTiles; ++i) {
        ptx::load_matrix(a[i],
                         weights + tile::narrow_row_offset(i * 16 + self.lane % 16, k / 8 + self.lane / 16));
      }
      const std::uint16_t* key =
          shared_.keys[stage] + (k + self.lane % 16) * kMaxWidth + self.warp * C::kWarpColumns;
      FLASHMLA_UNROLL
      for (int j = 0; j < kColumnTiles; j += 2) {
        std::uint32_t b[4];
        ptx::load_matrix_transposed(b, key + tile::swizzled_chunk(j, self.lane / 16 ^ self.lane % 8));
        FLASHMLA_UNROLL
        for (int i = 0; i < C::kRowTiles; ++i) {
          ptx::mma_16x8x16<T>(out_[i][j], a[i], b[0], b[1]);
          ptx::mma_16x8x16<T>(out_[i][j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

  // --- Values that some rows see and others do not -----------------------------------------------------

  /// A weight of 0 hides a value from a row unless it is infinite or NaN. Where rows differ in what they see,
  /// such values are added by hand to the rows that see them, and then cleared.
  FLASHMLA_DEVICE void keep_hidden_values_out(std::int32_t tile, int stage) {
    const Thread self = this_thread();
    const std::int32_t tile_begin = begin_ + tile * C::kKeys;
    const int first_key = static_cast<int>(bound_of(row_begin_) - tile_begin);
    const int keys = static_cast<int>(min(end_ - tile_begin, C::kKeys));
    if (first_key >= keys) return;
    bool nonfinite = false;
    const int begin = first_key < 0 ? 0 : first_key;
    for (int key = begin + self.warp; key < keys; key += C::kWarps) {
      for (int chunk = self.lane; chunk * tile::kChunk < params_.d_v; chunk += ptx::kWarpSize) {
        const auto* pairs = reinterpret_cast<const std::uint32_t*>(
            shared_.keys[stage] + tile::wide_row_offset<kMaxWidth>(key, chunk));
        for (int i = 0; i < 4; ++i) nonfinite = nonfinite || tile::any_nonfinite<T>(pairs[i]);
      }
    }
    if (ptx::sync_block_or(nonfinite)) add_and_clear(tile_begin, stage, begin, keys);
  }

  FLASHMLA_DEVICE void add_and_clear(std::int32_t tile_begin, int stage, int begin, int end) {
    const Thread self = this_thread();
    rescale();
    for (int key = begin; key < end; ++key) add_key(tile_begin, stage, key);
    ptx::sync_block();
    for (int key = begin; key < end; ++key) {
      for (int column = self.index; column < kMaxWidth; column += C::kThreads) {
        shared_.keys[stage][key * kMaxWidth + column] = 0;
      }
    }
    for (int row = self.index; row < C::kRows; row += C::kThreads) shared_.row_factor[row] = 1;
    ptx::sync_block();
  }

  /// Adds one key's value to this thread's columns of the rows that see it.
  FLASHMLA_DEVICE void add_key(std::int32_t tile_begin, int stage, int key) {
    const Thread self = this_thread();
    FLASHMLA_UNROLL
    for (int i = 0; i < 2 * C::kRowTiles; ++i) {
      const int row = i * 8 + self.lane / 4;
      if (tile_begin + key >= bound_of(row_begin_ + row)) continue;
      const int at = tile::narrow_row_offset(row, key / tile::kChunk) + key % tile::kChunk;
      const float weight = Float::low(shared_.weights[0][at]) + Float::low(shared_.weights[1][at]);
      FLASHMLA_UNROLL
      for (int j = 0; j < kColumnTiles; ++j) {
        const auto pair = *reinterpret_cast<const std::uint32_t*>(
            shared_.keys[stage] + tile::wide_row_offset<kMaxWidth>(key, self.warp * kColumnTiles + j) +
            self.lane % 4 * 2);
        float* out = out_[i / 2][j] + i % 2 * 2;
        out[0] = ptx::fma(weight, Float::low(pair), out[0]);
        out[1] = ptx::fma(weight, Float::high(pair), out[1]);
      }
    }
  }

  // --- Results ----------------------------------------------------------------------------------------

  /// Divides by the sums; writes a whole sequence's rows to the outputs, a split's for the merge.
  FLASHMLA_DEVICE void finish() {
    const Split split = shared_.split;
    const std::int32_t first_slot = params_.num_splits[split.seq * params_.num_splits_stride];
    const std::int32_t next_slot = params_.num_splits[(split.seq + 1) * params_.num_splits_stride];
    const bool whole = next_slot - first_slot == 1;
    const std::int64_t slot = first_slot + split.number;
    finish_sums(split.seq, whole, slot);
    ptx::sync_block();
    if (whole) {
      write_rows(split.seq);
    } else if (slot >= 0 && slot < params_.slots) {
      write_partial_rows(slot);
    }
    ptx::sync_block();
  }

  FLASHMLA_DEVICE void finish_sums(std::int64_t seq, bool whole, std::int64_t slot) {
    const Thread self = this_thread();
    const float sum = sum_of_row(row_sum_);
    const bool sees_nothing = sum == 0;
    if (self.index % C::kRowThreads != 0) return;
    const int tile_row = self.index / C::kRowThreads;
    shared_.row_factor[tile_row] = sees_nothing ? 0 : 1 / sum;
    const std::int32_t row = row_begin_ + tile_row;
    if (row >= rows()) return;
    const float lse = sees_nothing ? tile::kMinusInfinity : state_.base + ptx::log2_approx(sum);
    if (whole) {
      float* to = params_.lse + seq * params_.lse_strides[0] +
                  (head() * params_.group + row % params_.group) * params_.lse_strides[1] +
                  row / params_.group * params_.lse_strides[2];
      *to = sees_nothing ? -tile::kMinusInfinity : ptx::multiply(lse, tile::kLn2);
    } else if (slot >= 0 && slot < params_.slots) {
      params_.partial_lse[(slot * params_.h_kv + head()) * rows() + row] = lse;
    }
  }

  /// Calls `write(row, column, first, second)` for the pairs of neighbours that this thread holds.
  template <class Write>
  FLASHMLA_DEVICE void for_each_pair(Write&& write) {
    const Thread self = this_thread();
    FLASHMLA_UNROLL
    for (int i = 0; i < 2 * C::kRowTiles; ++i) {
      const int tile_row = i * 8 + self.lane / 4;
      const std::int32_t row = row_begin_ + tile_row;
      if (row >= rows()) continue;
      const float factor = shared_.row_factor[tile_row];
      FLASHMLA_UNROLL
      for (int j = 0; j < kColumnTiles; ++j) {
        const int column = self.warp * C::kWarpColumns + j * 8 + self.lane % 4 * 2;
        if (column >= params_.d_v) continue;
        const float* pair = out_[i / 2][j] + i % 2 * 2;
        write(row, column, ptx::multiply(pair[0], factor), ptx::multiply(pair[1], factor));
      }
    }
  }

  FLASHMLA_DEVICE void write_rows(std::int64_t seq) {
    for_each_pair([&](std::int32_t row, int column, float first, float second) {
      std::uint16_t* to = params_.out + seq * params_.out_strides[0] +
                          row / params_.group * params_.out_strides[1] +
                          (head() * params_.group + row % params_.group) * params_.out_strides[2];
      *reinterpret_cast<std::uint32_t*>(to + column) = Float::pack(first, second);
    });
  }

  FLASHMLA_DEVICE void write_partial_rows(std::int64_t slot) {
    for_each_pair([&](std::int32_t row, int column, float first, float second) {
      const std::int64_t at = (slot * params_.h_kv + head()) * rows() + row;
      store_pair(params_.partial_out + at * params_.d_v + column, first, second);
    });
  }

  const DenseDecodeParams& params_;
  DenseDecodeShared<C>& shared_;
  std::int32_t row_begin_;

  std::int32_t begin_ = 0;  ///< keys of the split that any row of the tile sees
  std::int32_t end_ = 0;
  std::int32_t row_bound_ = 0;    ///< the first key that this thread's row of the softmax does not see
  std::int32_t next_block_ = -1;  ///< of the tile to load next

  std::uint32_t q_[C::kScoreTiles][C::kDepthSteps][4];
  float out_[C::kRowTiles][kColumnTiles][4];
  tile::RowState state_;
  float row_sum_ = 0;  ///< this thread's share of the row's sum
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    dense_decode_kernel(const __grid_constant__ DenseDecodeParams params) {
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  DenseDecodeBlock<C>(params).run();
}

}  // namespace flashmla::portable
