// A small valid call of every operation, for tests that make one thing about it wrong.
#pragma once

#include <utility>
#include <variant>
#include <vector>

#include "cases/case.h"
#include "cases/random.h"
#include "flashmla/flashmla.h"

namespace flashmla {

/// A case, the step that runs it, and its operation to change. Cannot be moved: views point inside.
template <class Op>
class ValidOperation {
 public:
  explicit ValidOperation(cases::Case what) : source_(std::move(what)), steps_(cases::prepare(source_)) {
    op = std::get<Op>(steps_.front().operation);
  }
  ValidOperation(const ValidOperation&) = delete;
  ValidOperation& operator=(const ValidOperation&) = delete;

  const cases::Tensor& output(const std::string& name) const { return steps_.front().outputs.at(name); }
  const std::map<std::string, cases::Tensor>& outputs() const { return steps_.front().outputs; }
  const cases::Tensor& input(const std::string& name) const { return source_.tensors.at(name); }

  Op op;

 private:
  cases::Case source_;
  std::vector<cases::Step> steps_;
};

/// batch 2, s_q 1, h_q 4, h_kv 2, d_qk 16, d_v 8, page 4, sequences of 9 and 5 tokens.
inline cases::Case valid_case(const DenseDecode*) {
  cases::DenseDecodeKnobs knobs;
  knobs.h_q = 4;
  knobs.h_kv = 2;
  knobs.d_qk = 16;
  knobs.d_v = 8;
  knobs.page = 4;
  knobs.seqlens = {9, 5};
  return cases::make_dense_decode(knobs, 1);
}

/// batch 2, s_q 1, h_q 4, fp8_v32, page 4, 3 blocks, topk 6; second cache of 2 blocks of 2, topk 3.
inline cases::Case valid_case(const SparseDecode*) {
  cases::SparseDecodeKnobs knobs;
  knobs.h_q = 4;
  knobs.page = 4;
  knobs.blocks = 3;
  knobs.topk = 6;
  knobs.topk_length = {6, 2};
  knobs.extra_topk = 3;
  knobs.extra_blocks = 2;
  knobs.extra_topk_length = {3, 1};
  knobs.sinks = cases::Sinks::kFinite;
  return cases::make_sparse_decode(knobs, 1);
}

/// s_q 3, s_kv 10, h_q 4, h_kv 2, d_qk 16, d_v 8, topk 5.
inline cases::Case valid_case(const SparsePrefill*) {
  cases::SparsePrefillKnobs knobs;
  knobs.s_q = 3;
  knobs.s_kv = 10;
  knobs.h_q = 4;
  knobs.h_kv = 2;
  knobs.d_qk = 16;
  knobs.d_v = 8;
  knobs.topk = 5;
  knobs.topk_length = {5, 2, 0};
  knobs.sinks = cases::Sinks::kFinite;
  return cases::make_sparse_prefill(knobs, 1);
}

/// Sequences of 3 and 2 queries over 4 and 5 keys, h_q 4, h_kv 2, d_qk 16, d_v 8.
inline cases::MhaKnobs valid_mha_knobs() {
  cases::MhaKnobs knobs;
  knobs.seqlens_q = {3, 2};
  knobs.seqlens_k = {4, 5};
  knobs.h_q = 4;
  knobs.h_kv = 2;
  knobs.d_qk = 16;
  knobs.d_v = 8;
  return knobs;
}

inline cases::Case valid_case(const MhaForward*) { return cases::make_mha_forward(valid_mha_knobs(), 1); }
inline cases::Case valid_case(const MhaBackward*) { return cases::make_mha_backward(valid_mha_knobs(), 1); }

/// 2 blocks of 3 tokens in fp8_v32.
inline cases::QuantizeKnobs valid_quantize_knobs() {
  cases::QuantizeKnobs knobs;
  knobs.blocks = 2;
  knobs.page = 3;
  return knobs;
}

inline cases::Case valid_case(const QuantizeKv*) {
  return cases::make_quantize_kv(valid_quantize_knobs(), 1);
}
inline cases::Case valid_case(const DequantizeKv*) {
  return cases::make_dequantize_kv(valid_quantize_knobs(), 1);
}

/// 5 tokens into 3 blocks of 4 in fp8_v32, i64 slots.
inline cases::Case valid_case(const AppendKv*) {
  cases::AppendKvKnobs knobs;
  knobs.tokens = 5;
  knobs.blocks = 3;
  knobs.page = 4;
  return cases::make_append_kv(knobs, 1);
}

/// 2 states, batch 2, s_q 1, h_q 3, d_v 8.
inline cases::Case valid_case(const MergeStates*) {
  cases::MergeStatesKnobs knobs;
  knobs.h_q = 3;
  knobs.d_v = 8;
  return cases::make_merge_states(knobs, 1);
}

/// batch 2, 3 parts, max_seqlen 8192.
inline cases::Case valid_case(const MakeSchedule*) {
  cases::MakeScheduleKnobs knobs;
  knobs.batch = 2;
  knobs.parts = 3;
  return cases::make_make_schedule(knobs, 1);
}

template <class Op>
struct Valid : ValidOperation<Op> {
  Valid() : ValidOperation<Op>(valid_case(static_cast<const Op*>(nullptr))) {}
};

/// Runs with the workspace that the operation asks for.
template <class Op>
void run_with_workspace(const Op& op, Execution on = {}) {
  std::vector<std::byte> workspace(workspace_bytes(op, on));
  on.workspace = workspace.data();
  on.workspace_size = workspace.size();
  run(op, on);
}

}  // namespace flashmla
