// Numbers of the online softmax.
#pragma once

#include "cuda/ptx/math.h"
#include "cuda/ptx/target.h"

namespace flashmla::tile {

inline constexpr float kMinusInfinity = -__builtin_inff();
inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr float kLn2 = 0.693147180559945309417f;

}  // namespace flashmla::tile
