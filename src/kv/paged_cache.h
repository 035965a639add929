// Where the rows of a paged cache tensor lie, in bytes.
#pragma once

#include <cstdint>

#include "flashmla/tensor.h"
#include "kv/host_device.h"

namespace flashmla {

/// A cache tensor `[blocks, page, h_kv, row]` with its strides in bytes.
struct PagedCache {
  std::uint8_t* data = nullptr;
  std::int64_t blocks = 0;
  std::int64_t page = 0;
  std::int64_t block_stride = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;

  PagedCache() = default;

  explicit PagedCache(const TensorView& cache)
      : data(cache.as<std::uint8_t>()),
        blocks(cache.shape[0]),
        page(cache.shape[1]),
        block_stride(cache.strides[0] * static_cast<std::int64_t>(size_of(cache.type))),
        token_stride(cache.strides[1] * static_cast<std::int64_t>(size_of(cache.type))),
        head_stride(cache.strides[2] * static_cast<std::int64_t>(size_of(cache.type))) {}

  FLASHMLA_HOST_DEVICE std::int64_t tokens() const { return blocks * page; }

  FLASHMLA_HOST_DEVICE std::uint8_t* block(std::int64_t index) const { return data + index * block_stride; }

  /// A row of a plain format; the row of an FP8 format comes from its `token` function.
  FLASHMLA_HOST_DEVICE std::uint8_t* plain_row(std::int64_t block_index, std::int64_t row,
                                               std::int64_t head) const {
    return block(block_index) + row * token_stride + head * head_stride;
  }
};

/// The three parts of one token in an FP8 cache. What they hold is the format's business.
struct Fp8Token {
  std::uint8_t* values;  ///< e4m3
  std::uint8_t* scales;
  std::uint8_t* rope;  ///< bf16
};

}  // namespace flashmla
