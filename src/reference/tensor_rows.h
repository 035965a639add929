// Rows of tensors to and from double.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "flashmla/tensor.h"
#include "kv/float_types.h"
#include "kv/formats.h"
#include "kv/row.h"

namespace flashmla::reference {

/// Address of the element with these indices; missing last indices are 0.
template <class... Index>
std::byte* address(const TensorView& tensor, Index... index) {
  std::int64_t offset = 0;
  std::size_t dim = 0;
  ((offset += static_cast<std::int64_t>(index) * tensor.strides[dim++]), ...);
  return static_cast<std::byte*>(tensor.data) + offset * static_cast<std::int64_t>(size_of(tensor.type));
}

template <class T, class... Index>
T& element(const TensorView& tensor, Index... index) {
  return *reinterpret_cast<T*>(address(tensor, index...));
}

/// `type` is bf16, f16, f32, or u8 for e4m3 codes.
inline void load_row(const std::byte* row, DataType type, std::int64_t width, double* values) {
  const auto* narrow = reinterpret_cast<const std::uint16_t*>(row);
  if (type == DataType::kBf16) {
    for (std::int64_t i = 0; i < width; ++i) values[i] = bf16_to_float(narrow[i]);
  } else if (type == DataType::kF16) {
    for (std::int64_t i = 0; i < width; ++i) values[i] = f16_to_float(narrow[i]);
  } else if (type == DataType::kU8) {
    const auto* codes = reinterpret_cast<const std::uint8_t*>(row);
    for (std::int64_t i = 0; i < width; ++i) values[i] = e4m3_to_float(codes[i]);
  } else {
    const auto* wide = reinterpret_cast<const float*>(row);
    for (std::int64_t i = 0; i < width; ++i) values[i] = wide[i];
  }
}

/// Rounds each value once. `type` is bf16, f16 or f32.
inline void store_row(const double* values, DataType type, std::int64_t width, std::byte* row) {
  auto* narrow = reinterpret_cast<std::uint16_t*>(row);
  if (type == DataType::kBf16) {
    for (std::int64_t i = 0; i < width; ++i) narrow[i] = double_to_bf16(values[i]);
  } else if (type == DataType::kF16) {
    for (std::int64_t i = 0; i < width; ++i) narrow[i] = double_to_f16(values[i]);
  } else {
    auto* wide = reinterpret_cast<float*>(row);
    for (std::int64_t i = 0; i < width; ++i) wide[i] = static_cast<float>(values[i]);
  }
}

/// Zero has the same bytes in every type.
inline void store_zeros(DataType type, std::int64_t width, std::byte* row) {
  std::memset(row, 0, size_of(type) * static_cast<std::size_t>(width));
}

/// One token and head of a paged cache of any format; FP8 values as their bf16 bits.
inline void load_token(const TensorView& kv_cache, std::int64_t block, std::int64_t row, std::int64_t head,
                       std::int64_t width, double* values) {
  if (kv_cache.type != DataType::kU8) {
    load_row(address(kv_cache, block, row, head), kv_cache.type, width, values);
    return;
  }
  with_fp8_format(*kv_format_of(kv_cache), [&]<class Format>() {
    std::uint16_t bits[Format::kWidth];
    flashmla::load_row<Format>(Format::token(PagedCache(kv_cache), block, row), bits);
    for (std::int64_t i = 0; i < width; ++i) values[i] = bf16_to_float(bits[i]);
  });
}

}  // namespace flashmla::reference
