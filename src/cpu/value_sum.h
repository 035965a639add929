// Weighted sums of 16-bit rows: what becomes of weights after softmax, and of gradients.
#pragma once

#include <cstdint>

#include "api/workspace.h"
#include "cpu/engine.h"
#include "flashmla/tensor.h"

namespace flashmla::cpu {

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Units of a panel of `rows` rows.
std::size_t panel_size(const Engine& engine, int width, int rows);

/// Floats of a score block of `rows` rows.
std::size_t score_block_size(const Engine& engine, int rows);

/// Takes a factor block of `rows` rows from the workspace; `scores` itself where it serves as one.
void* take_factors(Workspace& workspace, const Engine& engine, int rows, float* scores);

class ValueSum {
 public:
  /// Rows of up to `width` numbers.
  ValueSum(Workspace& workspace, const Engine& engine, DataType type, int width);

  static std::int64_t columns_of(std::int64_t width) { return round_up(width, kColumnTile); }

  /// Floats from one row of sums to the next. Rows at a power of two would share few lines of a cache.
  static std::int64_t stride_of(std::int64_t width) { return columns_of(width) + 16; }

  /// Rows of sums that get tokens of values.
  struct Target {
    int first_row;
    int last_row;
    const std::int32_t* limits;  ///< as in Accumulation
    const float* correction;     ///< what the sums are multiplied with first; null: they start at zero
    float* sums;                 ///< `[rows][stride_of(width)]`
  };

  /// Makes the panel of `count` values.
  void load(const void* const* values, int count, int width) const;

  /// Adds `factors[token][row] * values[token]` to rows `[first_row, last_row)`, for the `count` tokens of
  /// the panel.
  void add(const void* factors, int count, int width, const Target& to) const {
    add_units(factors, panel_, columns_of(width), count, width, to);
  }

  /// The same for values that are f32 units already, `value_stride` numbers apart.
  void add_units(const void* factors, const float* values, std::int64_t value_stride, int count, int width,
                 const Target& to) const;

  bool all_finite(const void* const* values, int count, int width) const;

 private:
  const Engine* engine_;
  DataType type_;
  float* panel_;
};

}  // namespace flashmla::cpu
