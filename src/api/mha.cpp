// MhaForward and MhaBackward: fields, rules, index checks.
#include "api/index_checks.h"
#include "api/run.h"
#include "api/shapes.h"
#include "api/shared_rules.h"
#include "flashmla/mha_backward.h"
#include "flashmla/mha_forward.h"

namespace flashmla {

const Fields<MhaForward>& MhaForward::fields() {
  using Op = MhaForward;
  static constexpr TensorField<Op> kTensors[] = {
      {"q", Role::kInput, "bf16|f16", "[total_q h_q d_qk]", &Op::q, "queries of all sequences"},
      {"k", Role::kInput, "q", "[total_k h_kv d_qk]", &Op::k, "keys of all sequences"},
      {"v", Role::kInput, "q", "[total_k h_kv d_v]", &Op::v, "values of all sequences"},
      {"cu_seqlens_q", Role::kInput, "i32", "[batch+1]", &Op::cu_seqlens_q,
       "first query row of each sequence, and the end"},
      {"cu_seqlens_k", Role::kInput, "i32", "[batch+1]", &Op::cu_seqlens_k,
       "first key row of each sequence, and the end"},
      {"out", Role::kOutput, "q", "[total_q h_q d_v]", &Op::out, "attention result"},
      {"lse", Role::kOutput, "f32", "[total_q h_q]", &Op::lse, "log of the sum of exponentials, base e"},
  };
  static constexpr ScalarField<Op> kScalars[] = {
      {"softmax_scale", &Op::softmax_scale, "factor of the logits; default 1/sqrt(d_qk)"},
      {"causal", &Op::causal, "query i sees keys t <= len_k - len_q + i"},
  };
  static constexpr Fields<Op> kFields{"mha_forward", "attention over packed sequences", kTensors, kScalars};
  return kFields;
}

const Fields<MhaBackward>& MhaBackward::fields() {
  using Op = MhaBackward;
  static constexpr TensorField<Op> kTensors[] = {
      {"q", Role::kInput, "bf16|f16", "[total_q h_q d_qk]", &Op::q, "queries of all sequences"},
      {"k", Role::kInput, "q", "[total_k h_kv d_qk]", &Op::k, "keys of all sequences"},
      {"v", Role::kInput, "q", "[total_k h_kv d_v]", &Op::v, "values of all sequences"},
      {"out", Role::kInput, "q", "[total_q h_q d_v]", &Op::out, "output of mha_forward"},
      {"lse", Role::kInput, "f32", "[total_q h_q]", &Op::lse, "output of mha_forward"},
      {"d_out", Role::kInput, "q", "[total_q h_q d_v]", &Op::d_out, "gradient of out"},
      {"cu_seqlens_q", Role::kInput, "i32", "[batch+1]", &Op::cu_seqlens_q,
       "first query row of each sequence, and the end"},
      {"cu_seqlens_k", Role::kInput, "i32", "[batch+1]", &Op::cu_seqlens_k,
       "first key row of each sequence, and the end"},
      {"d_q", Role::kOutput, "q", "[total_q h_q d_qk]", &Op::d_q, "gradient of q"},
      {"d_k", Role::kOutput, "q", "[total_k h_kv d_qk]", &Op::d_k, "gradient of k"},
      {"d_v", Role::kOutput, "q", "[total_k h_kv d_v]", &Op::d_v, "gradient of v"},
  };
  static constexpr ScalarField<Op> kScalars[] = {
      {"softmax_scale", &Op::softmax_scale, "factor of the logits; default 1/sqrt(d_qk)"},
      {"causal", &Op::causal, "query i sees keys t <= len_k - len_q + i"},
      {"deterministic", &Op::deterministic, "the same bits of d_q in every run"},
  };
  static constexpr Fields<Op> kFields{"mha_backward", "gradients of mha_forward", kTensors, kScalars};
  return kFields;
}

namespace {

template <class Mha>
void check_mha_rules(std::string_view operation, const Mha& op) {
  const MhaShape shape = shape_of(op);
  require_grouped_heads(operation, shape.h_q, shape.h_kv);
  require_row_width(operation, {"d_qk", shape.d_qk});
  require_row_width(operation, {"d_v", shape.d_v});
  require_finite_scale(operation, op.softmax_scale);
}

template <class Mha>
void check_mha_indices(std::string_view operation, const Mha& op) {
  const MhaShape shape = shape_of(op);
  require_bounds(operation, "cu_seqlens_q", op.cu_seqlens_q, shape.total_q);
  require_bounds(operation, "cu_seqlens_k", op.cu_seqlens_k, shape.total_k);
}

}  // namespace

void check_rules(const MhaForward& op) { check_mha_rules("mha_forward", op); }
void check_rules(const MhaBackward& op) { check_mha_rules("mha_backward", op); }
void check_indices(const MhaForward& op) { check_mha_indices("mha_forward", op); }
void check_indices(const MhaBackward& op) { check_mha_indices("mha_backward", op); }

std::size_t workspace_bytes(const MhaForward& op, const Execution& on) {
  return checked_workspace_bytes(op, on);
}
std::size_t workspace_bytes(const MhaBackward& op, const Execution& on) {
  return checked_workspace_bytes(op, on);
}
void run(const MhaForward& op, const Execution& on) { checked_run(op, on); }
void run(const MhaBackward& op, const Execution& on) { checked_run(op, on); }

}  // namespace flashmla
