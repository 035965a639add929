// The dense decode kernel for every GPU from SM80 on: attention of a tile of query rows over one part of the
// schedule, by mma.sync.
//
// Rows are the pairs (query token, query head) of one kv head, numbered `query * group + head`; kRows of them
// share a block's keys. Keys come in tiles of 32 rows of the cache, which are keys and values alike.
// For each tile:
//   scores   S = Q K^T. Q stays in registers: warps share out its columns (kDepthParts), its rows, the keys.
//            Each warp stores its part of the sum to shared memory.
//   softmax  adds the parts; some threads for each row. Weights go to shared memory in 16 bits, and what
//            rounding took from them in 16 more.
//   values   O += P V. Each warp has 64 of the 512 value columns, for all rows, in registers. The second 16
//            bits of the weights are multiplied only in tiles where they could show in the result.
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
  tile::Divisor group;  ///< query heads of a kv head
  std::int32_t rows;    ///< s_q * group
  std::int32_t h_kv;
  std::int32_t d_qk;
  std::int32_t d_v;
  float logit_factor;  ///< softmax_scale * log2(e)
  bool causal;
};

inline constexpr int kMaxWidth = 576;
inline constexpr int kMaxValueWidth = 512;

template <class T_, int kRows_, int kStages_, int kDepthParts_, int kBlocks_>
struct DenseDecodeConfig {
  using T = T_;
  static constexpr int kRows = kRows_;
  static constexpr int kStages = kStages_;
  static constexpr int kDepthParts = kDepthParts_;
  static constexpr int kBlocks = kBlocks_;  ///< that run on a multiprocessor at the same time

  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * ptx::kWarpSize;
  static constexpr int kKeys = 32;

  // Scores: a warp has kScoreTiles x 16 rows, kWarpKeys keys and kDepthSteps x 16 columns. Two row tiles a
  // warp halve what it reads of the keys; with two depth parts the registers hold only one.
  static constexpr int kScoreTiles = kBlocks == 1 && kDepthParts == 4 && kRows >= 32 ? 2 : 1;
  static constexpr int kRowGroups = kRows / (16 * kScoreTiles);
  static constexpr int kWarpKeys = kKeys * kRowGroups * kDepthParts / kWarps;
  static constexpr int kDepthSteps = kMaxWidth / 16 / kDepthParts;
  static_assert(kWarpKeys % 16 == 0 && kDepthSteps * kDepthParts * 16 == kMaxWidth);

  // Softmax: a thread has kThreadKeys keys of one row.
  static constexpr int kRowThreads = kThreads / kRows;
  static constexpr int kThreadKeys = kKeys / kRowThreads;

  // With four stages the scores of a tile, the softmax of the one before it, and the values of the one before
  // that are computed side by side.
  static constexpr bool kOverlapped = kStages >= 4;
  static constexpr int kBuffers = kOverlapped ? 2 : 1;

  // Values: a warp has 64 columns of all rows.
  static constexpr int kRowTiles = kRows / 16;
  static constexpr int kWarpColumns = kMaxValueWidth / kWarps;
};

/// What a block knows of its split. Not in registers: they are short, and it is seldom needed.
struct SplitPlace {
  PartRow rest;  ///< of the part, behind the split
  Split split;
  bool exists;
  tile::PagedRows rows;
  std::int32_t first_diagonal;  ///< the first key that the first query does not see
  std::int32_t begin;           ///< keys of the split that any row of the tile sees
  std::int32_t end;
};

template <class C>
struct DenseDecodeShared {
  std::uint16_t keys[C::kStages][C::kKeys * kMaxWidth];            ///< wide_row_offset
  float scores[C::kBuffers][C::kDepthParts][C::kRows * C::kKeys];  ///< logit_swizzle
  std::uint16_t weights[C::kBuffers][2][C::kRows * C::kKeys];  ///< narrow_row_offset; rounded, and the rest
  float row_factor[C::kBuffers][C::kRows];                     ///< of the sums so far
  /// Whether a factor of a row whose softmax this warp did is not 1.
  alignas(8) std::uint8_t factor_given[C::kBuffers][C::kWarps];
  /// Bit `i` of byte `w`: whether row `w + 8 i` of the tile exists.
  alignas(8) std::uint8_t key_exists[C::kStages][C::kWarps];
  /// The rows that each warp has found for its next loads: entry `4 t + i` is row `i` of tile `t` of 8.
  const std::uint16_t* found_rows[C::kWarps][ptx::kWarpSize];
  SplitPlace place;
};

template <class C>
class DenseDecodeBlock {
  using T = typename C::T;
  using Float = tile::FloatType<T>;

 public:
  FLASHMLA_DEVICE explicit DenseDecodeBlock(const DenseDecodeParams& params)
      : params_(params), shared_(ptx::shared_memory<DenseDecodeShared<C>>()) {}

