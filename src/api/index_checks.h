// Range checks of index tensors on the CPU, for Execution::check_indices.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "api/message.h"
#include "api/shapes.h"
#include "flashmla/tensor.h"

namespace flashmla {

/// Element of an i32 or i64 tensor; fewer positions than dimensions mean the first ones.
template <class... Positions>
std::int64_t index_at(const TensorView& tensor, Positions... positions) {
  std::int64_t offset = 0;
  int dim = 0;
  ((offset += tensor.strides[dim++] * positions), ...);
  return tensor.type == DataType::kI64 ? tensor.as<const std::int64_t>()[offset]
                                       : tensor.as<const std::int32_t>()[offset];
}

enum class Padding { kNone, kMinusOne };

/// Throws unless `low <= value < end`, for the element at these positions.
template <class... Positions>
void require_index(std::string_view operation, std::string_view name, const TensorView& tensor,
                   std::int64_t low, std::int64_t end, Padding padding, Positions... positions) {
  const std::int64_t value = index_at(tensor, positions...);
  if ((value >= low && value < end) || (padding == Padding::kMinusOne && value == -1)) return;
  std::string place;
  ((place += text(place.empty() ? "" : ", ", positions)), ...);
  fail(ErrorKind::kValue, operation, name, "[", place, "] must be in [", low, ", ", end, ")",
       padding == Padding::kMinusOne ? " or -1" : "", ", got ", value);
}

/// Lengths `[batch]`, each in `[0, limit]`.
inline void require_lengths(std::string_view operation, std::string_view name, const TensorView& lengths,
                            std::int64_t limit) {
  if (!lengths.given()) return;
  for (std::int64_t b = 0; b < lengths.shape[0]; ++b) {
    require_index(operation, name, lengths, 0, std::min(limit, kLargestLength) + 1, Padding::kNone, b);
  }
}

/// Bounds `[batch + 1]` of packed sequences: from 0, never falling, at most `total`.
inline void require_bounds(std::string_view operation, std::string_view name, const TensorView& bounds,
                           std::int64_t total) {
  std::int64_t low = 0;
  for (std::int64_t b = 0; b < bounds.shape[0]; ++b) {
    require_index(operation, name, bounds, low, b == 0 ? 1 : total + 1, Padding::kNone, b);
    low = index_at(bounds, b);
  }
}

}  // namespace flashmla
