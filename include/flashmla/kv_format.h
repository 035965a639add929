// The formats of a paged cache.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "flashmla/tensor.h"

namespace flashmla {

/// How a token is laid out in a cache tensor `[blocks, page, h_kv, row]`.
enum class KvFormat : std::uint8_t {
  /// `row` bf16 values.
  kBf16,
  /// `row` f16 values.
  kF16,
  /// `row` e4m3 values: the cache of dense_decode that has one scale a sequence, beside it.
  kE4m3,
  /// 656 bytes: 512 e4m3 values, 4 f32 scales (one per 128 values), 64 bf16 RoPE values.
  kFp8V32,
  /// 584 bytes in two places of a block: first `page` rows of 448 e4m3 values and 64 bf16 RoPE
  /// values, then `page` rows of 7 ue8m0 scales (one per 64 values) and one unused byte. The tensor
  /// is `[blocks, page, 1, 584]` with strides `{block stride, 584, 584, 1}`; the block stride is
  /// usually padded to a multiple of 576.
  kFp8Model1,
};

/// `bf16`, `f16`, `e4m3`, `fp8_v32` or `fp8_model1`.
std::string_view name_of(KvFormat format);

/// The format with this name, if there is one.
std::optional<KvFormat> kv_format_named(std::string_view name);

/// The format of a cache, as element type and last dimension tell; none if no format matches. Never
/// kE4m3: that a cache of bytes is such a one, only its operation tells.
std::optional<KvFormat> kv_format_of(const TensorView& kv_cache);

/// Last dimension of a cache tensor (bytes for the FP8 formats) that holds rows of `d_qk` values;
/// none if the format does not have that width. FP8 formats have one: 576 for fp8_v32, 512 for
/// fp8_model1.
std::optional<std::int64_t> kv_row_size(KvFormat format, std::int64_t d_qk);

/// Width `d_qk` of the rows that a cache tensor with this last dimension holds.
std::int64_t kv_row_width(KvFormat format, std::int64_t row_size);

}  // namespace flashmla