  FLASHMLA_DEVICE void run() {
    const Thread self = this_thread();
    if (self.index == 0) shared_.place.rest = part_row();
    while (next_split()) {
      attend();
      finish();
    }
  }

 private:
  /// A given schedule may hold anything: what it names is brought into range.
  FLASHMLA_DEVICE PartRow part_row() const {
    PartRow row = PartRow::load(params_.schedule + ptx::block_index().z * params_.schedule_stride);
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
    if (row.begin_seq == row.end_seq && row.end_key < row.begin_key) row.end_key = row.begin_key;
    return row;
  }

  FLASHMLA_DEVICE bool next_split() {
    const Thread self = this_thread();
    if (self.index == 0) {
      SplitPlace& place = shared_.place;
      PartSplits splits(params_.request, place.rest);
      place.exists = splits.next(place.split);
      place.rest = splits.rest();
      if (place.exists) find_place(place);
    }
    ptx::sync_block();
    return shared_.place.exists;
  }

  FLASHMLA_DEVICE void find_place(SplitPlace& place) const {
    const std::int64_t seq = place.split.seq;
    place.rows = params_.cache.rows_of(seq, head());
    place.first_diagonal = static_cast<std::int32_t>(params_.request.length_of(seq)) - params_.s_q + 1;
    place.begin = static_cast<std::int32_t>(place.split.begin);
    place.end = static_cast<std::int32_t>(place.split.end);
    if (!params_.causal) return;
    const std::int32_t last_row = min(row_begin() + C::kRows, params_.rows) - 1;
    place.end = min(place.end, place.first_diagonal + params_.group.quotient(last_row));
  }

  // --- Which thread and block this is -----------------------------------------------------------------

  struct Thread {
    int index, warp, lane;
  };

  /// Asked anew in each step: 255 registers do not hold it through all of them.
  FLASHMLA_DEVICE static Thread this_thread() {
    const std::uint32_t index = ptx::reread_thread_index() % C::kThreads;
    return {static_cast<int>(index), static_cast<int>(index / ptx::kWarpSize),
            static_cast<int>(index % ptx::kWarpSize)};
  }

  FLASHMLA_DEVICE std::int32_t row_begin() const {
    return static_cast<std::int32_t>(ptx::block_index().x) * C::kRows;
  }
  FLASHMLA_DEVICE std::int32_t head() const { return static_cast<std::int32_t>(ptx::block_index().y); }

  // --- One split ----------------------------------------------------------------------------------

  FLASHMLA_DEVICE void attend() {
    const Thread self = this_thread();
    look_up(self, 0);
    for (int stage = 0; stage < C::kStages; ++stage) load_tile(stage, stage);
    load_queries(shared_.place.split.seq);
    start_rows();
    ptx::copy_async_wait<C::kStages - 1>();
    ptx::sync_block();
    if constexpr (C::kOverlapped) {
      overlapped_tiles();
    } else {
      tiles_in_turn();
    }
    ptx::copy_async_wait<0>();
  }

  FLASHMLA_DEVICE static int next(int stage) { return stage + 1 == C::kStages ? 0 : stage + 1; }

  FLASHMLA_DEVICE void tiles_in_turn() {
    int stage = 0;
    for (std::int32_t tile = 0; keys_from(tile) > 0; ++tile) {
      scores(stage, 0);
      ptx::sync_block();
      const bool exact = ptx::sync_block_or(softmax(tile, stage, 0));
      if (params_.causal) keep_hidden_values_out(tile, stage, 0);
      values(stage, 0, exact);
      ptx::copy_async_wait<C::kStages - 2>();
      ptx::sync_block();
      load_tile(tile + C::kStages, stage);
      stage = next(stage);
    }
  }

  /// One barrier a tile: in its turn, tile `t` gets its scores, then its softmax, then its values. The two
  /// warps of a scheduler begin at different ends, so that one multiplies while the other waits for
  /// latencies.
  FLASHMLA_DEVICE void overlapped_tiles() {
    if (keys_from(0) <= 0) return;
    scores(0, 0);
    ptx::copy_async_wait<C::kStages - 2>();
    ptx::sync_block();
    const bool first_rest_matters = softmax(0, 0, 0);
    if (keys_from(1) > 0) scores(next(0), 1);
    ptx::copy_async_wait<C::kStages - 3>();
    bool exact = ptx::sync_block_or(first_rest_matters);
    int stage = 0;
    for (std::int32_t tile = 0; keys_from(tile) > 0; ++tile) {
      const int buffer = tile % 2;
      if (params_.causal) keep_hidden_values_out(tile, stage, buffer);
      const bool latencies_first = this_thread().warp < C::kWarps / 2;
      bool rest_matters = false;
      if (latencies_first) {
        rest_matters = move_on(tile, stage, buffer);
        values(stage, buffer, exact);
      }
      if (keys_from(tile + 2) > 0) scores(next(next(stage)), buffer);
      if (!latencies_first) {
        values(stage, buffer, exact);
        rest_matters = move_on(tile, stage, buffer);
      }
      ptx::copy_async_wait<C::kStages - 4>();
      exact = ptx::sync_block_or(rest_matters);
      stage = next(stage);
    }
  }

