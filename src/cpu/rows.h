// Rows of tensors: their size in memory, and having them fetched early.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flashmla/tensor.h"

namespace flashmla::cpu {

inline std::int64_t bytes_of(const TensorView& view) {
  return view.size() * static_cast<std::int64_t>(size_of(view.type));
}

/// Bytes along the last dimension.
inline std::int64_t row_bytes(const TensorView& rows) {
  return rows.shape[static_cast<std::size_t>(rows.ndim - 1)] * static_cast<std::int64_t>(size_of(rows.type));
}

/// Has a row fetched that is read soon.
inline void fetch_row(const void* row, std::int64_t bytes) {
  constexpr std::int64_t kLine = 64;
  const auto* begin = static_cast<const std::uint8_t*>(row);
  for (std::int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(begin + at);
}

/// Has the first and the last line fetched of a row that is written soon.
inline void fetch_ends(const std::uint8_t* row, std::int64_t bytes) {
  __builtin_prefetch(row, 1);
  __builtin_prefetch(row + bytes - 1, 1);
}

}  // namespace flashmla::cpu
