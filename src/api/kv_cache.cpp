// QuantizeKv, DequantizeKv and AppendKv: fields, rules, index checks.
#include "api/index_checks.h"
#include "api/run.h"
#include "api/shapes.h"
#include "api/shared_rules.h"
#include "flashmla/append_kv.h"
#include "flashmla/dequantize_kv.h"
#include "flashmla/quantize_kv.h"
#include "kv/formats.h"

namespace flashmla {

const Fields<QuantizeKv>& QuantizeKv::fields() {
  using Op = QuantizeKv;
  static constexpr TensorField<Op> kTensors[] = {
      {"kv", Role::kInput, "bf16", "[blocks page 1 d_qk]", &Op::kv, "rows to store"},
      {"kv_cache", Role::kUpdate, "u8", "[blocks page 1 row]", &Op::kv_cache,
       "FP8 cache; padding is not touched"},
  };
  static constexpr Fields<Op> kFields{"quantize_kv", "bf16 rows into an FP8 cache", kTensors, {}};
  return kFields;
}

const Fields<DequantizeKv>& DequantizeKv::fields() {
  using Op = DequantizeKv;
  static constexpr TensorField<Op> kTensors[] = {
      {"kv_cache", Role::kInput, "u8", "[blocks page 1 row]", &Op::kv_cache, "FP8 cache"},
      {"kv", Role::kOutput, "bf16", "[blocks page 1 d_qk]", &Op::kv, "rows as kernels see them"},
  };
  static constexpr Fields<Op> kFields{"dequantize_kv", "an FP8 cache into bf16 rows", kTensors, {}};
  return kFields;
}

const Fields<AppendKv>& AppendKv::fields() {
  using Op = AppendKv;
  static constexpr TensorField<Op> kTensors[] = {
      {"latent", Role::kInput, "bf16|f16", "[tokens d_latent]", &Op::latent, "first part of the new rows"},
      {"rope", Role::kInput, "latent", "[tokens d_rope]", &Op::rope, "second part of the new rows"},
      {"slot_mapping", Role::kInput, "i32|i64", "[tokens]", &Op::slot_mapping,
       "token of the cache to write; outside: skipped"},
      {"kv_cache", Role::kUpdate, "u8|latent", "[blocks page 1 row]", &Op::kv_cache, "cache in any format"},
  };
  static constexpr Fields<Op> kFields{"append_kv", "new tokens into a paged cache", kTensors, {}};
  return kFields;
}

void check_rules(const QuantizeKv& op) {
  require_format("quantize_kv", "kv_cache", op.kv_cache, op.kv.shape[3]);
  require_pages("quantize_kv", "page", op.kv_cache);
}

void check_rules(const DequantizeKv& op) {
  require_format("dequantize_kv", "kv_cache", op.kv_cache, op.kv.shape[3]);
  require_pages("dequantize_kv", "page", op.kv_cache);
}

void check_rules(const AppendKv& op) {
  constexpr std::string_view kName = "append_kv";
  const std::int64_t d_latent = op.latent.shape[1];
  const std::int64_t d_rope = op.rope.shape[1];
  require_row_width(kName, {"d_latent", d_latent});
  require_row_width(kName, {"d_rope", d_rope});
  const KvFormat format = require_format(kName, "kv_cache", op.kv_cache, d_latent + d_rope);
  require_pages(kName, "page", op.kv_cache);
  with_fp8_format(format, [&]<class Format>() {
    if (op.latent.type != DataType::kBf16) {
      fail(ErrorKind::kType, kName, "latent must be bf16 for format ", Format::kName, ", got ",
           name_of(op.latent.type));
    }
    if (d_rope != Format::kRope) {
      fail(ErrorKind::kValue, kName, "d_rope must be ", Format::kRope, " for format ", Format::kName,
           ", got ", d_rope);
    }
  });
}

void check_indices(const QuantizeKv&) {}
void check_indices(const DequantizeKv&) {}

void check_indices(const AppendKv& op) {
  for (std::int64_t i = 0; i < op.latent.shape[0]; ++i) {
    require_index("append_kv", "slot_mapping", op.slot_mapping, 0, tokens_in(op.kv_cache), Padding::kMinusOne,
                  i);
  }
}

std::size_t workspace_bytes(const QuantizeKv& op, const Execution& on) {
  return checked_workspace_bytes(op, on);
}
std::size_t workspace_bytes(const DequantizeKv& op, const Execution& on) {
  return checked_workspace_bytes(op, on);
}
std::size_t workspace_bytes(const AppendKv& op, const Execution& on) {
  return checked_workspace_bytes(op, on);
}
void run(const QuantizeKv& op, const Execution& on) { checked_run(op, on); }
void run(const DequantizeKv& op, const Execution& on) { checked_run(op, on); }
void run(const AppendKv& op, const Execution& on) { checked_run(op, on); }

}  // namespace flashmla
