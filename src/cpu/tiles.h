// The engine's algorithms over a small vector type. Included once by each instruction set's file, which
// is compiled with flags of its own: everything here has internal linkage, and no inline function of
// another header is called, so that no code for one processor is linked into the path of another.
//
// A file provides `Vector`:
//   kLanes; F32, I32, U16, U8 (GCC vectors of kLanes elements), TwoU16, TwoU8 (of twice as many); fma(a, b,
//   c) = a * b + c with one rounding; max(a, b): b if one is NaN; widen(U16), widen(U8) -> I32;
//   widen_f16(U16) -> F32; narrow_f16(F32) -> U16; look_up(TwoU16 table, TwoU16 index): table[index] where
//   that is below 8, anything elsewhere; and where it can store past the caches: stream(to, value)
//   for I32, U8 and Bytes16, to a multiple of the value's size, and stream_fence().
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "cpu/engine.h"

namespace flashmla::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T>
inline T load(const void* from) {
  T value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

template <class T>
inline void store(void* to, T value) {
  __builtin_memcpy(to, &value, sizeof(value));
}

/// Arithmetic on one vector of floats that the compiler's vector types do not have.
template <class V>
struct Math {
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  using U16 = typename V::U16;

  /// Zero is taken away, as adding it would change -0 and cost an addition.
  static F32 all(float value) { return value - F32{}; }

  /// NaN if one of both is.
  static F32 max_or_nan(F32 a, F32 b) { return (a >= b) | (a != a) ? a : b; }

  /// 2^x for x <= 128, relative error below 2e-7; zero below 2^-126, NaN for NaN.
  static F32 exp2(F32 x) {
    // 1.5 * 2^23 rounds to an integer in the low bits, to which 127 adds the bias of an exponent.
    const F32 magic = all(12582912.0f + 127.0f);
    const F32 shifted = x + magic;
    const F32 fraction = x - (shifted - magic);
    F32 power = all(1.3264727e-3f);  // minimax polynomial of 2^fraction on [-0.5, 0.5] that is 1 at 0
    power = V::fma(power, fraction, all(9.6715130e-3f));
    power = V::fma(power, fraction, all(5.5507336e-2f));
    power = V::fma(power, fraction, all(2.4022242e-1f));
    power = V::fma(power, fraction, all(6.9314700e-1f));
    power = V::fma(power, fraction, all(1.0f));
    const F32 result = power * bits_as<F32>(bits_as<I32>(shifted) << 23);
    return x < all(-126.0f) ? F32{} : result;
  }

  static F32 widen_bf16(U16 from) { return bits_as<F32>(V::widen(from) << 16); }

  /// bf16 bits in the low half of each lane, rounded to nearest even.
  static I32 bf16_bits(F32 from) {
    const I32 bits = bits_as<I32>(from);
    const I32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const I32 nan = I32{} + 0x7fc0;
    return (from == from ? rounded : nan) & 0xffff;
  }

  /// NaN has one code, whatever its sign was.
  static U16 narrow_f16(F32 from) {
    const I32 bits = __builtin_convertvector(V::narrow_f16(from), I32);
    return __builtin_convertvector(from == from ? bits : I32{} + 0x7e00, U16);
  }

  static U16 narrow_bf16(F32 from) { return __builtin_convertvector(bf16_bits(from), U16); }

  /// e4m3 codes, one in each lane. Without f32 subnormals, which a host may have switched off.
  static F32 widen_e4m3(I32 code) {
    const I32 magnitude = code & 0x7f;
    const F32 normal = bits_as<F32>((magnitude << 20) + (120 << 23));
    const F32 subnormal = __builtin_convertvector(magnitude, F32) * 0x1p-9f;
    const F32 value = magnitude < 8 ? subnormal : normal;
    const F32 finite = bits_as<F32>(bits_as<I32>(value) | ((code & 0x80) << 24));
    return magnitude == 0x7f ? all(std::numeric_limits<float>::quiet_NaN()) : finite;
  }

  /// e4m3 codes of numbers up to 448, rounded to nearest even, in the low byte of each lane; everything
  /// that is not finite is NaN.
  static I32 narrow_e4m3(F32 from) {
    const I32 bits = bits_as<I32>(from);
    const I32 exponent = bits & 0x7f800000;
    const I32 smallest = I32{} + (121 << 23);  // 2^-6, the smallest normal number
    const I32 step = exponent > smallest ? exponent : smallest;
    // 2^20 times this power of two: the last bits of a sum with it count steps of an eighth.
    const F32 magic = bits_as<F32>(step + (20 << 23));
    const I32 eighths = bits_as<I32>(bits_as<F32>(bits & 0x7fffffff) + magic);
    const I32 code = eighths + (step >> 20) - (121 << 3);
    const I32 infinite = I32{} + 0x7f800000;
    return (exponent < infinite ? code : I32{} + 0x7f) | ((bits >> 24) & 0x80);
  }
};

/// Two bf16 numbers in a unit. `V` adds dot(sum, a, b): both products of each unit onto a lane.
template <class V>
struct Bf16Operand {
  using Vec = V;
  static constexpr int kPack = 2;
  static typename V::F32 multiply_add(typename V::F32 sum, typename V::I32 a, typename V::I32 b) {
    return V::dot(sum, a, b);
  }
};

/// One f32 number in a unit.
template <class V>
struct F32Operand {
  using Vec = V;
  static constexpr int kPack = 1;
  static typename V::F32 multiply_add(typename V::F32 sum, typename V::I32 a, typename V::I32 b) {
    return V::fma(bits_as<typename V::F32>(a), bits_as<typename V::F32>(b), sum);
  }
};

/// Tile sizes: accumulators and operands fit the registers, and there are enough independent sums to
/// hide the latency of a multiply-add.
template <class V>
struct TileSizes {
  static constexpr bool kManyRegisters = V::kLanes >= 16;
  static constexpr int kRowVectors = 3;                               // score tile
  static constexpr int kTokens = kManyRegisters ? 8 : 4;              // score tile
  static constexpr int kTokensOfOneVector = kManyRegisters ? 12 : 8;  // score tile with one row vector
  static constexpr int kTokensInBlock = kManyRegisters ? 96 : 64;
  static constexpr int kRows = kManyRegisters ? 6 : 4;           // value tile
  static constexpr int kColumnVectors = kManyRegisters ? 4 : 2;  // value tile
  static_assert(kTokensInBlock % kTokens == 0 && kTokensInBlock % kTokensOfOneVector == 0);
};

template <class Operand, int kTokensInBlock = TileSizes<typename Operand::Vec>::kTokensInBlock>
struct Tiles {
  using V = typename Operand::Vec;
  using M = Math<V>;
  using Sizes = TileSizes<V>;
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  using U16 = typename V::U16;
  using U8 = typename V::U8;
  static constexpr int kPack = Operand::kPack;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kGroupSize = kTokensInBlock * kLanes;  // floats of a row group in a score block
  using Lanes = std::make_integer_sequence<int, kLanes>;
  static_assert(kTokensInBlock <= kMaxBlockTokens);
  static_assert(kPanelSteps % kLanes == 0);
  static_assert(kColumnTile % (Sizes::kColumnVectors * kLanes) == 0);

  // --- operands ---

  static F32 widen_vector(const void* from, DataType type) {
    const U16 bits = load<U16>(from);
    return type == DataType::kBf16 ? M::widen_bf16(bits) : V::widen_f16(bits);
  }

  /// Calls `body(at, lanes)` for each vector of a row; the last one may have fewer lanes than the others.
  template <class Body>
  static void for_each_vector(int count, Body&& body) {
    int at = 0;
    for (; at + kLanes <= count; at += kLanes) body(at, kLanes);
    if (at < count) body(at, count - at);
  }

  static F32 load_wide(const void* row, DataType type, int at, int lanes) {
    const std::size_t size = type == DataType::kF32 ? sizeof(float) : sizeof(std::uint16_t);
    const auto* from = static_cast<const unsigned char*>(row) + size * static_cast<std::size_t>(at);
    unsigned char padded[sizeof(F32)] = {};
    if (lanes < kLanes) {
      __builtin_memcpy(padded, from, size * static_cast<std::size_t>(lanes));
      from = padded;
    }
    return type == DataType::kF32 ? load<F32>(from) : widen_vector(from, type);
  }

  static void store_narrow(F32 values, DataType type, void* row, int at, int lanes) {
    const auto write = [&](auto vector, std::size_t size) {
      auto* to = static_cast<unsigned char*>(row) + size * static_cast<std::size_t>(at);
      __builtin_memcpy(to, &vector, size * static_cast<std::size_t>(lanes));
    };
    if (type == DataType::kF32) return write(values, sizeof(float));
    write(type == DataType::kBf16 ? M::narrow_bf16(values) : M::narrow_f16(values), sizeof(std::uint16_t));
  }

  static void widen(const void* source, DataType type, int count, float* out) {
    for_each_vector(count, [&](int at, int lanes) {
      store_narrow(load_wide(source, type, at, lanes), DataType::kF32, out, at, lanes);
    });
  }

  static void narrow(const float* source, float factor, int count, DataType type, void* out) {
    for_each_vector(count, [&](int at, int lanes) {
      store_narrow(load_wide(source, DataType::kF32, at, lanes) * M::all(factor), type, out, at, lanes);
    });
  }

  static void weighted_sum(const WeightedSum& work) {
    for_each_vector(work.width, [&](int at, int lanes) {
      F32 sum{};
      for (int row = 0; row < work.count; ++row) {
        sum = V::fma(M::all(work.weights[row]), load_wide(work.rows[row], work.type, at, lanes), sum);
      }
      store_narrow(sum, work.out_type, work.out, at, lanes);
    });
  }

  /// The units of a row from `step` on, as a vector; zeros behind `steps`.
  static I32 units_of(const std::uint16_t* row, DataType type, int step, int steps) {
    std::uint16_t tail[kLanes * kPack] = {};
    const std::uint16_t* from = row + step * kPack;
    if (step + kLanes > steps) {
      for (int i = 0; i < (steps - step) * kPack; ++i) tail[i] = from[i];
      from = tail;
    }
    if constexpr (kPack == 2) {
      return load<I32>(from);
    } else {
      return bits_as<I32>(widen_vector(from, type));
    }
  }

  template <int kFrom, int... kLane>
  static I32 interleave(I32 a, I32 b, std::integer_sequence<int, kLane...>) {
    return __builtin_shufflevector(a, b, (kFrom + kLane / 2 + kLane % 2 * kLanes)...);
  }

  /// Lane j of vector i becomes lane i of vector j.
  static void transpose(I32 (&vectors)[kLanes]) {
    for (int half = 1; half < kLanes; half *= 2) {
      I32 shuffled[kLanes];
#pragma GCC unroll 8
      for (int i = 0; i < kLanes / 2; ++i) {
        shuffled[2 * i] = interleave<0>(vectors[i], vectors[i + kLanes / 2], Lanes{});
        shuffled[2 * i + 1] = interleave<kLanes / 2>(vectors[i], vectors[i + kLanes / 2], Lanes{});
      }
      __builtin_memcpy(vectors, shuffled, sizeof(shuffled));
    }
  }

  static void pack_rows(const void* const* source, DataType type, int count, int width, std::int64_t rows,
                        int few_rows, Unit* panel) {
    const int steps = width / kPack;
    const int padded = panel_steps(width, kPack);
    const auto units = [&](std::int64_t row, int step) {
      return row < count ? units_of(static_cast<const std::uint16_t*>(source[row]), type, step, steps)
                         : I32{};
    };
    const std::int64_t transposed = few_rows > 0 ? rows - kLanes : rows;
    for (std::int64_t group = 0; group < transposed; group += kLanes) {
      for (int step = 0; step < padded; step += kLanes) {
        I32 vectors[kLanes];
        for (int i = 0; i < kLanes; ++i) vectors[i] = units(group + i, step);
        transpose(vectors);
        for (int i = 0; i < kLanes; ++i) store(panel + group * padded + (step + i) * kLanes, vectors[i]);
      }
    }
    for (std::int64_t row = transposed; row < transposed + few_rows; ++row) {
      for (int step = 0; step < padded; step += kLanes) store(panel + row * padded + step, units(row, step));
    }
  }

  static std::size_t token_scratch(int width) {
    // Behind the last token, columns up to the next column tile are read: they end up in no result.
    return kPack == 1
               ? static_cast<std::size_t>(kTokensInBlock) * static_cast<std::size_t>(width) + kColumnTile
               : 0;
  }

  static std::size_t value_panel_size(std::int64_t columns) {
    return static_cast<std::size_t>(kTokensInBlock * columns);
  }

  static void token_units(const void* const* source, DataType type, int count, int width, float* scratch,
                          const Unit** units) {
    for (int i = 0; i < count; ++i) {
      if constexpr (kPack == 2) {
        units[i] = static_cast<const Unit*>(source[i]);
      } else {
        float* row = scratch + static_cast<std::int64_t>(i) * width;
        widen(source[i], type, width, row);
        units[i] = reinterpret_cast<const Unit*>(row);
      }
    }
  }

  static void value_panel(const void* const* source, DataType type, int count, int width,
                          std::int64_t columns, void* panel) {
    for (int i = 0; i < count; ++i) {
      float* row = static_cast<float*>(panel) + i * columns;
      widen(source[i], type, width, row);
      for (std::int64_t column = width; column < columns; ++column) row[column] = 0;
    }
  }

  // --- products ---

  /// Where the units of a tile's tokens are: f32 units stand in one array, bf16 pairs are read from anywhere.
  struct TokenRows {
    const Unit* const* rows;
    std::int64_t stride;

    Unit unit(int token, std::int64_t step) const { return load<Unit>(at(token) + step); }

    /// A vector of units from `step` on, zeros behind `steps`.
    I32 units(int token, std::int64_t step, int steps) const {
      if (step + kLanes <= steps) return load<I32>(at(token) + step);
      I32 tail{};
      for (std::int64_t i = 0; i < steps - step; ++i)
        tail[i] = static_cast<std::int32_t>(unit(token, step + i));
      return tail;
    }

   private:
    const Unit* at(int token) const { return kPack == 1 ? rows[0] + token * stride : rows[token]; }
  };

  template <int kVectors, int kTokens>
  static void score_tile(const Unit* panel, std::int64_t panel_stride, TokenRows tokens, int steps,
                         float* scores) {
    F32 sums[kTokens][kVectors] = {};
    for (std::int64_t step = 0; step < steps; ++step, panel += kLanes) {
      I32 row_units[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) row_units[v] = load<I32>(panel + v * panel_stride);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        const I32 token_unit = I32{} + static_cast<std::int32_t>(tokens.unit(t, step));
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          sums[t][v] = Operand::multiply_add(sums[t][v], row_units[v], token_unit);
        }
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) store(scores + v * kGroupSize + t * kLanes, sums[t][v]);
    }
  }

  /// `kVectors` groups of rows, from row `row` on.
  template <int kVectors>
  static void score_groups(const ScoreWork& work, std::int64_t row) {
    constexpr int kTokens = kVectors == 1 ? Sizes::kTokensOfOneVector : Sizes::kTokens;
    const int steps = work.width / kPack;
    const std::int64_t padded = panel_steps(work.width, kPack);
    const int count = work.limits == nullptr ? work.count : work.limits[row + kVectors * kLanes - 1];
    const Unit* panel = work.panel + row * padded;
    float* scores = work.scores + row * kTokensInBlock;
    for (int t = 0; t < count; t += kTokens) {
      // Where a tile has fewer tokens, the last one stands in for those that are missing; in the array of
      // f32 units, what lies behind it. Their scores are not used.
      const Unit* rows[kTokens];
      for (int i = 0; i < kTokens; ++i) rows[i] = work.tokens[t + i < count ? t + i : count - 1];
      score_tile<kVectors, kTokens>(panel, padded * kLanes, {rows, work.width}, steps, scores + t * kLanes);
    }
  }

  /// Groups of rows from row `row` on, up to `end`.
  template <int kVectors>
  static void score_rows(const ScoreWork& work, std::int64_t row, std::int64_t end) {
    for (; row + kVectors * kLanes <= end; row += kVectors * kLanes) score_groups<kVectors>(work, row);
    if constexpr (kVectors > 1) score_rows<kVectors - 1>(work, row, end);
  }

  /// A few rows, one by one: vectors along the steps, summed across at the end.
  template <int kRows, int kTokens>
  static void dot_tile(const Unit* panel, std::int64_t panel_stride, TokenRows tokens, int steps,
                       float* scores) {
    F32 sums[kTokens][kRows] = {};
    for (std::int64_t step = 0; step < steps; step += kLanes) {
      I32 rows[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) rows[r] = load<I32>(panel + r * panel_stride + step);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const I32 token = tokens.units(t, step, steps);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sums[t][r] = Operand::multiply_add(sums[t][r], rows[r], token);
      }
    }
    for (int t = 0; t < kTokens; ++t) {
      for (int r = 0; r < kRows; ++r) scores[t * kLanes + r] = lane_sum<kLanes / 2>(sums[t][r], Lanes{});
    }
  }

  template <int kHalf, int... kLane>
  static float lane_sum(F32 sums, std::integer_sequence<int, kLane...> lanes) {
    if constexpr (kHalf == 0) {
      return sums[0];
    } else {
      const F32 others = __builtin_shufflevector(sums, sums, ((kLane + kHalf) % kLanes)...);
      return lane_sum<kHalf / 2>(sums + others, lanes);
    }
  }

  /// `kRows` at a time of the `left` rows at `panel`, then fewer.
  template <int kRows>
  static void dot_rows(const ScoreWork& work, const Unit* panel, int left, int count, float* scores) {
    constexpr int kTokens = 4;
    const std::int64_t padded = panel_steps(work.width, kPack);
    for (; left >= kRows; left -= kRows, panel += kRows * padded, scores += kRows) {
      for (int t = 0; t < count; t += kTokens) {
        const Unit* rows[kTokens];
        for (int i = 0; i < kTokens; ++i) rows[i] = work.tokens[t + i < count ? t + i : count - 1];
        dot_tile<kRows, kTokens>(panel, padded, {rows, work.width}, work.width / kPack, scores + t * kLanes);
      }
    }
    if constexpr (kRows > 1) dot_rows<kRows / 2>(work, panel, left, count, scores);
  }

  static void scores(const ScoreWork& work) {
    const std::int64_t end = work.few_rows > 0 ? work.rows - kLanes : work.rows;
    score_rows<Sizes::kRowVectors>(work, 0, end);
    if (work.few_rows == 0) return;
    const int count = work.limits == nullptr ? work.count : work.limits[work.rows - 1];
    float* few = work.scores + end * kTokensInBlock;
    for (int t = 0; t < count; ++t) store(few + t * kLanes, F32{});
    dot_rows<4>(work, work.panel + end * panel_steps(work.width, kPack), work.few_rows, count, few);
  }

  /// Rows `[row, row + kRows)` of one group.
  template <int kRows>
  static void value_tile(const Accumulation& work, int row, std::int64_t column) {
    constexpr int kVectors = Sizes::kColumnVectors;
    const float* factors = static_cast<const float*>(work.factors) + row / kLanes * kGroupSize + row % kLanes;
    const float* values = static_cast<const float*>(work.values) + column;
    float* out = work.sums + row * work.stride + column;
    const int tokens = work.limits == nullptr ? work.tokens : work.limits[row + kRows - 1];
    F32 sums[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] = work.correction == nullptr
                         ? F32{}
                         : load<F32>(out + r * work.stride + v * kLanes) * M::all(work.correction[row + r]);
      }
    }
    for (int token = 0; token < tokens; ++token, factors += kLanes, values += work.value_stride) {
      F32 value[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) value[v] = load<F32>(values + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const F32 factor = M::all(factors[r]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[r][v] = V::fma(factor, value[v], sums[r][v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) store(out + r * work.stride + v * kLanes, sums[r][v]);
    }
  }

  /// As many rows as a tile has, or a smaller one; no further than to the end of a group. Returns the rows.
  template <int kRows>
  static int value_rows(const Accumulation& work, int row, int left, std::int64_t column) {
    if (left >= kRows) {
      value_tile<kRows>(work, row, column);
      return kRows;
    }
    if constexpr (kRows > 1) return value_rows<(kRows > 2 ? kRows - 2 : 1)>(work, row, left, column);
    return 0;
  }

  static void accumulate(const Accumulation& work) {
    // Columns outside: the values of one column tile stay in the first-level cache for all rows.
    for (std::int64_t column = 0; column < work.columns; column += Sizes::kColumnVectors * kLanes) {
      for (int row = work.first_row; row < work.last_row;) {
        const int group_end = (row / kLanes + 1) * kLanes;
        const int left = (group_end < work.last_row ? group_end : work.last_row) - row;
        row += value_rows<Sizes::kRows>(work, row, left, column);
      }
    }
  }

  static void blend(float* target, float target_factor, const float* source, float source_factor, int count) {
    int i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const F32 scaled = load<F32>(source + i) * M::all(source_factor);
      store(target + i, V::fma(load<F32>(target + i), M::all(target_factor), scaled));
    }
    for (; i < count; ++i) target[i] = target[i] * target_factor + source[i] * source_factor;
  }

  // --- softmax ---

  /// Tokens `[0, all)` are seen by every row of a group, `[all, some)` by some rows, the rest by none.
  struct SeenTokens {
    I32 limit;
    int all;
    int some;

    SeenTokens(const SoftmaxBlock& block, std::int64_t row)
        : limit(block.limits != nullptr ? load<I32>(block.limits + row) : I32{} + block.tokens),
          all(limit[0]),
          some(limit[kLanes - 1]) {}

    /// -inf where a row does not see the token.
    F32 masked(int token, F32 logit) const { return I32{} + token < limit ? logit : M::all(-kInfinity); }
  };

  static F32 largest_logit(const float* scores, const SeenTokens& seen, F32 scale, F32 old_max) {
    // Two chains, as each of their steps waits for the one before.
    F32 maxima[2] = {old_max, old_max};
    F32 checks[2] = {};  // NaN where a score is not finite
    int t = 0;
    for (; t + 2 <= seen.all; t += 2) {
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const F32 logit = load<F32>(scores + (t + i) * kLanes) * scale;
        checks[i] = V::fma(logit, F32{}, checks[i]);
        maxima[i] = V::max(logit, maxima[i]);
      }
    }
    F32 max = V::max(maxima[0], maxima[1]);
    F32 check = checks[0] + checks[1];
    for (; t < seen.some; ++t) {
      const F32 logit = seen.masked(t, load<F32>(scores + t * kLanes) * scale);
      check += logit;
      max = V::max(logit, max);
    }
    if (!any_nan(check)) return max;
    max = old_max;
    for (t = 0; t < seen.some; ++t) {
      max = M::max_or_nan(max, seen.masked(t, load<F32>(scores + t * kLanes) * scale));
    }
    return max;
  }

  static bool any_nan(F32 values) {
    const I32 nan = values != values;
    std::int32_t any = 0;
    for (int i = 0; i < kLanes; ++i) any |= nan[i];
    return any != 0;
  }

  /// The softmax of one group of rows; `weights` may be its scores.
  static void softmax_group(const SoftmaxBlock& block, std::int64_t row, float* weights) {
    const F32 scale = M::all(block.scale_log2);
    const float* scores = block.scores + row * kTokensInBlock;
    const SeenTokens seen(block, row);
    const F32 old_max = load<F32>(block.max + row);
    const F32 max = largest_logit(scores, seen, scale, old_max);
    const F32 base = max == M::all(-kInfinity) ? F32{} : max;  // a row that has seen nothing yet
    const F32 correction = M::exp2(old_max - base);
    F32 sum = load<F32>(block.sum + row) * correction;
    const auto weigh = [&](int t, F32 logit) {
      const F32 weight = M::exp2(logit - base);
      sum += weight;
      store(weights + t * kLanes, weight);
    };
    int t = 0;
    for (; t < seen.all; ++t) weigh(t, load<F32>(scores + t * kLanes) * scale);
    for (; t < seen.some; ++t) weigh(t, seen.masked(t, load<F32>(scores + t * kLanes) * scale));
    for (; t < block.tokens; ++t) store(weights + t * kLanes, F32{});
    store(block.max + row, max);
    store(block.sum + row, sum);
    store(block.correction + row, correction);
  }

  static void softmax(const SoftmaxBlock& block) {
    for (std::int64_t row = 0; row < block.rows; row += kLanes) {
      softmax_group(block, row, static_cast<float*>(block.factors) + row * kTokensInBlock);
    }
  }

  /// The gradients of one group of rows; `weights` and `d_scores` may be its scores and d_weights.
  template <bool kRowsAreQueries>
  static void gradient_group(const GradientBlock& block, std::int64_t row, float* weights, float* d_scores) {
    I32 rows = I32{} + static_cast<std::int32_t>(row);
    for (int i = 0; i < kLanes; ++i) rows[i] += i;
    const F32 scale_log2 = M::all(block.softmax_scale * 1.44269504f);
    const F32 scale = M::all(block.softmax_scale);
    for (int t = 0; t < block.tokens; ++t) {
      const std::int64_t at = row * kTokensInBlock + t * kLanes;
      const auto of_query = [&](const float* values) {
        return kRowsAreQueries ? load<F32>(values + row) : M::all(values[t]);
      };
      const F32 logit = load<F32>(block.scores + at) * scale_log2;
      const F32 exponent = logit - of_query(block.lse_log2);
      // A logit is not larger than lse, but for rounding and for an lse that belongs to something else.
      const F32 weight = M::exp2(exponent > M::all(128.0f) ? M::all(128.0f) : exponent);
      const F32 d_weight = load<F32>(block.d_weights + at) - of_query(block.delta);
      const I32 seen = (rows >= I32{} + block.first_row[t]) & (rows < I32{} + block.last_row[t]);
      store(weights + t * kLanes, seen ? weight : F32{});
      store(d_scores + t * kLanes, seen ? weight * d_weight * scale : F32{});
    }
  }

  template <bool kRowsAreQueries>
  static void gradient(const GradientBlock& block) {
    for (std::int64_t row = 0; row < block.rows; row += kLanes) {
      gradient_group<kRowsAreQueries>(block, row, static_cast<float*>(block.weights) + row * kTokensInBlock,
                                      static_cast<float*>(block.d_scores) + row * kTokensInBlock);
    }
  }

  static bool all_finite(const void* source, DataType type, int count) {
    const auto* from = static_cast<const std::uint16_t*>(source);
    const auto exponent = static_cast<std::uint16_t>(type == DataType::kBf16 ? 0x7f80 : 0x7c00);
    std::uint16_t not_finite = 0;
    for (int i = 0; i < count; ++i) not_finite |= (from[i] & exponent) == exponent;
    return not_finite == 0;
  }

  // --- FP8 ---

  /// A scale, if it is a power of two that integers can multiply by.
  struct PowerOfTwo {
    int exponent;
    bool is_one;

    explicit PowerOfTwo(float scale) {
      const std::int32_t bits = bits_as<std::int32_t>(scale);
      exponent = (bits >> 23) - 127;
      is_one = (bits & 0x7fffff) == 0 && exponent >= -119 && exponent <= 119;
    }
  };

  static std::uint16_t largest_of(typename V::TwoU16 numbers) {
    std::uint16_t all[2 * kLanes];
    __builtin_memcpy(all, &numbers, sizeof(numbers));
    std::uint16_t largest = 0;
    for (const std::uint16_t number : all) largest = number > largest ? number : largest;
    return largest;
  }

  /// Codes times 2^power, by integers alone: a normal e4m3 number is a bf16 number but for its place and
  /// bias. 2^(power - 9), the smallest number that is not normal, must be a normal bf16 number.
  static void dequantize_by_integers(const std::uint8_t* values, int power, int count, std::uint16_t* out) {
    using Codes = typename V::TwoU8;
    using Wide = typename V::TwoU16;
    // The codes below the normal ones: zero, 2^-9, 2 and 3 times 2^-9, 4 to 7 times 2^-9.
    const Wide below = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};
    const Wide shift = Wide{} + static_cast<std::uint16_t>(power << 7);
    const Wide table = below == 0 ? below : below + shift;
    const Wide bias = shift + (120 << 7);
    for (int i = 0; i < count; i += 2 * kLanes) {
      const Wide code = __builtin_convertvector(load<Codes>(values + i), Wide);
      const Wide magnitude = code & 0x7f;
      const Wide number = magnitude < 8 ? V::look_up(table, magnitude) : (magnitude << 4) + bias;
      store(out + i, magnitude == 0x7f ? Wide{} + 0x7fc0 : number | ((code << 8) & 0x8000));
    }
  }

  /// e4m3 values of one group.
  static void dequantize_group(const std::uint8_t* values, float scale, int count, std::uint16_t* out) {
    const PowerOfTwo power(scale);
    if (power.is_one && power.exponent >= -117) {
      return dequantize_by_integers(values, power.exponent, count, out);
    }
    for (int i = 0; i < count; i += kLanes) {
      const F32 value = M::widen_e4m3(V::widen(load<U8>(values + i)));
      store(out + i, M::narrow_bf16(value * M::all(scale)));
    }
  }

  static void dequantize(const std::uint8_t* values, const float* scales, int groups, int group,
                         std::uint16_t* out) {
    for (int g = 0; g < groups; ++g) dequantize_group(values + g * group, scales[g], group, out + g * group);
  }

  /// The e4m3 codes of bf16 numbers over 2^power, by integers alone. Tells whether all codes were normal
  /// ones; if not, what is written is of no use.
  static bool quantize_normal(const std::uint16_t* source, int power, int count, std::uint8_t* out) {
    using Codes = typename V::TwoU8;
    using Wide = typename V::TwoU16;
    constexpr std::uint16_t kSmallest = 0x08 << 4;  // a code is a bf16 number's upper bits, but for the bias
    constexpr std::uint16_t kLargest = (0x7e << 4) + 8;
    const Wide smallest = Wide{} + static_cast<std::uint16_t>(((120 + power) << 7) + kSmallest);
    Wide largest{};
    for (int i = 0; i < count; i += 2 * kLanes) {
      const Wide bits = load<Wide>(source + i);
      const Wide magnitude = bits & 0x7fff;
      const Wide above = magnitude - smallest;  // wraps around below it
      largest = above > largest ? above : largest;
      const Wide rounded = (above + (kSmallest + 7) + ((magnitude >> 4) & 1)) >> 4;
      store(out + i, __builtin_convertvector(rounded | ((bits >> 8) & 0x80), Codes));
    }
    return largest_of(largest) <= kLargest - kSmallest;
  }

  /// bf16 numbers of one group.
  static void quantize_group(const std::uint16_t* source, float inverse_scale, int count, std::uint8_t* out) {
    const PowerOfTwo power(inverse_scale);
    if (power.is_one && quantize_normal(source, -power.exponent, count, out)) return;
    for (int i = 0; i < count; i += kLanes) {
      const F32 scaled = M::widen_bf16(load<U16>(source + i)) * M::all(inverse_scale);
      store(out + i, __builtin_convertvector(M::narrow_e4m3(scaled), U8));
    }
  }

  static void quantize(const std::uint16_t* source, const float* inverse_scales, int groups, int group,
                       std::uint8_t* values) {
    for (int g = 0; g < groups; ++g) {
      quantize_group(source + g * group, inverse_scales[g], group, values + g * group);
    }
  }

  static std::uint16_t largest_finite_of_group(const std::uint16_t* source, int count) {
    using Wide = typename V::TwoU16;
    Wide largest{};
    for (int i = 0; i < count; i += 2 * kLanes) {
      const Wide magnitude = load<Wide>(source + i) & 0x7fff;
      largest = magnitude > largest ? magnitude : largest;
    }
    constexpr std::uint16_t kInfinite = 0x7f80;
    const std::uint16_t found = largest_of(largest);
    if (found < kInfinite) return found;
    std::uint16_t finite = 0;
    for (int i = 0; i < count; ++i) {
      const auto magnitude = static_cast<std::uint16_t>(source[i] & 0x7fff);
      if (magnitude < kInfinite && magnitude > finite) finite = magnitude;
    }
    return finite;
  }

  static void largest_finite(const std::uint16_t* source, int groups, int group, std::uint16_t* largest) {
    for (int g = 0; g < groups; ++g) largest[g] = largest_finite_of_group(source + g * group, group);
  }

  // --- stores past the caches ---

  /// Whole lines of the caches past them; what is before and behind as usual, as its line has other parts.
  static void stream(const void* source, std::int64_t bytes, void* out) {
    const auto* from = static_cast<const unsigned char*>(source);
    auto* to = static_cast<unsigned char*>(out);
    constexpr std::int64_t kLine = 64;
    const std::int64_t before_line = -static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(to)) & 63;
    std::int64_t at = before_line < bytes ? before_line : bytes;
    __builtin_memcpy(to, from, static_cast<std::size_t>(at));
    for (; at + kLine <= bytes; at += kLine) {
      for (std::int64_t part = at; part < at + kLine; part += sizeof(I32)) {
        V::stream(to + part, load<I32>(from + part));
      }
    }
    __builtin_memcpy(to + at, from + at, static_cast<std::size_t>(bytes - at));
  }

  static constexpr Streams streams() {
    if constexpr (requires { V::stream_fence(); }) {
      return {.copy = stream, .fence = V::stream_fence};
    }
    return {};
  }

  static constexpr Engine engine(const char* name) {
    return {.instruction_set = name,
            .pack = kPack,
            .lanes = kLanes,
            .block_tokens = kTokensInBlock,
            .factor_bytes = 0,
            .token_scratch = token_scratch,
            .value_panel_size = value_panel_size,
            .most_few_rows = kLanes / 2,
            .pack_rows = pack_rows,
            .token_units = token_units,
            .value_panel = value_panel,
            .scores = scores,
            .softmax = softmax,
            .gradient_of_query_rows = gradient<true>,
            .gradient_of_key_rows = gradient<false>,
            .accumulate = accumulate,
            .blend = blend,
            .all_finite = all_finite,
            .widen = widen,
            .narrow = narrow,
            .weighted_sum = weighted_sum,
            .dequantize = dequantize,
            .quantize = quantize,
            .largest_finite = largest_finite,
            .streams = streams()};
  }
};

}  // namespace
}  // namespace flashmla::cpu
