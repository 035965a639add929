// SparseDecode: fields, rules, index checks.
#include "flashmla/sparse_decode.h"

#include "api/index_checks.h"
#include "api/run.h"
#include "api/shapes.h"
#include "api/shared_rules.h"

namespace flashmla {

const Fields<SparseDecode>& SparseDecode::fields() {
  using Op = SparseDecode;
  static constexpr TensorField<Op> kTensors[] = {
      {"q", Role::kInput, "bf16|f16", "[batch s_q h_q d_qk]", &Op::q, "new query tokens"},
      {"kv_cache", Role::kInput, "u8|q", "[blocks page h_kv row]", &Op::kv_cache,
       "rows in an FP8 format, or of the type of q"},
      {"indices", Role::kInput, "i32", "[batch s_q topk]", &Op::indices,
       "selected tokens; outside the cache: skipped"},
      {"topk_length", Role::kOptional, "i32", "[batch]", &Op::topk_length,
       "how many of the leftmost indices count"},
      {"attn_sink", Role::kOptional, "f32", "[h_q]", &Op::attn_sink,
       "logit of a key without value, for out alone"},
      {"extra_kv_cache", Role::kOptional, "kv_cache", "[extra_blocks extra_page h_kv row]",
       &Op::extra_kv_cache, "second cache"},
      {"extra_indices", Role::kOptional, "i32", "[batch s_q extra_topk]", &Op::extra_indices,
       "selected tokens of the second cache"},
      {"extra_topk_length", Role::kOptional, "i32", "[batch]", &Op::extra_topk_length,
       "as topk_length, for the second cache"},
      {"schedule", Role::kOptional, "i32", "[parts 8]", &Op::schedule, "from make_schedule"},
      {"num_splits", Role::kOptional, "i32", "[batch+1]", &Op::num_splits, "from make_schedule"},
      {"out", Role::kOutput, "q", "[batch s_q h_q d_v]", &Op::out, "attention result"},
      {"lse", Role::kOutput, "f32", "[batch h_q s_q]", &Op::lse,
       "log of the sum of exponentials, base e, without the sink"},
  };
  static constexpr ScalarField<Op> kScalars[] = {
      {"softmax_scale", &Op::softmax_scale, "factor of the logits; default 1/sqrt(d_qk)"},
      {"split_size", &Op::split_size, "indices after which a sequence is split; 0 balances over the machine"},
  };
  static constexpr Fields<Op> kFields{
      "sparse_decode", "new query tokens over selected tokens of a paged cache", kTensors, kScalars};
  return kFields;
}

void check_rules(const SparseDecode& op) {
  constexpr std::string_view kName = "sparse_decode";
  const DecodeShape shape = shape_of(op);
  require_grouped_heads(kName, shape.h_q, shape.h_kv);
  require_latent_widths(kName, shape.d_qk, shape.d_v);
  require_format(kName, "kv_cache", op.kv_cache, shape.d_qk);
  require_pages(kName, "page", op.kv_cache);
  require_both_or_none(kName, "extra_kv_cache", op.extra_kv_cache, "extra_indices", op.extra_indices);
  if (op.extra_kv_cache.given()) require_pages(kName, "extra_page", op.extra_kv_cache);
  if (op.extra_topk_length.given() && !op.extra_indices.given()) {
    fail(ErrorKind::kValue, kName,
         "extra_topk_length needs extra_kv_cache and extra_indices, which are missing");
  }
  require_schedule(kName, op.schedule, op.num_splits);
  const std::int64_t extra_topk = op.extra_indices.given() ? op.extra_indices.shape[2] : 0;
  require_schedule_range(kName, shape.batch, {"topk", op.indices.shape[2]}, op.split_size);
  require_schedule_range(kName, shape.batch, {"extra_topk", extra_topk}, op.split_size);
  require_schedule_range(kName, shape.batch, {"topk + extra_topk", op.indices.shape[2] + extra_topk},
                         op.split_size);
  require_finite_scale(kName, op.softmax_scale);
}

namespace {

void check_selection(std::string_view indices_name, const TensorView& indices, std::string_view length_name,
                     const TensorView& length, const TensorView& kv_cache) {
  constexpr std::string_view kName = "sparse_decode";
  if (!indices.given()) return;
  const std::int64_t topk = indices.shape[2];
  require_lengths(kName, length_name, length, topk);
  for (std::int64_t b = 0; b < indices.shape[0]; ++b) {
    const std::int64_t count = length.given() ? index_at(length, b) : topk;
    for (std::int64_t i = 0; i < indices.shape[1]; ++i) {
      for (std::int64_t k = 0; k < count; ++k) {
        require_index(kName, indices_name, indices, 0, tokens_in(kv_cache), Padding::kMinusOne, b, i, k);
      }
    }
  }
}

}  // namespace

void check_indices(const SparseDecode& op) {
  check_selection("indices", op.indices, "topk_length", op.topk_length, op.kv_cache);
  check_selection("extra_indices", op.extra_indices, "extra_topk_length", op.extra_topk_length,
                  op.extra_kv_cache);
}

std::size_t workspace_bytes(const SparseDecode& op, const Execution& on) {
  return checked_workspace_bytes(op, on);
}
void run(const SparseDecode& op, const Execution& on) { checked_run(op, on); }

}  // namespace flashmla