  /// The softmax of the next tile, and the load that the barrier before this tile has made room for.
  FLASHMLA_DEVICE bool move_on(std::int32_t tile, int stage, int buffer) {
    if (tile > 0) load_tile(tile - 1 + C::kStages, stage == 0 ? C::kStages - 1 : stage - 1);
    return keys_from(tile + 1) > 0 && softmax(tile + 1, next(stage), 1 - buffer);
  }

  /// The first key that a row does not see, by its query.
  FLASHMLA_DEVICE std::int32_t bound_of(std::int32_t row) const {
    return params_.causal ? shared_.place.first_diagonal + params_.group.quotient(row) : shared_.place.end;
  }

  FLASHMLA_DEVICE std::int64_t query_head(std::int32_t row) const {
    return head() * std::int64_t{params_.group.divisor()} + params_.group.remainder(row);
  }

  FLASHMLA_DEVICE static std::int32_t min(std::int32_t a, std::int32_t b) { return a < b ? a : b; }

  FLASHMLA_DEVICE void start_rows() {
    base_ = tile::kMinusInfinity;
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

  /// Keys of this tile and those behind it; not positive behind the last one. `tile` may be some tiles behind
  /// it, where the number of a key need not be an i32.
  FLASHMLA_DEVICE std::int32_t keys_from(std::int32_t tile) const {
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(shared_.place.end) -
                                     static_cast<std::uint32_t>(shared_.place.begin) -
                                     static_cast<std::uint32_t>(tile) * C::kKeys);
  }

  /// A warp loads the rows `warp + 8 i` of a tile. Its lanes look up 8 tiles at once: lane `l` row `i = l %
  /// 4` of tile `l / 4`.
  static constexpr int kTilesLookedUp = ptx::kWarpSize / kWarpRows;

  /// The key that this lane looks up for the 8 tiles from `tile` on; and whether it exists.
  FLASHMLA_DEVICE bool key_of_lane(const Thread& self, std::int32_t tile, std::int32_t& key) const {
    const int local = self.lane / kWarpRows * C::kKeys + self.lane % kWarpRows * C::kWarps + self.warp;
    key = static_cast<std::int32_t>(static_cast<std::uint32_t>(shared_.place.begin) +
                                    static_cast<std::uint32_t>(tile) * C::kKeys +
                                    static_cast<std::uint32_t>(local));
    return local < keys_from(tile);
  }

  /// Reads the page table for the 8 tiles from `tile` on, long before they are loaded.
  FLASHMLA_DEVICE void look_up(const Thread& self, std::int32_t tile) {
    std::int32_t key;
    next_block_ = key_of_lane(self, tile, key) ? params_.cache.block_of(shared_.place.rows, key) : -1;
  }

  /// Turns what was looked up into rows.
  FLASHMLA_DEVICE void find_rows(const Thread& self, std::int32_t tile) {
    std::int32_t key;
    ptx::sync_warp();
    shared_.found_rows[self.warp][self.lane] =
        key_of_lane(self, tile, key) ? params_.cache.row(shared_.place.rows, next_block_, key) : nullptr;
    ptx::sync_warp();
    look_up(self, tile + kTilesLookedUp);
  }

  /// Starts the copy of a tile into a stage; rows that do not exist become zeros, so that a weight of 0 hides
  /// them. One group of copies, empty behind the last tile. Tiles are loaded in order.
  FLASHMLA_DEVICE void load_tile(std::int32_t tile, int stage) {
    if (keys_from(tile) > 0) {
      const Thread self = this_thread();
      if (tile % kTilesLookedUp == 0) find_rows(self, tile);
      copy_rows(self, tile % kTilesLookedUp * kWarpRows, stage);
    }
    ptx::copy_async_commit();
  }

