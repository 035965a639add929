// Streams of keys for the attention loop: what a query may see, page by page or index by index. Only
// memory that the caller's tensors have is ever addressed.
#pragma once

#include <algorithm>
#include <cstdint>

#include "api/workspace.h"
#include "cpu/attention.h"
#include "cpu/engine.h"
#include "cpu/fp8_rows.h"
#include "cpu/rows.h"
#include "kv/formats.h"
#include "kv/paged_cache.h"

namespace flashmla::cpu {

/// Tokens `[begin, end)` of one sequence in a paged cache; tokens of blocks that do not exist are left out.
class PagedKeys {
 public:
  PagedKeys(const PagedCache& cache, const std::int32_t* blocks, std::int64_t block_stride, std::int64_t head,
            std::int64_t begin, std::int64_t end)
      : cache_(cache),
        blocks_(blocks),
        block_stride_(block_stride),
        head_(head),
        position_(begin),
        end_(end) {}

  /// Where rows of e4m3 codes are dequantized to: `[Engine::block_tokens][whole_groups(width)]`.
  void dequantize_with(const Engine& engine, std::uint16_t* rows, std::int64_t width) {
    engine_ = &engine;
    rows_ = rows;
    width_ = width;
  }

  bool next(KeyBlock& block) {
    block.count = 0;
    while (position_ < end_ && block.count < block.capacity) {
      const std::int64_t row = position_ % cache_.page;
      const std::int64_t run = std::min(
          {cache_.page - row, end_ - position_, static_cast<std::int64_t>(block.capacity - block.count)});
      const std::int64_t index = blocks_[position_ / cache_.page * block_stride_];
      if (index >= 0 && index < cache_.blocks) {
        for (std::int64_t i = 0; i < run; ++i) {
          block.keys[block.count] = block.values[block.count] = row_at(index, row + i, block.count);
          block.positions[block.count++] = position_ + i;
        }
      }
      position_ += run;
    }
    return block.count > 0;
  }

 private:
  /// A row of the cache; one of codes is dequantized to row `at`.
  const void* row_at(std::int64_t index, std::int64_t row, int at) const {
    const std::uint8_t* found = cache_.plain_row(index, row, head_);
    if (engine_ == nullptr) return found;
    std::uint16_t* bf16 = rows_ + at * whole_groups(width_);
    load_codes(*engine_, found, width_, bf16);
    return bf16;
  }

  PagedCache cache_;
  const std::int32_t* blocks_;
  std::int64_t block_stride_;
  std::int64_t head_;
  std::int64_t position_;
  std::int64_t end_;
  const Engine* engine_ = nullptr;
  std::uint16_t* rows_ = nullptr;
  std::int64_t width_ = 0;
};

/// Indices into one cache.
struct Selection {
  const std::int32_t* indices = nullptr;
  std::int64_t count = 0;
  PagedCache cache;
};

/// The valid ones among entries `[begin, end)` of one or two selections, one behind the other.
class SelectedKeys {
 public:
  SelectedKeys(const Selection& first, const Selection& second, std::int64_t head, std::int64_t begin,
               std::int64_t end)
      : selections_{first, second}, head_(head), position_(begin), end_(end) {}

  /// Where rows of an FP8 cache are dequantized to: `[Engine::block_tokens][width]`.
  void dequantize_with(const Engine& engine, KvFormat format, std::uint16_t* rows, std::int64_t width) {
    engine_ = &engine;
    format_ = format;
    rows_ = rows;
    width_ = width;
  }

  bool next(KeyBlock& block) {
    block.count = 0;
    for (; position_ < end_ && block.count < block.capacity; ++position_) {
      fetch(position_ + kRowsAhead);
      const Place place = place_at(position_);
      if (place.cache == nullptr) continue;
      block.keys[block.count] = block.values[block.count] = row_at(place, block.count);
      block.positions[block.count++] = position_;
    }
    return block.count > 0;
  }

 private:
  static constexpr std::int64_t kRowsAhead = 8;

  /// A token of a cache; no cache if the index is not valid.
  struct Place {
    const PagedCache* cache;
    std::int64_t block;
    std::int64_t row;
  };

  Place place_at(std::int64_t position) const {
    const std::int64_t first_count = selections_[0].count;
    const bool in_first = position < first_count;
    const Selection& selection = selections_[in_first ? 0 : 1];
    const std::int64_t index = selection.indices[in_first ? position : position - first_count];
    if (index < 0 || index >= selection.cache.tokens()) return {nullptr, 0, 0};
    return {&selection.cache, index / selection.cache.page, index % selection.cache.page};
  }

  /// Has a row fetched that is dequantized soon: rows lie anywhere, so the processor cannot know.
  void fetch(std::int64_t position) const {
    if (engine_ == nullptr || position >= end_) return;
    const Place place = place_at(position);
    if (place.cache == nullptr) return;
    with_fp8_format(format_, [&]<class Format>() {
      const Fp8Token token = Format::token(*place.cache, place.block, place.row);
      fetch_row(token.values, Format::kRowBytes);
      __builtin_prefetch(token.scales);
    });
  }

  /// The row of a token; one of an FP8 cache is dequantized to row `at`.
  const void* row_at(const Place& place, int at) const {
    if (engine_ == nullptr) return place.cache->plain_row(place.block, place.row, head_);
    std::uint16_t* bf16 = rows_ + at * width_;
    with_fp8_format(format_, [&]<class Format>() {
      load_token<Format>(*engine_, Format::token(*place.cache, place.block, place.row), bf16);
    });
    return bf16;
  }

  Selection selections_[2];
  std::int64_t head_;
  std::int64_t position_;
  std::int64_t end_;
  const Engine* engine_ = nullptr;
  KvFormat format_ = KvFormat::kBf16;
  std::uint16_t* rows_ = nullptr;
  std::int64_t width_ = 0;
};

/// Rows `[begin, end)` of packed keys and values.
class PackedKeys {
 public:
  PackedKeys(const std::uint16_t* keys, std::int64_t key_stride, const std::uint16_t* values,
             std::int64_t value_stride, std::int64_t begin, std::int64_t end)
      : keys_(keys),
        key_stride_(key_stride),
        values_(values),
        value_stride_(value_stride),
        position_(begin),
        end_(end) {}

  bool next(KeyBlock& block) {
    block.count = static_cast<int>(std::clamp<std::int64_t>(end_ - position_, 0, block.capacity));
    for (int i = 0; i < block.count; ++i, ++position_) {
      block.keys[i] = keys_ + position_ * key_stride_;
      block.values[i] = values_ + position_ * value_stride_;
      block.positions[i] = position_;
    }
    return block.count > 0;
  }

 private:
  const std::uint16_t* keys_;
  std::int64_t key_stride_;
  const std::uint16_t* values_;
  std::int64_t value_stride_;
  std::int64_t position_;
  std::int64_t end_;
};

}  // namespace flashmla::cpu
