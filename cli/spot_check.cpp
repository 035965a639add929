// Compares outputs that were just computed with the reference, on as much of a case as the reference can
// compute in short time.
//
// A part of a case is the same operation on views of the same tensors: every n-th sequence, head or row.
// Where a part has no simple form, as the keys of a causal mask, windows are cut so that the mask stays
// the same.
#include "cli/spot_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "cases/compare.h"
#include "cases/tensor.h"
#include "cli/backends.h"
#include "cli/work.h"
#include "flashmla/error.h"

namespace flashmla::cli {
namespace {

/// `count` entries of a dimension from `start`, `step` apart. A tensor that is not given stays so.
TensorView slice(TensorView view, int dim, std::int64_t start, std::int64_t count, std::int64_t step = 1) {
  if (!view.given()) return view;
  view.data = static_cast<char*>(view.data) +
              start * view.strides[dim] * static_cast<std::int64_t>(size_of(view.type));
  view.shape[dim] = count;
  view.strides[dim] *= step;
  return view;
}

/// Entries spread evenly over a dimension of `size`, the last one among them.
struct Spread {
  std::int64_t start = 0;
  std::int64_t count = 1;
  std::int64_t step = 1;

  Spread(std::int64_t size, std::int64_t most)
      : count(std::clamp<std::int64_t>(most, 1, size)), step(count == 1 ? 1 : (size - 1) / (count - 1)) {
    start = size - 1 - (count - 1) * step;
  }

  TensorView of(const TensorView& view, int dim) const { return slice(view, dim, start, count, step); }
};

/// Query heads with their kv heads: some of the one group, or one of each of some groups.
struct Heads {
  Spread q;
  Spread kv;