  /// A row has 72 chunks: two rounds of a warp, and a quarter of a round that four rows share.
  FLASHMLA_DEVICE void copy_rows(const Thread& self, int first, int stage) {
    static_assert(C::kWarps == 8, "all rows of a warp are swizzled alike");
    const int chunk = self.lane ^ self.warp;
    std::uint16_t* to = shared_.keys[stage] + self.warp * kMaxWidth;
    const std::uint16_t* const* found = shared_.found_rows[self.warp] + first;
    const std::uint32_t exist =
        ptx::warp_ballot(self.lane < kWarpRows && found[self.lane % kWarpRows] != nullptr);
    if (self.lane == 0) shared_.key_exists[stage][self.warp] = static_cast<std::uint8_t>(exist);
    const std::uint16_t* rows[kWarpRows + 1];  // all at once: the copies cannot be moved behind each other's
    FLASHMLA_UNROLL
    for (int i = 0; i < kWarpRows; ++i) rows[i] = found[i];
    rows[kWarpRows] = found[self.lane / 8];
    FLASHMLA_UNROLL
    for (int i = 0; i < kWarpRows; ++i) {
      std::uint16_t* to_row = to + i * C::kWarps * kMaxWidth;
      copy_chunk(to_row + chunk * tile::kChunk, rows[i], self.lane);
      copy_chunk(to_row + (32 + chunk) * tile::kChunk, rows[i], 32 + self.lane);
    }
    std::uint16_t* to_row = to + self.lane / 8 * C::kWarps * kMaxWidth;
    copy_chunk(to_row + (64 + chunk % 8) * tile::kChunk, rows[kWarpRows], 64 + self.lane % 8);
  }

  FLASHMLA_DEVICE void copy_chunk(std::uint16_t* to, const std::uint16_t* row, int chunk) {
    const bool exists = (row != nullptr) & (chunk * tile::kChunk < params_.d_qk);
    ptx::copy_async_16(to, row + chunk * tile::kChunk, exists ? 16 : 0);
  }

  /// Steps of Q that a warp's share of the score buffers holds while it is turned into fragments.
  static constexpr int kStepElements = C::kScoreTiles * 16 * 16;
  static constexpr int kStagedElements =
      static_cast<int>(sizeof(DenseDecodeShared<C>::scores) / sizeof(std::uint16_t)) / C::kWarps;
  static constexpr int kStagedSteps = kStagedElements / kStepElements;
  static_assert(kStagedSteps > 0);

  /// Q as fragments of A; step `s` of a warp covers the columns of step `s * kDepthParts + depth_part()`.
  /// Through shared memory, so that lanes read 16 bytes each.
  FLASHMLA_DEVICE void load_queries(std::int64_t seq) {
    const Thread self = this_thread();
    auto* staged = reinterpret_cast<std::uint16_t*>(shared_.scores) + self.warp * kStagedElements;
    const std::uint16_t* rows[C::kScoreTiles];
    FLASHMLA_UNROLL
    for (int i = 0; i < C::kScoreTiles; ++i) rows[i] = query_row(self, seq, i);
    FLASHMLA_UNROLL
    for (int first = 0; first < C::kDepthSteps; first += kStagedSteps) {
      ptx::sync_warp();
      FLASHMLA_UNROLL
      for (int s = first; s < first + kStagedSteps && s < C::kDepthSteps; ++s) {
        stage_queries(self, rows, s, staged + (s - first) * kStepElements);
      }
      ptx::sync_warp();
      FLASHMLA_UNROLL
      for (int s = first; s < first + kStagedSteps && s < C::kDepthSteps; ++s) {
        FLASHMLA_UNROLL
        for (int i = 0; i < C::kScoreTiles; ++i) {
          const std::uint16_t* tile = staged + (s - first) * kStepElements + i * 16 * 16;
          ptx::load_matrix(q_[i][s], tile + tile::short_row_offset(self.lane % 16, self.lane / 16));
        }
      }
    }
  }

  /// The row of Q of which this lane reads chunks for row tile `i` of its warp; null behind the last row.
  FLASHMLA_DEVICE const std::uint16_t* query_row(const Thread& self, std::int64_t seq, int i) const {
    const std::int32_t row = row_begin() + (row_group(self.warp) * C::kScoreTiles + i) * 16 + self.lane / 2;
    if (row >= params_.rows) return nullptr;
    return params_.q + seq * params_.q_strides[0] + params_.group.quotient(row) * params_.q_strides[1] +
           query_head(row) * params_.q_strides[2];
  }

  FLASHMLA_DEVICE void stage_queries(const Thread& self, const std::uint16_t* const (&rows)[C::kScoreTiles],
                                     int step, std::uint16_t* staged) const {
    const int column = (step * C::kDepthParts + depth_part(self.warp)) * 16 + self.lane % 2 * tile::kChunk;
    FLASHMLA_UNROLL
    for (int i = 0; i < C::kScoreTiles; ++i) {
      const bool exists = (rows[i] != nullptr) & (column < params_.d_qk);
      auto* to = reinterpret_cast<ptx::Bytes16*>(staged + i * 16 * 16 +
                                                 tile::short_row_offset(self.lane / 2, self.lane % 2));
      *to = exists ? *reinterpret_cast<const ptx::Bytes16*>(rows[i] + column) : ptx::Bytes16{};
    }
  }

  // --- Scores ---------------------------------------------------------------------------------------

  FLASHMLA_DEVICE static int depth_part(int warp) { return warp % C::kDepthParts; }
  FLASHMLA_DEVICE static int row_group(int warp) { return warp / C::kDepthParts % C::kRowGroups; }
  FLASHMLA_DEVICE static int key_group(int warp) { return warp / C::kDepthParts / C::kRowGroups; }

