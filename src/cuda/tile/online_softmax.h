// The online softmax of one row, whose logits come tile by tile.
#pragma once

#include "cuda/ptx/math.h"
#include "cuda/ptx/target.h"

namespace flashmla::tile {

inline constexpr float kMinusInfinity = -__builtin_inff();
inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr float kLn2 = 0.693147180559945309417f;

/// The base of a row's weights and their sum. A weight is `2^(x - base)` for a logit `x` in units of log 2.
/// The base follows the largest logit only when that has grown by more than kSlack: sums are then rescaled
/// rarely, and weights stay below `2^kSlack`.
struct RowState {
  static constexpr float kSlack = 4;

  float base = kMinusInfinity;
  float sum = 0;

  /// Takes the largest logit of the next tile; returns the factor of all earlier sums.
  FLASHMLA_DEVICE float advance(float largest) {
    if (!(largest > base + kSlack)) return 1;
    const float factor = ptx::exp2_approx(base - largest);
    base = largest;
    sum = ptx::multiply(sum, factor);
    return factor;
  }

  /// What is taken from logits: 0 instead of a base that no logit has set.
  FLASHMLA_DEVICE float subtrahend() const { return base == kMinusInfinity ? 0 : base; }
};

}  // namespace flashmla::tile