  static Heads of(std::int64_t h_q, std::int64_t h_kv, std::int64_t most) {
    if (h_kv == 1) return {Spread(h_q, most), Spread(1, 1)};
    const std::int64_t group = h_q / h_kv;
    Heads heads{Spread(h_kv, most), Spread(h_kv, most)};
    // Another place in each group: step is a number of whole groups and a bit.
    const std::int64_t further = heads.kv.count == 1 ? 0 : (group - 1) / (heads.kv.count - 1);
    heads.q.step = heads.kv.step * group + further;
    heads.q.start = h_q - 1 - (heads.q.count - 1) * heads.q.step;
    return heads;
  }
};

/// How many of `size` equal shares of a case of `cost` fit into `budget`, at least one.
std::int64_t affordable(double cost, double budget, std::int64_t size) {
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(budget / cost * static_cast<double>(size)));
}

/// Memory for the reference's version of an output. What is updated in place starts from the case's tensor.
cases::Tensor fresh_output(std::string_view name, const TensorView& view, const cases::Case& before) {
  const auto initial = before.tensors.find(std::string(name));
  if (initial != before.tensors.end()) return initial->second;
  const std::vector<std::int64_t> shape(view.shape.begin(), view.shape.begin() + view.ndim);
  if (view.type == DataType::kU8) return cases::fp8_cache(kv_format_of(view).value(), shape[0], shape[1]);
  return cases::Tensor(view.type, shape);
}

/// Every operation wants the last dimension without gaps, which a spread over lengths or heads has.
template <class Op>
std::vector<cases::Tensor> close_gaps(Op& op) {
  std::vector<cases::Tensor> copies;
  for (const TensorField<Op>& field : Op::fields().tensors) {
    const auto* member = std::get_if<TensorView Op::*>(&field.member);
    if (field.role == Role::kOutput || field.role == Role::kUpdate || member == nullptr) continue;
    TensorView& view = op.**member;
    if (!view.given() || view.strides[view.ndim - 1] == 1) continue;
    const std::vector<std::int64_t> shape(view.shape.begin(), view.shape.begin() + view.ndim);
    cases::Tensor& copy = copies.emplace_back(view.type, shape);
    cases::copy_elements(view, copy.view());
    view = copy.view();
  }
  return copies;
}

/// Runs `op`, whose outputs are views of what was computed, on the reference and compares.
template <class Op>
void compare(Op op, const cases::Case& before, const std::vector<std::string_view>& only = {}) {
  struct Output {
    std::string_view name;
    TensorView got;
    cases::Tensor reference;
  };
  std::vector<Output> outputs;
  for (const TensorField<Op>& field : Op::fields().tensors) {
    if (field.role != Role::kOutput && field.role != Role::kUpdate) continue;
    TensorView& member = op.*std::get<TensorView Op::*>(field.member);
    outputs.push_back({field.name, member, fresh_output(field.name, member, before)});
    member = outputs.back().reference.view();
  }
  const std::vector<cases::Tensor> copies = close_gaps(op);
  Execution on;
  on.backend = kReference;
  cases::Tensor workspace(DataType::kU8, {static_cast<std::int64_t>(workspace_bytes(op, on))});
  on.workspace = workspace.view().data;
  on.workspace_size = workspace.memory().size();
  flashmla::run(op, on);
  for (const Output& output : outputs) {
    if (!only.empty() && std::find(only.begin(), only.end(), output.name) == only.end()) continue;
    const cases::Comparison found =
        cases::compare(Op::fields().operation, output.name, output.got, output.reference.view());
    if (!found.passed) throw Mismatch(found.description);
  }
}

template <class Op>
std::string check_whole(const Op& op, const cases::Case& what) {
  compare(op, what);
  return "all";
}

template <class Op>
bool affordable_whole(const Op& op, const CheckBudget& budget) {
  const Work work = work_of(op);
  return work.flops <= budget.flops && work.bytes <= budget.bytes;
}

std::string some(std::int64_t count, std::int64_t size, std::string_view things) {
  return fmt::format("{} of {} {}", count, size, things);
}

/// The most sequences or rows that a part is spread over.
constexpr std::int64_t kPlaces = 8;

std::string check_part(const DenseDecode& op, const cases::Case& what, const CheckBudget& budget) {
  const std::int64_t batch = op.q.shape[0];
  const double cost = work_of(op).flops;
  const Spread sequences(
      batch, std::min(kPlaces, affordable(cost / static_cast<double>(op.q.shape[2]), budget.flops, batch)));
  const double share = cost * static_cast<double>(sequences.count) / static_cast<double>(batch);
  const Heads heads =
      Heads::of(op.q.shape[2], op.kv_cache.shape[2], affordable(share, budget.flops, op.q.shape[2]));
  DenseDecode part = op;
  part.q = heads.q.of(sequences.of(op.q, 0), 2);
  part.out = heads.q.of(sequences.of(op.out, 0), 2);
  part.lse = heads.q.of(sequences.of(op.lse, 0), 1);
  part.kv_cache = heads.kv.of(op.kv_cache, 2);
  part.block_table = sequences.of(op.block_table, 0);
  part.cache_seqlens = sequences.of(op.cache_seqlens, 0);
  part.descale_q = sequences.of(op.descale_q, 0);
  part.descale_k = sequences.of(op.descale_k, 0);
  part.schedule = part.num_splits = {};
  compare(part, what);
  return some(heads.q.count, op.q.shape[2], "heads of ") + some(sequences.count, batch, "sequences");
}

std::string check_part(const SparseDecode& op, const cases::Case& what, const CheckBudget& budget) {
  const std::int64_t batch = op.q.shape[0];
  const double cost = work_of(op).flops;
  const Spread sequences(
      batch, std::min(kPlaces, affordable(cost / static_cast<double>(op.q.shape[2]), budget.flops, batch)));
  const double share = cost * static_cast<double>(sequences.count) / static_cast<double>(batch);
  const Heads heads =
      Heads::of(op.q.shape[2], op.kv_cache.shape[2], affordable(share, budget.flops, op.q.shape[2]));
  SparseDecode part = op;
  part.q = heads.q.of(sequences.of(op.q, 0), 2);
  part.out = heads.q.of(sequences.of(op.out, 0), 2);
  part.lse = heads.q.of(sequences.of(op.lse, 0), 1);
  part.attn_sink = heads.q.of(op.attn_sink, 0);
  part.kv_cache = heads.kv.of(op.kv_cache, 2);
  part.extra_kv_cache = heads.kv.of(op.extra_kv_cache, 2);
  for (TensorView* per_sequence :
       {&part.indices, &part.topk_length, &part.extra_indices, &part.extra_topk_length}) {
    *per_sequence = sequences.of(*per_sequence, 0);
  }
  part.schedule = part.num_splits = {};
  compare(part, what);
  return some(heads.q.count, op.q.shape[2], "heads of ") + some(sequences.count, batch, "sequences");
}

std::string check_part(const SparsePrefill& op, const cases::Case& what, const CheckBudget& budget) {
  const std::int64_t s_q = op.q.shape[0];
  const double cost = work_of(op).flops;
  const Spread rows(
      s_q, std::min(kPlaces, affordable(cost / static_cast<double>(op.q.shape[1]), budget.flops, s_q)));
  const double share = cost * static_cast<double>(rows.count) / static_cast<double>(s_q);
  const Heads heads =
      Heads::of(op.q.shape[1], op.kv.shape[1], affordable(share, budget.flops, op.q.shape[1]));
  SparsePrefill part = op;
  for (TensorView* per_row : {&part.q, &part.out, &part.lse, &part.max_logits}) {
    *per_row = heads.q.of(rows.of(*per_row, 0), 1);
  }
  part.indices = heads.kv.of(rows.of(op.indices, 0), 1);
  part.topk_length = rows.of(op.topk_length, 0);
  part.attn_sink = heads.q.of(op.attn_sink, 0);
  part.kv = heads.kv.of(op.kv, 1);
  compare(part, what);
  return some(heads.q.count, op.q.shape[1], "heads of ") + some(rows.count, s_q, "queries");
}

/// Some query rows of one sequence with the keys that they see, in one query head.
struct Window {
  std::int64_t head = 0;
  std::int64_t q_begin = 0;
  std::int64_t q_end = 0;
  std::int64_t k_begin = 0;
  std::int64_t k_end = 0;
};

constexpr std::int64_t kWindowRows = 64;

/// Windows at the front of the first sequence, in the middle of the middle one, at the end of the last.
template <class Op>
std::vector<Window> windows(const Op& op) {
  const auto* bounds_q = op.cu_seqlens_q.template as<std::int32_t>();
  const auto* bounds_k = op.cu_seqlens_k.template as<std::int32_t>();
  const std::int64_t last = op.cu_seqlens_q.shape[0] - 2;
  std::vector<Window> all;
  for (const std::int64_t place : {0, 1, 2}) {
    const std::int64_t b = last * place / 2;
    Window window{.head = (op.q.shape[1] - 1) * place / 2, .k_begin = bounds_k[b], .k_end = bounds_k[b + 1]};
    const std::int64_t rows = std::min<std::int64_t>(kWindowRows, bounds_q[b + 1] - bounds_q[b]);
    window.q_begin = bounds_q[b] + (bounds_q[b + 1] - bounds_q[b] - rows) * place / 2;
    window.q_end = window.q_begin + rows;
    // The mask is aligned at the end of both, so as many keys go as rows behind the window.
    if (op.causal) window.k_end -= bounds_q[b + 1] - window.q_end;
    const bool is_new = all.empty() || all.back().head != window.head || all.back().q_begin != window.q_begin;
    if (rows > 0 && window.k_end > window.k_begin && is_new) all.push_back(window);
  }
  return all;
}

/// Bounds `[0, length]` of a single sequence.
cases::Tensor one_sequence(std::int64_t length) {
  cases::Tensor bounds(DataType::kI32, {2});
  bounds.set({0}, 0);
  bounds.set({1}, static_cast<double>(length));
  return bounds;
}

/// Cuts the tensors that forward and backward share; `heads` query heads from the window's.
template <class Op>
void cut(Op& op, const Window& window, std::int64_t heads) {
  const std::int64_t kv_head = window.head / (op.q.shape[1] / op.k.shape[1]);
  for (TensorView* rows : {&op.q, &op.out, &op.lse}) {
    *rows = slice(slice(*rows, 0, window.q_begin, window.q_end - window.q_begin), 1, window.head, heads);
  }
  for (TensorView* keys : {&op.k, &op.v}) {
    *keys = slice(slice(*keys, 0, window.k_begin, window.k_end - window.k_begin), 1, kv_head, 1);
  }
}

std::string check_part(const MhaForward& op, const cases::Case& what, const CheckBudget&) {
  const std::vector<Window> places = windows(op);
  std::int64_t rows = 0;
  for (const Window& window : places) {
    const cases::Tensor bounds_q = one_sequence(window.q_end - window.q_begin);
    const cases::Tensor bounds_k = one_sequence(window.k_end - window.k_begin);
    MhaForward part = op;
    part.cu_seqlens_q = bounds_q.view();
    part.cu_seqlens_k = bounds_k.view();
    cut(part, window, 1);
    compare(part, what);
    rows += window.q_end - window.q_begin;
  }
  return fmt::format("{} rows in {} place{}", rows, places.size(), places.size() == 1 ? "" : "s");
}

MhaBackward cut_backward(const MhaBackward& op, const Window& window, std::int64_t heads) {
  MhaBackward part = op;
  cut(part, window, heads);
  const std::int64_t rows = window.q_end - window.q_begin;
  const std::int64_t keys = window.k_end - window.k_begin;
  const std::int64_t kv_head = window.head / (op.q.shape[1] / op.k.shape[1]);
  part.d_out = slice(slice(op.d_out, 0, window.q_begin, rows), 1, window.head, heads);
  part.d_q = slice(slice(op.d_q, 0, window.q_begin, rows), 1, window.head, heads);
  part.d_k = slice(slice(op.d_k, 0, window.k_begin, keys), 1, kv_head, 1);
  part.d_v = slice(slice(op.d_v, 0, window.k_begin, keys), 1, kv_head, 1);
  return part;
}

void compare_backward(MhaBackward part, const cases::Case& what, const std::vector<std::string_view>& only) {
  const cases::Tensor bounds_q = one_sequence(part.q.shape[0]);
  const cases::Tensor bounds_k = one_sequence(part.k.shape[0]);
  part.cu_seqlens_q = bounds_q.view();
  part.cu_seqlens_k = bounds_k.view();
  compare(part, what, only);
}

/// d_k and d_v of single keys: the last key that the window sees, with every query that sees it.
void compare_key_gradients(const MhaBackward& op, Window window, const cases::Case& what) {
  const auto* bounds_q = op.cu_seqlens_q.as<std::int32_t>();
  const std::int64_t sequences = op.cu_seqlens_q.shape[0] - 1;
  const std::int64_t group = op.q.shape[1] / op.k.shape[1];
  const auto* end =
      std::upper_bound(bounds_q, bounds_q + sequences + 1, static_cast<std::int32_t>(window.q_begin));
  const bool sees_all = !op.causal;
  window.head -= window.head % group;
  window.q_begin = sees_all ? *(end - 1) : window.q_end - 1;
  window.q_end = *end;
  window.k_begin = window.k_end - 1;
  MhaBackward part = cut_backward(op, window, group);
  part.causal = false;
  compare_backward(part, what, {"d_k", "d_v"});
}

std::string check_part(const MhaBackward& op, const cases::Case& what, const CheckBudget&) {
  const std::vector<Window> places = windows(op);
  std::int64_t rows = 0;
  for (const Window& window : places) {
    compare_backward(cut_backward(op, window, 1), what, {"d_q"});
    compare_key_gradients(op, window, what);
    rows += window.q_end - window.q_begin;
  }
  return fmt::format("d_q of {} rows, d_k and d_v of {} key{}", rows, places.size(),
                     places.size() == 1 ? "" : "s");
}

template <class Op>
std::string check_blocks(const Op& op, const cases::Case& what, const CheckBudget& budget) {
  const std::int64_t size = op.kv.shape[0];
  const Spread blocks(size, affordable(work_of(op).bytes, budget.bytes, size));
  Op part = op;
  part.kv = blocks.of(op.kv, 0);
  part.kv_cache = blocks.of(op.kv_cache, 0);
  compare(part, what);
  return some(blocks.count, size, "blocks");
}

std::string check_part(const QuantizeKv& op, const cases::Case& what, const CheckBudget& budget) {
  return check_blocks(op, what, budget);
}

std::string check_part(const DequantizeKv& op, const cases::Case& what, const CheckBudget& budget) {
  return check_blocks(op, what, budget);
}

std::string check_part(const MergeStates& op, const cases::Case& what, const CheckBudget& budget) {
  const std::int64_t batch = op.out.shape[0];
  const Spread sequences(batch, affordable(work_of(op).bytes, budget.bytes, batch));
  std::vector<TensorView> outs;
  std::vector<TensorView> lses;
  for (const TensorView& out : op.outs) outs.push_back(sequences.of(out, 0));
  for (const TensorView& lse : op.lses) lses.push_back(sequences.of(lse, 0));
  const MergeStates part{
      .outs = outs, .lses = lses, .out = sequences.of(op.out, 0), .lse = sequences.of(op.lse, 0)};
  compare(part, what);
  return some(sequences.count, batch, "sequences");
}

// Slots may repeat and the last token stays, and a schedule is one sum over the batch: no part of these
// means anything, and both are cheap.
std::string check_part(const AppendKv& op, const cases::Case& what, const CheckBudget&) {
  return check_whole(op, what);
}

std::string check_part(const MakeSchedule& op, const cases::Case& what, const CheckBudget&) {
  return check_whole(op, what);
}

}  // namespace

std::string check_against_reference(const cases::Case& what, const cases::Step& step,
                                    const CheckBudget& budget) {
  return std::visit(
      [&](const auto& op) {
        return affordable_whole(op, budget) ? check_whole(op, what) : check_part(op, what, budget);
      },
      step.operation);
}

}  // namespace flashmla::cli