  FLASHMLA_DEVICE void scores(int stage, int buffer) {
    const Thread self = this_thread();
    FLASHMLA_UNROLL
    for (int k = 0; k < C::kWarpKeys; k += 16) {
      const int first_key = key_group(self.warp) * C::kWarpKeys + k;
      float sums[C::kScoreTiles][2][4] = {};
      const std::uint16_t* key =
          shared_.keys[stage] + (first_key + self.lane / 16 * 8 + self.lane % 8) * kMaxWidth;
      const int chunk = (depth_part(self.warp) * 2 + self.lane / 8 % 2) ^ (self.lane % 8);
      const auto load = [&](std::uint32_t (&fragment)[4], int step) {
        ptx::load_matrix(fragment, key + tile::swizzled_chunk(step * C::kDepthParts * 2, chunk));
      };
      // Loaded ahead as far as registers allow; two blocks have more to do meanwhile.
      constexpr int kAhead = C::kBlocks == 1 ? 2 : 1;
      std::uint32_t b[kAhead + 1][4];
      FLASHMLA_UNROLL
      for (int s = 0; s < kAhead; ++s) load(b[s], s);
      FLASHMLA_UNROLL
      for (int s = 0; s < C::kDepthSteps; ++s) {
        if (s + kAhead < C::kDepthSteps) load(b[(s + kAhead) % (kAhead + 1)], s + kAhead);
        FLASHMLA_UNROLL
        for (int i = 0; i < C::kScoreTiles; ++i) {
          ptx::mma_16x8x16<T>(sums[i][0], q_[i][s], b[s % (kAhead + 1)][0], b[s % (kAhead + 1)][1]);
          ptx::mma_16x8x16<T>(sums[i][1], q_[i][s], b[s % (kAhead + 1)][2], b[s % (kAhead + 1)][3]);
        }
      }
      store_scores(sums, first_key, buffer);
    }
  }

