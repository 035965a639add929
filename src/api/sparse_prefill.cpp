// SparsePrefill: fields, rules, index checks.
#include "flashmla/sparse_prefill.h"

#include "api/index_checks.h"
#include "api/run.h"
#include "api/shapes.h"
#include "api/shared_rules.h"

namespace flashmla {

const Fields<SparsePrefill>& SparsePrefill::fields() {
  using Op = SparsePrefill;
  static constexpr TensorField<Op> kTensors[] = {
      {"q", Role::kInput, "bf16|f16", "[s_q h_q d_qk]", &Op::q, "query tokens"},
      {"kv", Role::kInput, "q", "[s_kv h_kv d_qk]", &Op::kv, "latent rows"},
      {"indices", Role::kInput, "i32", "[s_q h_kv topk]", &Op::indices, "selected rows; outside kv: skipped"},
      {"attn_sink", Role::kOptional, "f32", "[h_q]", &Op::attn_sink,
       "logit of a key without value, for out alone"},
      {"topk_length", Role::kOptional, "i32", "[s_q]", &Op::topk_length,
       "how many of the leftmost indices count"},
      {"out", Role::kOutput, "q", "[s_q h_q d_v]", &Op::out, "attention result"},
      {"max_logits", Role::kOutput, "f32", "[s_q h_q]", &Op::max_logits, "largest logit, scale included"},
      {"lse", Role::kOutput, "f32", "[s_q h_q]", &Op::lse,
       "log of the sum of exponentials, base e, without the sink"},
  };
  static constexpr ScalarField<Op> kScalars[] = {
      {"softmax_scale", &Op::softmax_scale, "factor of the logits; default 1/sqrt(d_qk)"},
  };
  static constexpr Fields<Op> kFields{
      "sparse_prefill", "query tokens, each over its own selection of latent rows", kTensors, kScalars};
  return kFields;
}

void check_rules(const SparsePrefill& op) {
  constexpr std::string_view kName = "sparse_prefill";
  const PrefillShape shape = shape_of(op);
  require_grouped_heads(kName, shape.h_q, shape.h_kv);
  require_latent_widths(kName, shape.d_qk, shape.d_v);
  require_finite_scale(kName, op.softmax_scale);
}

void check_indices(const SparsePrefill& op) {
  constexpr std::string_view kName = "sparse_prefill";
  const PrefillShape shape = shape_of(op);
  require_lengths(kName, "topk_length", op.topk_length, shape.topk);
  for (std::int64_t i = 0; i < shape.s_q; ++i) {
    const std::int64_t count = op.topk_length.given() ? index_at(op.topk_length, i) : shape.topk;
    for (std::int64_t head = 0; head < shape.h_kv; ++head) {
      for (std::int64_t k = 0; k < count; ++k) {
        require_index(kName, "indices", op.indices, 0, shape.s_kv, Padding::kMinusOne, i, head, k);
      }
    }
  }
}

std::size_t workspace_bytes(const SparsePrefill& op, const Execution& on) {
  return checked_workspace_bytes(op, on);
}
void run(const SparsePrefill& op, const Execution& on) { checked_run(op, on); }

}  // namespace flashmla
