// bf16 rows into an FP8 cache.
#pragma once

#include <cstddef>

#include "flashmla/execution.h"
#include "flashmla/fields.h"
#include "flashmla/tensor.h"

namespace flashmla {

/// bf16 rows into an FP8 cache. Per group of values: `amax = max |x|`,
/// `scale = 2^ceil(log2(max(amax / 448, 1e-4)))`, stored value = round-to-nearest-even e4m3 of
/// `x / scale`; RoPE values are copied. A value that is not finite is stored as NaN and does not take
/// part in `amax`.
struct QuantizeKv {
  /// bf16 `[blocks, page, 1, d_qk]`.
  TensorView kv = {};
  /// u8 `[blocks, page, 1, row]`; the format follows from `row`. Padding between blocks is not touched.
  TensorView kv_cache = {};

  static const Fields<QuantizeKv>& fields();
};

/// See workspace_bytes(const DenseDecode&, const Execution&).
std::size_t workspace_bytes(const QuantizeKv& op, const Execution& on);

/// See run(const DenseDecode&, const Execution&).
void run(const QuantizeKv& op, const Execution& on);

}  // namespace flashmla
