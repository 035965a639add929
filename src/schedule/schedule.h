// How the keys of a decode batch are split over the parts of a machine; one algorithm for host and device.
//
// Think of the batch as one line of cost: sequence after sequence, each as long as its tiles of keys plus
// a constant for every split. The line is cut at `p * total / parts`; a cut goes to a tile boundary, and
// part `p` takes the keys between cut `p` and cut `p + 1`. A cut depends on sums alone, not on other
// cuts, so threads can place them independently.
//
// Short splits do not pay: a cut that would leave fewer than `min_split_tiles` before or behind it in its
// sequence goes to that end of the sequence, and where parts have less work than that, cuts go to
// multiples of `min_split_tiles`, so that some parts stay empty.
#pragma once

#include <cstdint>

#include "kv/host_device.h"

namespace flashmla {

/// An optional i32 `[batch]` tensor.
struct LengthsView {
  const std::int32_t* data = nullptr;
  std::int64_t stride = 1;  ///< in elements

  FLASHMLA_HOST_DEVICE bool given() const { return data != nullptr; }

  /// Entry `b`, clamped to `[0, most]`; `most` if the tensor is not given.
  FLASHMLA_HOST_DEVICE std::int64_t clamped(std::int64_t b, std::int64_t most) const {
    if (data == nullptr) return most;
    const std::int64_t value = data[b * stride];
    return value < 0 ? 0 : value > most ? most : value;
  }
};

/// What is to be split. `topk + extra_topk`, `split_size` and the number of splits must be below 2^31.
struct ScheduleRequest {
  LengthsView cache_seqlens = {};
  LengthsView topk_length = {};
  LengthsView extra_topk_length = {};
  std::int64_t batch = 0;
  std::int64_t max_seqlen = 0;
  std::int64_t topk = 0;
  std::int64_t extra_topk = 0;
  /// 0, or the keys of every split but a sequence's last.
  std::int64_t split_size = 0;
  std::int64_t parts = 1;
  /// Cuts are at multiples of so many keys, unless `split_size` is given.
  std::int64_t tile = 64;
  /// What beginning, storing and merging a split costs, in tiles.
  std::int64_t overhead_tiles = 2;
  std::int64_t min_split_tiles = 4;

  /// Keys of the first cache, or entries of `indices`, that count for sequence `b`.
  FLASHMLA_HOST_DEVICE std::int64_t main_length_of(std::int64_t b) const {
    return cache_seqlens.given() ? cache_seqlens.clamped(b, max_seqlen) : topk_length.clamped(b, topk);
  }

  /// Keys of sequence `b` in both caches.
  FLASHMLA_HOST_DEVICE std::int64_t length_of(std::int64_t b) const {
    const std::int64_t extra = cache_seqlens.given() ? 0 : extra_topk_length.clamped(b, extra_topk);
    return main_length_of(b) + extra;
  }
};

/// A row of the schedule tensor; see MakeSchedule.
struct PartRow {
  static constexpr int kSize = 8;
  std::int32_t begin_seq = 0;
  std::int32_t begin_key = 0;
  std::int32_t end_seq = -1;
  std::int32_t end_key = 0;
  std::int32_t begin_split = 0;
  std::int32_t split_size = 0;
  std::int32_t unused[2] = {0, 0};

  FLASHMLA_HOST_DEVICE bool empty() const { return begin_seq > end_seq; }

  FLASHMLA_HOST_DEVICE static PartRow load(const std::int32_t* row) {
    return {row[0], row[1], row[2], row[3], row[4], row[5], {row[6], row[7]}};
  }

