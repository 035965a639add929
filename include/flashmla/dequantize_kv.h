// An FP8 cache into bf16 rows.
#pragma once

#include <cstddef>

#include "flashmla/execution.h"
#include "flashmla/fields.h"
#include "flashmla/tensor.h"

namespace flashmla {

/// An FP8 cache into bf16 rows: e4m3 * scale, rounded to nearest even bf16. These are the values that
/// every kernel attends over.
struct DequantizeKv {
  /// u8 `[blocks, page, 1, row]`.
  TensorView kv_cache = {};
  /// bf16 `[blocks, page, 1, d_qk]`.
  TensorView kv = {};

  static const Fields<DequantizeKv>& fields();
};

/// See workspace_bytes(const DenseDecode&, const Execution&).
std::size_t workspace_bytes(const DequantizeKv& op, const Execution& on);

/// See run(const DenseDecode&, const Execution&).
void run(const DequantizeKv& op, const Execution& on);

}  // namespace flashmla
