// New tokens into a paged cache.
#pragma once

#include <cstddef>

#include "flashmla/execution.h"
#include "flashmla/fields.h"
#include "flashmla/tensor.h"

namespace flashmla {

/// Writes new tokens into a paged cache, in every format. Token `i` goes to block
/// `slot_mapping[i] / page`, row `slot_mapping[i] % page`; slots outside the cache are skipped. Of
/// tokens with the same slot the last one stays.
struct AppendKv {
  /// bf16 or f16 `[tokens, d_latent]`. For FP8 formats the part that is quantized (512 or 448 wide).
  TensorView latent = {};
  /// Type of `latent`, `[tokens, d_rope]`, stored behind the latent; copied.
  TensorView rope = {};
  /// i32 or i64 `[tokens]`.
  TensorView slot_mapping = {};
  /// `[blocks, page, 1, row]`: the type of `latent` with `row = d_latent + d_rope`, or u8 with an FP8
  /// row (then `latent` is bf16). Only the named slots are written.
  TensorView kv_cache = {};

  static const Fields<AppendKv>& fields();
};

/// See workspace_bytes(const DenseDecode&, const Execution&).
std::size_t workspace_bytes(const AppendKv& op, const Execution& on);

/// See run(const DenseDecode&, const Execution&).
void run(const AppendKv& op, const Execution& on);

}  // namespace flashmla
