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

class ValueSum {
 public:
  /// Rows of up to `width` numbers.
  ValueSum(Workspace& workspace, const Engine& engine, DataType type, int width);

  static std::int64_t columns_of(std::int64_t width) { return round_up(width, kColumnTile); }

  /// Rows of sums that get tokens of values.
  struct Target {
    std::int64_t rows;  ///< row count of the factors
    int first_row;
    int last_row;
    const float* correction;  ///< what the sums are multiplied with first; null: they start at zero
    float* sums;              ///< `[rows][columns_of(width)]`
  };

  /// Adds `factors[token][row] * values[token]` to rows `[first_row, last_row)`, for `count` tokens.
  void add(const float* factors, const void* const* values, int count, int width, const Target& to) const;

  bool all_finite(const void* const* values, int count, int width) const;

 private:
  const Engine* engine_;
  DataType type_;
  float* panel_;
};

}  // namespace flashmla::cpu