  FLASHMLA_HOST_DEVICE void store(std::int32_t* row) const {
    row[0] = begin_seq;
    row[1] = begin_key;
    row[2] = end_seq;
    row[3] = end_key;
    row[4] = begin_split;
    row[5] = split_size;
    row[6] = unused[0];
    row[7] = unused[1];
  }
};

namespace schedule {

FLASHMLA_HOST_DEVICE constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return a / b + (a % b > 0 ? 1 : 0);
}

/// Splits of a sequence when their size is fixed.
FLASHMLA_HOST_DEVICE inline std::int64_t fixed_splits(const ScheduleRequest& request, std::int64_t length) {
  return length == 0 ? 1 : ceil_div(length, request.split_size);
}

/// Cost of a whole sequence in tiles.
FLASHMLA_HOST_DEVICE inline std::int64_t cost_of(const ScheduleRequest& request, std::int64_t length) {
  if (request.split_size == 0) return ceil_div(length, request.tile) + request.overhead_tiles;
  const std::int64_t splits = fixed_splits(request, length);
  const std::int64_t rest = length - (splits - 1) * request.split_size;
  const std::int64_t full_cost = ceil_div(request.split_size, request.tile) + request.overhead_tiles;
  return (splits - 1) * full_cost + ceil_div(rest, request.tile) + request.overhead_tiles;
}

FLASHMLA_HOST_DEVICE inline std::int64_t total_cost(const ScheduleRequest& request) {
  std::int64_t total = 0;
  for (std::int64_t b = 0; b < request.batch; ++b) total += cost_of(request, request.length_of(b));
  return total;
}

/// `p * total / parts` without overflow.
FLASHMLA_HOST_DEVICE inline std::int64_t cut_cost(const ScheduleRequest& request, std::int64_t total,
                                                  std::int64_t p) {
  return total / request.parts * p + total % request.parts * p / request.parts;
}

/// The cut `offset` tiles of cost behind the begin of a sequence, in splits of fixed size. Returns a
/// key; `length` or more is the end of the sequence.
FLASHMLA_HOST_DEVICE inline std::int64_t place_fixed_cut(const ScheduleRequest& request, std::int64_t length,
                                                         std::int64_t offset) {
  const std::int64_t split_cost = ceil_div(request.split_size, request.tile) + request.overhead_tiles;
  const std::int64_t split = (offset + split_cost / 2) / split_cost;
  return split < fixed_splits(request, length) ? split * request.split_size : length;
}

/// The cut `offset` tiles of cost behind the begin of a sequence. `share` is the cost of a part. The
/// overhead counts as spread evenly over the tiles, so that a lone sequence is cut into equal pieces.
FLASHMLA_HOST_DEVICE inline std::int64_t place_free_cut(const ScheduleRequest& request, std::int64_t share,
                                                        std::int64_t length, std::int64_t offset) {
  const std::int64_t least = request.min_split_tiles;
  const std::int64_t tiles = ceil_div(length, request.tile);
  const std::int64_t cost = tiles + request.overhead_tiles;
  if (tiles < 2 * least) return 2 * offset < cost ? 0 : length;
  const bool far_apart = (share < cost ? share : cost) * tiles / cost >= least;
  const std::int64_t grain = far_apart ? 1 : least;
  const std::int64_t tile = (offset * tiles / cost + grain / 2) / grain * grain;
  if (tile < least) return 0;
  return tile > tiles - least ? length : tile * request.tile;
}

/// A place between keys: before key `key` of sequence `seq`.
struct Position {
  std::int64_t seq = 0;
  std::int64_t key = 0;

  friend FLASHMLA_HOST_DEVICE bool operator==(const Position& a, const Position& b) {
    return a.seq == b.seq && a.key == b.key;
  }
};

/// The cut with this offset in sequence `seq`; the end of a sequence is the begin of the next.
FLASHMLA_HOST_DEVICE inline Position place_cut(const ScheduleRequest& request, std::int64_t share,
                                               std::int64_t seq, std::int64_t length, std::int64_t offset) {
  if (length == 0) return {seq, 0};
  const std::int64_t key = request.split_size > 0 ? place_fixed_cut(request, length, offset)
                                                  : place_free_cut(request, share, length, offset);
  return key < length ? Position{seq, key} : Position{seq + 1, 0};
}

/// The row of a part between two cuts. `begin_split` is the number of the split that begins at `begin`.
FLASHMLA_HOST_DEVICE inline PartRow part_between(const ScheduleRequest& request, Position begin, Position end,
                                                 std::int64_t begin_split) {
  PartRow row;
  row.split_size = static_cast<std::int32_t>(request.split_size);
  if (begin == end) return row;
  const bool whole_last = end.key == 0;
  row.begin_seq = static_cast<std::int32_t>(begin.seq);
  row.begin_key = static_cast<std::int32_t>(begin.key);
  row.end_seq = static_cast<std::int32_t>(whole_last ? end.seq - 1 : end.seq);
  row.end_key = static_cast<std::int32_t>(whole_last ? request.length_of(end.seq - 1) : end.key);
  row.begin_split = static_cast<std::int32_t>(begin_split);
  return row;
}

}  // namespace schedule

/// One split: keys `[begin, end)` of sequence `seq`, which is its split number `number`.
struct Split {
  std::int64_t seq;
  std::int64_t begin;
  std::int64_t end;
  std::int64_t number;
};

/// The splits of one part in order: `for (Split s; splits.next(s);)`. The row must be valid.
class PartSplits {
 public:
  FLASHMLA_HOST_DEVICE PartSplits(const ScheduleRequest& request, const PartRow& row)
      : request_(request), row_(row), seq_(row.begin_seq), key_(row.begin_key), number_(row.begin_split) {}