  FLASHMLA_DEVICE void store_scores(const float (&sums)[C::kScoreTiles][2][4], int first_key, int buffer) {
    const Thread self = this_thread();
    const int row = row_group(self.warp) * C::kScoreTiles * 16 + self.lane / 4;
    const int swizzle = tile::logit_swizzle(row);
    float* scores = shared_.scores[buffer][depth_part(self.warp)] + row * C::kKeys;
    FLASHMLA_UNROLL
    for (int j = 0; j < 2; ++j) {
      float* to = scores + ((first_key + j * 8 + self.lane % 4 * 2) ^ swizzle);
      FLASHMLA_UNROLL
      for (int i = 0; i < C::kScoreTiles; ++i) {
        store_pair(to + 16 * i * C::kKeys, sums[i][j][0], sums[i][j][1]);
        store_pair(to + (16 * i + 8) * C::kKeys, sums[i][j][2], sums[i][j][3]);
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

  /// Weights whose rounding error is below this share of the row's sum so far do not need their rest. Errors
  /// of different sign then add to less than 2^-11.5 of a typical value in a tile, and sums grow. Where many
  /// weights are equal, so are their errors, and a result may be off by 2^-9 of the values that they weigh.
  static constexpr float kNegligible = 0x1p-14f;

  /// Returns whether the rest of a weight of this thread matters.
  FLASHMLA_DEVICE bool softmax(std::int32_t tile, int stage, int buffer) {
    const Thread self = this_thread();
    const int row = self.index / C::kRowThreads;
    const int first_key = self.index % C::kRowThreads * C::kThreadKeys;
    float logits[C::kThreadKeys];
    read_logits(logits, row, first_key, buffer);
    const std::int32_t bound = min(bound_of(row_begin() + row), shared_.place.end);
    const std::uint32_t first = static_cast<std::uint32_t>(shared_.place.begin) +
                                static_cast<std::uint32_t>(tile) * C::kKeys +
                                static_cast<std::uint32_t>(first_key);
    hide_keys(logits, static_cast<std::int32_t>(static_cast<std::uint32_t>(bound) - first), stage, first_key);
    float largest = logits[0];
    FLASHMLA_UNROLL
    for (int k = 1; k < C::kThreadKeys; ++k) largest = ptx::max(largest, logits[k]);
    float sum_before = row_sum_;
    reduce_row(largest, sum_before);
    const float factor = advance(largest);
    row_sum_ = ptx::multiply(row_sum_, factor);
    sum_before = ptx::multiply(sum_before, factor);
    if (first_key == 0) shared_.row_factor[buffer][row] = factor;
    const bool given = ptx::warp_any(factor != 1);
    if (self.lane == 0) shared_.factor_given[buffer][self.warp] = given;
    return store_weights(logits, row, first_key, buffer, sum_before);
  }

  /// Logits of keys that do not exist or that the row does not see become -inf. Most tiles have none.
  FLASHMLA_DEVICE void hide_keys(float (&logits)[C::kThreadKeys], std::int32_t visible, int stage,
                                 int first_key) const {
    const auto exist = *reinterpret_cast<const WarpBytes*>(shared_.key_exists[stage]);
    constexpr std::uint32_t kAll = 0x0f0f0f0f;
    if (visible >= C::kThreadKeys && exist.words[0] == kAll && exist.words[1] == kAll) return;
    FLASHMLA_UNROLL
    for (int k = 0; k < C::kThreadKeys; ++k) {
      const int key = first_key + k;
      const bool exists = (shared_.key_exists[stage][key % C::kWarps] >> key / C::kWarps & 1) != 0;
      if (k >= visible || !exists) logits[k] = tile::kMinusInfinity;
    }
  }
  struct alignas(8) WarpBytes {
    std::uint32_t words[C::kWarps / 4];
  };

  /// The row's base follows the largest logit only when that has grown by more than kSlack: sums are then
  /// rescaled rarely. Weights stay below `2^(kLargestWeightLog + kSlack)`. Returns the factor of all earlier
  /// sums.
  FLASHMLA_DEVICE float advance(float largest) {
    constexpr float kSlack = 4;
    if (!(largest > base_ + (Float::kLargestWeightLog + kSlack))) return 1;
    const float base = largest - Float::kLargestWeightLog;
    const float factor = ptx::exp2_approx(ptx::add(base_, -base));
    base_ = base;
    return factor;
  }

  /// In units of log 2, as the base.
  FLASHMLA_DEVICE void read_logits(float (&logits)[C::kThreadKeys], int row, int first_key,
                                   int buffer) const {
    const int swizzle = tile::logit_swizzle(row);
    FLASHMLA_UNROLL
    for (int k = 0; k < C::kThreadKeys; k += kReadWidth) {
      const float* from = shared_.scores[buffer][0] + row * C::kKeys + ((first_key + k) ^ swizzle);
      FLASHMLA_UNROLL
      for (int part = 0; part < C::kDepthParts; ++part) {
        const auto read = *reinterpret_cast<const ReadUnit*>(from + part * C::kRows * C::kKeys);
        FLASHMLA_UNROLL
        for (int i = 0; i < kReadWidth; ++i) {
          logits[k + i] = part == 0 ? read.values[i] : ptx::add(logits[k + i], read.values[i]);
        }
      }
    }
    FLASHMLA_UNROLL
    for (int k = 0; k < C::kThreadKeys; ++k) logits[k] = ptx::multiply(logits[k], params_.logit_factor);
  }
  static constexpr int kReadWidth = C::kThreadKeys < 4 ? C::kThreadKeys : 4;
  struct alignas(kReadWidth * 4) ReadUnit {
    float values[kReadWidth];
  };

  /// The largest and the sum over the threads of a row.
  FLASHMLA_DEVICE static void reduce_row(float& largest, float& sum) {
    FLASHMLA_UNROLL
    for (int mask = C::kRowThreads / 2; mask > 0; mask /= 2) {
      largest = ptx::max(largest, ptx::shuffle_xor(largest, mask));
      sum = ptx::add(sum, ptx::shuffle_xor(sum, mask));
    }
  }

  /// Turns logits into weights and stores both halves of them. `sum_before` is the sum of the row's weights
  /// in tiles before.
  FLASHMLA_DEVICE bool store_weights(float (&weights)[C::kThreadKeys], int row, int first_key, int buffer,
                                     float sum_before) {
    const float subtrahend = base_ == tile::kMinusInfinity ? 0 : base_;
    WeightUnit rounded;
    FLASHMLA_UNROLL
    for (int k = 0; k < C::kThreadKeys; ++k) {
      weights[k] = ptx::exp2_approx(ptx::add(weights[k], -subtrahend));
      row_sum_ = ptx::add(row_sum_, weights[k]);
    }
    FLASHMLA_UNROLL
    for (int k = 0; k < C::kThreadKeys; k += 2)
      rounded.pairs[k / 2] = Float::pack(weights[k], weights[k + 1]);
    WeightUnit rest;
    const bool rest_matters = rest_of(weights, rounded, ptx::multiply(sum_before, kNegligible), rest);
    const int at = tile::narrow_row_offset(row, first_key / tile::kChunk) + first_key % tile::kChunk;
    *reinterpret_cast<WeightUnit*>(shared_.weights[buffer][0] + at) = rounded;
    *reinterpret_cast<WeightUnit*>(shared_.weights[buffer][1] + at) = rest;
    return rest_matters;
  }

  struct WeightUnit;

  /// What rounding took from weights; returns whether one of them is more than `negligible`.
  FLASHMLA_DEVICE static bool rest_of(const float (&weights)[C::kThreadKeys], const WeightUnit& rounded,
                                      float negligible, WeightUnit& rest) {
    float largest = 0;
    FLASHMLA_UNROLL
    for (int k = 0; k < C::kThreadKeys; k += 2) {
      const float low = ptx::add(weights[k], -Float::low(rounded.pairs[k / 2]));
      const float high = ptx::add(weights[k + 1], -Float::high(rounded.pairs[k / 2]));
      rest.pairs[k / 2] = Float::pack(low, high);
      largest = ptx::max(largest, ptx::max(__builtin_fabsf(low), __builtin_fabsf(high)));
    }
    return largest > negligible;
  }

  struct alignas(C::kThreadKeys * 2) WeightUnit {
    std::uint32_t pairs[C::kThreadKeys / 2];
  };

  // --- Values ---------------------------------------------------------------------------------------

  static constexpr int kColumnTiles = C::kWarpColumns / 8;

  FLASHMLA_DEVICE void values(int stage, int buffer, bool exact) {
    const Thread self = this_thread();
    if (self.warp * C::kWarpColumns >= params_.d_v) return;
    rescale(buffer);
    for (int pass = 0; pass < (exact ? 2 : 1); ++pass) add_values(stage, shared_.weights[buffer][pass]);
  }

  FLASHMLA_DEVICE void rescale(int buffer) {
    const Thread self = this_thread();
    const auto given = *reinterpret_cast<const WarpBytes*>(shared_.factor_given[buffer]);
    if ((given.words[0] | given.words[1]) == 0) return;
    float factors[2 * C::kRowTiles];
    FLASHMLA_UNROLL
    for (int i = 0; i < 2 * C::kRowTiles; ++i) factors[i] = shared_.row_factor[buffer][i * 8 + self.lane / 4];
    scale_rows(factors);
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
    constexpr int kPairs = kColumnTiles / 2;
    constexpr int kAhead = C::kRows == 16 ? 3 : 1;
    FLASHMLA_UNROLL
    for (int k = 0; k < C::kKeys; k += 16) {
      const std::uint16_t* a_rows = weights + tile::narrow_row_offset(self.lane % 16, k / 8 + self.lane / 16);
      const std::uint16_t* key =
          shared_.keys[stage] + (k + self.lane % 16) * kMaxWidth + self.warp * C::kWarpColumns;
      const auto load = [&](std::uint32_t (&fragment)[4], int pair) {
        const int chunk = self.lane / 16 ^ self.lane % 8;
        ptx::load_matrix_transposed(fragment, key + tile::swizzled_chunk(2 * pair, chunk));
      };
      std::uint32_t a[C::kRowTiles][4];
      std::uint32_t b[kAhead + 1][4];
      FLASHMLA_UNROLL
      for (int i = 0; i < C::kRowTiles; ++i) ptx::load_matrix(a[i], a_rows + i * 16 * C::kKeys);
      FLASHMLA_UNROLL
      for (int j = 0; j < kAhead; ++j) load(b[j], j);
      FLASHMLA_UNROLL
      for (int j = 0; j < kPairs; ++j) {
        if (j + kAhead < kPairs) load(b[(j + kAhead) % (kAhead + 1)], j + kAhead);
        const std::uint32_t (&values)[4] = b[j % (kAhead + 1)];
        FLASHMLA_UNROLL
        for (int i = 0; i < C::kRowTiles; ++i) {
          ptx::mma_16x8x16<T>(out_[i][2 * j], a[i], values[0], values[1]);
          ptx::mma_16x8x16<T>(out_[i][2 * j + 1], a[i], values[2], values[3]);
        }
      }
    }
  }

  // --- Values that some rows see and others do not -----------------------------------------------------

  /// A weight of 0 hides a value from a row unless it is infinite or NaN. Where rows differ in what they see,
  /// such values are added by hand to the rows that see them, and then cleared.
  FLASHMLA_DEVICE void keep_hidden_values_out(std::int32_t tile, int stage, int buffer) {
    const Thread self = this_thread();
    const std::int32_t tile_begin = shared_.place.begin + tile * C::kKeys;
    const int first_key = static_cast<int>(bound_of(row_begin()) - tile_begin);
    const int keys = static_cast<int>(min(shared_.place.end - tile_begin, C::kKeys));
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
    if (ptx::sync_block_or(nonfinite)) add_and_clear(tile_begin, stage, buffer, begin, keys);
  }

  FLASHMLA_DEVICE void add_and_clear(std::int32_t tile_begin, int stage, int buffer, int begin, int end) {
    const Thread self = this_thread();
    rescale(buffer);
    for (int key = begin; key < end; ++key) add_key(tile_begin, stage, buffer, key);
    ptx::sync_block();
    for (int key = begin; key < end; ++key) {
      for (int column = self.index; column < kMaxWidth; column += C::kThreads) {
        shared_.keys[stage][key * kMaxWidth + column] = 0;
      }
    }
    if (self.lane == 0) shared_.factor_given[buffer][self.warp] = 0;
    ptx::sync_block();
  }

  /// Adds one key's value to this thread's columns of the rows that see it.
  FLASHMLA_DEVICE void add_key(std::int32_t tile_begin, int stage, int buffer, int key) {
    const Thread self = this_thread();
    FLASHMLA_UNROLL
    for (int i = 0; i < 2 * C::kRowTiles; ++i) {
      const int row = i * 8 + self.lane / 4;
      if (tile_begin + key >= bound_of(row_begin() + row)) continue;
      const int at = tile::narrow_row_offset(row, key / tile::kChunk) + key % tile::kChunk;
      const float weight =
          Float::low(shared_.weights[buffer][0][at]) + Float::low(shared_.weights[buffer][1][at]);
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
    const Split split = shared_.place.split;
    const std::int32_t first_slot = params_.num_splits[split.seq * params_.num_splits_stride];
    const std::int32_t next_slot = params_.num_splits[(split.seq + 1) * params_.num_splits_stride];
    const bool whole = next_slot == first_slot + std::int64_t{1};  // garbage would overflow an i32
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
    float sum = row_sum_;
    float base = base_;
    reduce_row(base, sum);
    const bool sees_nothing = sum == 0;
    if (self.index % C::kRowThreads != 0) return;
    const int tile_row = self.index / C::kRowThreads;
    shared_.row_factor[0][tile_row] = sees_nothing ? 0 : 1 / sum;
    const std::int32_t row = row_begin() + tile_row;
    if (row >= params_.rows) return;
    const float lse = sees_nothing ? tile::kMinusInfinity : base + ptx::log2_approx(sum);
    if (whole) {
      float* to = params_.lse + seq * params_.lse_strides[0] + query_head(row) * params_.lse_strides[1] +
                  params_.group.quotient(row) * params_.lse_strides[2];
      *to = sees_nothing ? -tile::kMinusInfinity : ptx::multiply(lse, tile::kLn2);
    } else if (slot >= 0 && slot < params_.slots) {
      params_.partial_lse[(slot * params_.h_kv + head()) * params_.rows + row] = lse;
    }
  }

  /// For the rows and columns that this thread holds: `begin_of(row)` is where a row of results begins, and
  /// `store(to, first, second)` puts two neighbours there.
  template <class BeginOf, class Store>
  FLASHMLA_DEVICE void write(BeginOf&& begin_of, Store&& store) {
    const Thread self = this_thread();
    const int first_column = self.warp * C::kWarpColumns;
    FLASHMLA_UNROLL
    for (int i = 0; i < 2 * C::kRowTiles; ++i) {
      const int tile_row = i * 8 + self.lane / 4;
      const std::int32_t row = row_begin() + tile_row;
      if (row >= params_.rows) continue;
      const float factor = shared_.row_factor[0][tile_row];
      auto* to = begin_of(row) + first_column + self.lane % 4 * 2;
      FLASHMLA_UNROLL
      for (int j = 0; j < kColumnTiles; ++j) {
        if (first_column + j * 8 >= params_.d_v) continue;
        const float* pair = out_[i / 2][j] + i % 2 * 2;
        store(to + j * 8, ptx::multiply(pair[0], factor), ptx::multiply(pair[1], factor));
      }
    }
  }

  FLASHMLA_DEVICE void write_rows(std::int64_t seq) {
    std::uint16_t* out = params_.out + seq * params_.out_strides[0];
    write(
        [&](std::int32_t row) {
          return out + params_.group.quotient(row) * params_.out_strides[1] +
                 query_head(row) * params_.out_strides[2];
        },
        [](std::uint16_t* to, float first, float second) {
          *reinterpret_cast<std::uint32_t*>(to) = Float::pack(first, second);
        });
  }

  FLASHMLA_DEVICE void write_partial_rows(std::int64_t slot) {
    float* out = params_.partial_out + (slot * params_.h_kv + head()) * params_.rows * params_.d_v;
    write([&](std::int32_t row) { return out + std::int64_t{row} * params_.d_v; },
          [](float* to, float first, float second) { store_pair(to, first, second); });
  }

  const DenseDecodeParams& params_;
  DenseDecodeShared<C>& shared_;

  std::int32_t next_block_ = -1;  ///< of the row that this lane looked up

  std::uint32_t q_[C::kScoreTiles][C::kDepthSteps][4];
  float out_[C::kRowTiles][kColumnTiles][4];
  float base_ = tile::kMinusInfinity;  ///< a weight is 2^(x - base) for a logit x in units of log 2
  float row_sum_ = 0;                  ///< this thread's share of the row's sum
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks)
    dense_decode_kernel(const __grid_constant__ DenseDecodeParams params) {
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  DenseDecodeBlock<C>(params).run();
}

}  // namespace flashmla::portable
