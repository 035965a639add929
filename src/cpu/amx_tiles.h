// Products of AMX tiles, 16 rows by 64 bytes each, for the engine that multiplies bf16.
//
// A product of tiles adds `sums[16][16] += a[16][16 units] * b[16 units][16]`, units being pairs of bf16.
// Scores take tokens as `a`, straight from the cache, and the panel of the rows as `b`. Values are pairs of
// tokens as `b`; their factors are `a`, split in a high and a low bf16 so that they keep 16 bits.
//
// As tiles.h, included once, by a file that is compiled for its processor.
#pragma once

#include <cstdint>

#include "cpu/engine.h"
#include "cpu/isa_avx512.h"
#include "cpu/tiles.h"

namespace flashmla::cpu {
namespace {

constexpr int kTile = 16;                     // rows of a tile, and units in a row
constexpr int kTileUnits = kTile * kTile;     // 1 KiB
constexpr int kTileBytes = 64;                // of a row
constexpr int kStepTokens = 2 * kTile;        // tokens of one product of values
constexpr int kTokens = 256;                  // of a block
constexpr int kStepFactors = 2 * kTileUnits;  // units of a row group's factors: high tile, low tile
constexpr int kGroupFactors = kTokens / kStepTokens * kStepFactors;

using Base = Tiles<Bf16Operand<Avx512Bf16>, kTokens>;
using I32 = Avx512::I32;
using U32 = std::uint32_t __attribute__((vector_size(64)));

/// What was stored before is in memory for the tile loads that follow: the compiler does not know that they
/// read any.
inline void memory_is_written() { __asm__ volatile("" ::: "memory"); }

/// Tiles have their full size while this lives, but for the sums (0 to 3) and their `a` operands (4 and 5) of
/// `rows` rows, whose product takes as long as it has rows.
class TileState {
 public:
  explicit TileState(int rows = kTile) {
    struct alignas(64) {
      std::uint8_t palette = 1;
      std::uint8_t start_row = 0;
      std::uint8_t reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = kTileBytes;
      config.rows[i] = static_cast<std::uint8_t>(i < 6 ? rows : kTile);
    }
    memory_is_written();
    _tile_loadconfig(&config);
  }
  TileState(const TileState&) = delete;
  TileState& operator=(const TileState&) = delete;
  ~TileState() { _tile_release(); }
};

// --- scores ---

/// Sixteen tokens, a constant distance from each other.
struct TokenTile {
  const Unit* first;
  std::int64_t stride;  ///< in bytes
};

constexpr int padded_steps(int width) { return panel_steps(width, 2); }

std::size_t token_scratch(int width) {
  return static_cast<std::size_t>(2 * kTile) * static_cast<std::size_t>(padded_steps(width));
}

bool evenly_spaced(const Unit* const* tokens) {
  for (int i = 2; i < kTile; ++i) {
    if (tokens[i] - tokens[i - 1] != tokens[1] - tokens[0]) return false;
  }
  return true;
}

/// Copies `count` tokens, with zeros behind each and behind the last.
TokenTile gather(const Unit* const* tokens, int count, int width, Unit* to) {
  const int steps = padded_steps(width);
  for (int i = 0; i < kTile; ++i) {
    for (int step = 0; step < steps; step += kTile) {
      const int units = i < count ? width / 2 - step : 0;
      const auto mask = static_cast<__mmask16>(units >= kTile ? 0xffff : (1 << units) - 1);
      _mm512_storeu_si512(to + i * steps + step,
                          _mm512_maskz_loadu_epi32(mask, tokens[i < count ? i : 0] + step));
    }
  }
  return {to, steps * std::int64_t{sizeof(Unit)}};
}

TokenTile token_tile(const ScoreWork& work, int token, Unit* scratch) {
  const Unit* const* tokens = work.tokens + token;
  const int count = work.count - token;
  if (count < kTile || work.width % (2 * kTile) != 0 || !evenly_spaced(tokens)) {
    return gather(tokens, count < kTile ? count : kTile, work.width, scratch);
  }
  return {tokens[0], (tokens[1] - tokens[0]) * std::int64_t{sizeof(Unit)}};
}

/// `kTokenTiles` tiles of tokens by `kRowTiles` groups of rows.
template <int kTokenTiles, int kRowTiles>
void score_tiles(const TokenTile (&tokens)[2], const Unit* panel, int steps, float* scores) {
  const Unit* second_panel = panel + static_cast<std::int64_t>(steps) * kTile;
  memory_is_written();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int step = 0; step < steps; step += kTile) {
    _tile_loadd(4, tokens[0].first + step, tokens[0].stride);
    _tile_loadd(6, panel + step * kTile, kTileBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTokenTiles == 2) {
      _tile_loadd(5, tokens[1].first + step, tokens[1].stride);
      _tile_dpbf16ps(1, 5, 6);
    }
    if constexpr (kRowTiles == 2) {
      _tile_loadd(7, second_panel + step * kTile, kTileBytes);
      _tile_dpbf16ps(2, 4, 7);
      if constexpr (kTokenTiles == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, scores, kTileBytes);
  if constexpr (kTokenTiles == 2) _tile_stored(1, scores + kTileUnits, kTileBytes);
  if constexpr (kRowTiles == 2) {
    float* second_scores = scores + kTile * kTokens;
    _tile_stored(2, second_scores, kTileBytes);
    if constexpr (kTokenTiles == 2) _tile_stored(3, second_scores + kTileUnits, kTileBytes);
  }
}

/// Rows outside, so that the tokens stay in the first-level cache for all of them.
template <int kTokenTiles>
void score_rows(const ScoreWork& work, int token, const TokenTile (&tokens)[2]) {
  const int steps = padded_steps(work.width);
  std::int64_t row = 0;
  for (; row < work.rows; row += 2 * kTile) {
    const bool both = row + kTile < work.rows;
    const std::int64_t last = row + (both ? 2 : 1) * kTile - 1;
    if (work.limits != nullptr && work.limits[last] <= token) continue;
    const Unit* panel = work.panel + row * steps;
    float* scores = work.scores + row * kTokens + token * kTile;
    if (both) {
      score_tiles<kTokenTiles, 2>(tokens, panel, steps, scores);
    } else {
      score_tiles<kTokenTiles, 1>(tokens, panel, steps, scores);
    }
  }
}

void scores(const ScoreWork& work) {
  const TileState state;
  Unit* scratch = reinterpret_cast<Unit*>(work.scratch);
  for (int token = 0; token < work.count; token += 2 * kTile) {
    const TokenTile first = token_tile(work, token, scratch);
    if (token + kTile < work.count) {
      score_rows<2>(work, token,
                    {first, token_tile(work, token + kTile, scratch + kTile * padded_steps(work.width))});
    } else {
      score_rows<1>(work, token, {first, first});
    }
  }
}

// --- values ---

/// Units of the values of 32 columns: a pair of tiles for each product step, and one tile more, as a power of
/// two would put all columns into the same few lines of the cache.
constexpr std::int64_t kColumnPairValues = (2 * kTokens / kStepTokens + 1) * kTileUnits;

std::size_t value_panel_size(std::int64_t columns) {
  return static_cast<std::size_t>(columns / (2 * kTile) * kColumnPairValues);
}

constexpr int kTokensAhead = 8;  // fetched while a token is handled: rows that lie anywhere

/// `[columns / 32][tokens / 32][2]` tiles of `[16 token pairs][16 columns]`.
void value_panel(const void* const* source, DataType, int count, int width, std::int64_t columns,
                 void* panel) {
  const __m512i first_half = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
  const __m512i second_half = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
  const int padded = (count + kStepTokens - 1) / kStepTokens * kStepTokens;
  for (int token = 0; token < padded; token += 2) {
    const auto row = [&](int at) { return static_cast<const std::uint16_t*>(source[at < count ? at : 0]); };
    const std::uint16_t* even = row(token);
    const std::uint16_t* odd = row(token + 1);
    const std::uint16_t* next_even = row(token + kTokensAhead);
    const std::uint16_t* next_odd = row(token + 1 + kTokensAhead);
    Unit* to =
        static_cast<Unit*>(panel) + token / kStepTokens * 2 * kTileUnits + token % kStepTokens / 2 * kTile;
    for (std::int64_t column = 0; column < columns; column += 2 * kTile, to += kColumnPairValues) {
      const std::int64_t left = width - column;
      const __mmask32 mask = left >= 32 ? 0xffffffffu : left > 0 ? (1u << left) - 1 : 0;
      const __m512i a = _mm512_maskz_loadu_epi16(token < count ? mask : 0, even + column);
      const __m512i b = _mm512_maskz_loadu_epi16(token + 1 < count ? mask : 0, odd + column);
      __builtin_prefetch(next_even + column);
      __builtin_prefetch(next_odd + column);
      const __m512i low = _mm512_unpacklo_epi16(a, b);
      const __m512i high = _mm512_unpackhi_epi16(a, b);
      _mm512_storeu_si512(to, _mm512_permutex2var_epi64(low, first_half, high));
      _mm512_storeu_si512(to + kTileUnits, _mm512_permutex2var_epi64(low, second_half, high));
    }
  }
}

/// What of a factor its high half leaves over, and 2^-24 of it more: a rest of zero times an infinite value
/// would be NaN. (It is where the factor is below 2^-102: tiles read the rest, a subnormal bf16, as zero.)
/// Infinity leaves infinity.
U32 rest_of(U32 factor) {
  constexpr int kInfinityOfThatSign = 6 << 16 | 6 << 20;
  const auto high = bits_as<Avx512::F32>(factor & 0xffff0000);
  const Avx512::F32 rest = Avx512::fma(high, Base::M::all(-1.0f + 0x1p-24f), bits_as<Avx512::F32>(factor));
  const auto fixed = (U32)_mm512_maskz_fixupimm_ps(0xffff, (__m512)rest, (__m512)factor,
                                                   _mm512_set1_epi32(kInfinityOfThatSign), 0);
  return fixed + 0x8000;  // the upper half, rounded to nearest: cut off, all factors would err to one side
}

/// The high halves of two vectors as pairs.
I32 pairs_of(U32 even, U32 odd) { return (I32)((even >> 16) | (odd & 0xffff0000)); }

/// Factors of 16 rows and 32 tokens, as a high and a low tile `[row][token pair]`.
void pack_step(const float* factors, int tokens, Unit* to) {
  I32 high[kTile];
  I32 low[kTile];
  for (int pair = 0; pair < kTile; ++pair) {
    const auto factor = [&](int token) {
      return token < tokens ? load<U32>(factors + token * kTile) : U32{};
    };
    const U32 even = factor(2 * pair);
    const U32 odd = factor(2 * pair + 1);
    high[pair] = pairs_of(even, odd);
    low[pair] = pairs_of(rest_of(even), rest_of(odd));
  }
  Base::transpose(high);
  Base::transpose(low);
  __builtin_memcpy(to, high, sizeof(high));
  __builtin_memcpy(to + kTileUnits, low, sizeof(low));
}

/// A group of rows of a factor block: `[tokens / 32]` steps.
void pack_group(const float* factors, int tokens, std::int64_t row, void* block) {
  Unit* to = static_cast<Unit*>(block) + row / kTile * kGroupFactors;
  for (int token = 0; token < tokens; token += kStepTokens, to += kStepFactors) {
    pack_step(factors + token * kTile, tokens - token, to);
  }
}

/// A group is packed while the first-level cache holds it.
void softmax(const SoftmaxBlock& block) {
  for (std::int64_t row = 0; row < block.rows; row += kTile) {
    float* scores = block.scores + row * kTokens;
    Base::softmax_group(block, row, scores);
    pack_group(scores, block.tokens, row, block.factors);
  }
}

template <bool kRowsAreQueries>
void gradient(const GradientBlock& block) {
  for (std::int64_t row = 0; row < block.rows; row += kTile) {
    float* scores = block.scores + row * kTokens;
    float* d_weights = block.d_weights + row * kTokens;
    Base::gradient_group<kRowsAreQueries>(block, row, scores, d_weights);
    pack_group(scores, block.tokens, row, block.weights);
    pack_group(d_weights, block.tokens, row, block.d_scores);
  }
}

/// Tokens that a group of rows, or its neighbour in a pair of groups, has factors for.
int tokens_of_group(const Accumulation& work, int group) {
  if (work.limits == nullptr) return work.tokens;
  const int end = (group / 2 + 1) * 2 * kTile;
  return work.limits[(end < work.last_row ? end : work.last_row) - 1];
}

/// Sums of one or two groups of rows by 32 columns, at `sums` with `stride`.
template <int kRowTiles>
void value_tiles(const Unit* factors, const Unit* values, int tokens, bool from_zero, float* sums,
                 std::int64_t stride) {
  const std::int64_t bytes = stride * std::int64_t{sizeof(float)};
  float* second_sums = sums + kTile * stride;
  memory_is_written();
  if (from_zero) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, bytes);
    _tile_loadd(1, sums + kTile, bytes);
    if constexpr (kRowTiles == 2) {
      _tile_loadd(2, second_sums, bytes);
      _tile_loadd(3, second_sums + kTile, bytes);
    }
  }
  for (int token = 0; token < tokens; token += kStepTokens) {
    _tile_loadd(6, values, kTileBytes);
    _tile_loadd(7, values + kTileUnits, kTileBytes);
    for (int part = 0; part < kStepFactors; part += kTileUnits) {
      _tile_loadd(4, factors + part, kTileBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (kRowTiles == 2) {
        _tile_loadd(5, factors + kGroupFactors + part, kTileBytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    factors += kStepFactors;
    values += 2 * kTileUnits;
  }
  _tile_stored(0, sums, bytes);
  _tile_stored(1, sums + kTile, bytes);
  if constexpr (kRowTiles == 2) {
    _tile_stored(2, second_sums, bytes);
    _tile_stored(3, second_sums + kTile, bytes);
  }
}

/// Most blocks raise no maximum: their sums stay as they are.
void correct(const Accumulation& work) {
  if (work.correction == nullptr) return;
  for (int row = work.first_row; row < work.last_row; ++row) {
    if (work.correction[row] == 1) continue;
    float* sums = work.sums + row * work.stride;
    for (std::int64_t column = 0; column < work.columns; column += kTile) {
      store(sums + column, load<Avx512::F32>(sums + column) * work.correction[row]);
    }
  }
}

/// What value_tiles takes for a row, and for a column.
struct ValuePlace {
  const Unit* factors;
  const Unit* values;
  float* sums;

  ValuePlace(const Accumulation& work, int row, std::int64_t column)
      : factors(static_cast<const Unit*>(work.factors) + row / kTile * kGroupFactors + row % kTile * kTile),
        values(static_cast<const Unit*>(work.values) + column / (2 * kTile) * kColumnPairValues),
        sums(work.sums + row * work.stride + column) {}
};

/// Rows `[first, last)`, all of one group.
void accumulate_part_of_group(const Accumulation& work, int first, int last) {
  if (first >= last) return;
  const TileState state(last - first);
  const int tokens = tokens_of_group(work, first / kTile);
  for (std::int64_t column = 0; column < work.columns; column += 2 * kTile) {
    const ValuePlace at(work, first, column);
    value_tiles<1>(at.factors, at.values, tokens, work.correction == nullptr, at.sums, work.stride);
  }
}

/// Rows `[first, last)`, whole groups.
void accumulate_groups(const Accumulation& work, int first, int last) {
  if (first >= last) return;
  const TileState state;
  for (std::int64_t column = 0; column < work.columns; column += 2 * kTile) {
    for (int row = first; row < last; row += kTile) {
      const ValuePlace at(work, row, column);
      const int tokens = tokens_of_group(work, row / kTile);
      const bool from_zero = work.correction == nullptr;
      if (row % (2 * kTile) == 0 && row + kTile < last) {
        value_tiles<2>(at.factors, at.values, tokens, from_zero, at.sums, work.stride);
        row += kTile;
      } else {
        value_tiles<1>(at.factors, at.values, tokens, from_zero, at.sums, work.stride);
      }
    }
  }
}

void accumulate(const Accumulation& work) {
  correct(work);
  const int first_whole = (work.first_row + kTile - 1) / kTile * kTile;
  const int last_whole = work.last_row / kTile * kTile;
  if (first_whole > last_whole) return accumulate_part_of_group(work, work.first_row, work.last_row);
  accumulate_part_of_group(work, work.first_row, first_whole);
  accumulate_groups(work, first_whole, last_whole);
  accumulate_part_of_group(work, last_whole, work.last_row);
}

}  // namespace
}  // namespace flashmla::cpu