  FLASHMLA_HOST_DEVICE bool next(Split& split) {
    if (seq_ > row_.end_seq) return false;
    const std::int64_t last = seq_ == row_.end_seq ? row_.end_key : request_.length_of(seq_);
    const bool cut = request_.split_size > 0 && request_.split_size < last - key_;
    const std::int64_t end = cut ? key_ + request_.split_size : last;
    split = {seq_, key_, end, number_};
    seq_ = cut ? seq_ : seq_ + 1;
    key_ = cut ? end : 0;
    number_ = cut ? number_ + 1 : 0;
    return true;
  }

  /// The row of a part that has only the splits that next() has not returned yet.
  FLASHMLA_HOST_DEVICE PartRow rest() const {
    PartRow rest = row_;
    rest.begin_seq = static_cast<std::int32_t>(seq_);
    rest.begin_key = static_cast<std::int32_t>(key_);
    rest.begin_split = static_cast<std::int32_t>(number_);
    return rest;
  }

 private:
  const ScheduleRequest& request_;
  PartRow row_;
  std::int64_t seq_;
  std::int64_t key_;
  std::int64_t number_;
};

/// Writes `parts` rows and `batch + 1` entries of `num_splits`, by one thread; strides in elements.
FLASHMLA_HOST_DEVICE inline void make_schedule(const ScheduleRequest& request, std::int32_t* rows,
                                               std::int64_t row_stride, std::int32_t* num_splits,
                                               std::int64_t num_splits_stride) {
  using schedule::Position;
  const bool fixed = request.split_size > 0;
  const std::int64_t total = schedule::total_cost(request);
  const std::int64_t share = total / request.parts;
  Position begin;          // of part `p`
  std::int64_t split = 0;  // the split of begin.seq that begins there
  std::int64_t p = 0;
  std::int64_t cost = 0;
  std::int64_t splits = 0;
  num_splits[0] = 0;
  for (std::int64_t seq = 0; seq < request.batch; ++seq) {
    const std::int64_t length = request.length_of(seq);
    const std::int64_t seq_cost = schedule::cost_of(request, length);
    std::int64_t seq_splits = fixed ? schedule::fixed_splits(request, length) : 1;
    for (; p + 1 < request.parts; ++p) {
      const std::int64_t offset = schedule::cut_cost(request, total, p + 1) - cost;
      if (offset >= seq_cost) break;
      const Position cut = schedule::place_cut(request, share, seq, length, offset);
      schedule::part_between(request, begin, cut, split).store(rows + p * row_stride);
      if (cut == begin) continue;
      begin = cut;
      split = fixed ? cut.key / request.split_size : cut.key > 0 ? seq_splits++ : 0;
    }
    cost += seq_cost;
    splits += seq_splits;
    num_splits[(seq + 1) * num_splits_stride] = static_cast<std::int32_t>(splits);
  }
  for (; p < request.parts; ++p) {
    const Position end{request.batch, 0};
    schedule::part_between(request, begin, end, split).store(rows + p * row_stride);
    begin = end;
  }
}

/// Whether given rows are a schedule of exactly these lengths: every key in one part, in order, split
/// numbers and `num_splits` that agree. Any content is safe to ask about.
FLASHMLA_HOST_DEVICE inline bool schedule_is_valid(const ScheduleRequest& request, const std::int32_t* rows,
                                                   std::int64_t row_stride, const std::int32_t* num_splits,
                                                   std::int64_t num_splits_stride) {
  std::int64_t seq = 0;  // all keys before key `key` of sequence `seq` are in parts
  std::int64_t key = 0;
  std::int64_t split = 0;  // splits of `seq` so far
  std::int64_t splits = 0;
  if (num_splits[0] != 0) return false;
  for (std::int64_t p = 0; p < request.parts; ++p) {
    const PartRow row = PartRow::load(rows + p * row_stride);
    if (row.split_size != request.split_size || row.unused[0] != 0 || row.unused[1] != 0) return false;
    if (row.empty()) continue;
    if (row.begin_seq != seq || row.begin_key != key || row.begin_split != split) return false;
    if (row.end_seq >= request.batch) return false;
    for (; seq <= row.end_seq; ++seq) {
      const std::int64_t length = request.length_of(seq);
      const std::int64_t end = seq == row.end_seq ? row.end_key : length;
      if (end < key || end > length || (end == key && length > 0)) return false;
      if (request.split_size == 0) {
        ++split;
      } else {
        if (end < length && end % request.split_size != 0) return false;
        split += length == 0 ? 1 : schedule::ceil_div(end - key, request.split_size);
      }
      key = end;
      if (end < length) break;
      splits += split;
      if (num_splits[(seq + 1) * num_splits_stride] != splits) return false;
      key = 0;
      split = 0;
    }
  }
  return seq == request.batch;
}

}  // namespace flashmla
