// MergeStates: fields and rules.
#include "flashmla/merge_states.h"

#include "api/run.h"
#include "api/shared_rules.h"

namespace flashmla {

const Fields<MergeStates>& MergeStates::fields() {
  using Op = MergeStates;
  static constexpr TensorField<Op> kTensors[] = {
      {"outs", Role::kInput, "bf16|f16|f32", "[batch s_q h_q d_v]", &Op::outs, "results over disjoint keys"},
      {"lses", Role::kInput, "f32", "[batch h_q s_q]", &Op::lses, "their lse"},
      {"out", Role::kOutput, "bf16|f16|f32", "[batch s_q h_q d_v]", &Op::out, "result over all keys"},
      {"lse", Role::kOutput, "f32", "[batch h_q s_q]", &Op::lse, "its lse"},
  };
  static constexpr Fields<Op> kFields{
      "merge_states", "attention results over disjoint keys into one", kTensors, {}};
  return kFields;
}

void check_rules(const MergeStates& op) {
  constexpr std::string_view kName = "merge_states";
  if (op.outs.size() < 2 || op.outs.size() != op.lses.size()) {
    fail(ErrorKind::kValue, kName, "outs and lses must hold the same number of tensors, at least 2, got ",
         op.outs.size(), " and ", op.lses.size());
  }
  for (std::size_t i = 1; i < op.outs.size(); ++i) {
    if (op.outs[i].type == op.outs[0].type) continue;
    fail(ErrorKind::kType, kName, "outs[", i, "] must be ", name_of(op.outs[0].type), " like outs[0], got ",
         name_of(op.outs[i].type));
  }
}

void check_indices(const MergeStates&) {}

std::size_t workspace_bytes(const MergeStates& op, const Execution& on) {
  return checked_workspace_bytes(op, on);
}
void run(const MergeStates& op, const Execution& on) { checked_run(op, on); }

}  // namespace flashmla
