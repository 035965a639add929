// MakeSchedule: fields, rules, index checks, and the schedule of a decode operation.
#include "flashmla/schedule.h"

#include <algorithm>

#include "api/index_checks.h"
#include "api/run.h"
#include "api/shapes.h"
#include "api/shared_rules.h"
#include "cuda/portable/portable.h"
#include "schedule/request.h"

namespace flashmla {

const Fields<MakeSchedule>& MakeSchedule::fields() {
  using Op = MakeSchedule;
  static constexpr TensorField<Op> kTensors[] = {
      {"cache_seqlens", Role::kOptional, "i32", "[batch]", &Op::cache_seqlens,
       "tokens of each sequence (dense)"},
      {"topk_length", Role::kOptional, "i32", "[batch]", &Op::topk_length,
       "indices of each sequence that count"},
      {"extra_topk_length", Role::kOptional, "i32", "[batch]", &Op::extra_topk_length,
       "as topk_length, second cache"},
      {"schedule", Role::kOutput, "i32", "[parts 8]", &Op::schedule, "what each part does"},
      {"num_splits", Role::kOutput, "i32", "[batch+1]", &Op::num_splits,
       "splits of all sequences before this one"},
  };
  static constexpr ScalarField<Op> kScalars[] = {
      {"max_seqlen", &Op::max_seqlen, "upper bound of cache_seqlens: max_blocks * page"},
      {"topk", &Op::topk, "indices of each sequence (sparse)"},
      {"extra_topk", &Op::extra_topk, "indices of each sequence into the second cache"},
      {"split_size", &Op::split_size, "keys after which a sequence is split; 0 balances over the machine"},
  };
  static constexpr Fields<Op> kFields{"make_schedule", "how the work of a decode step is split", kTensors,
                                      kScalars};
  return kFields;
}

void check_rules(const MakeSchedule& op) {
  constexpr std::string_view kName = "make_schedule";
  require_positive(kName, {{"schedule rows", op.schedule.shape[0]}});
  require_not_negative(kName, {"topk", op.topk});
  require_not_negative(kName, {"extra_topk", op.extra_topk});
  if (op.cache_seqlens.given() != (op.max_seqlen >= 0)) {
    fail(ErrorKind::kValue, kName, "cache_seqlens and max_seqlen (0 or more) must be given together, got ",
         op.cache_seqlens.given() ? "a" : "no", " tensor and ", op.max_seqlen);
  }
  const std::int64_t batch = op.num_splits.shape[0] - 1;
  require_schedule_range(kName, batch, {"max_seqlen", std::min(op.max_seqlen, kLargestLength)},
                         op.split_size);
  require_schedule_range(kName, batch, {"topk", op.topk}, op.split_size);
  require_schedule_range(kName, batch, {"extra_topk", op.extra_topk}, op.split_size);
  require_schedule_range(kName, batch, {"topk + extra_topk", op.topk + op.extra_topk}, op.split_size);
  const bool sparse =
      op.topk != 0 || op.extra_topk != 0 || op.topk_length.given() || op.extra_topk_length.given();
  if (op.cache_seqlens.given() && sparse) {
    fail(ErrorKind::kValue, kName,
         "cache_seqlens (dense) and topk or topk_length (sparse) must not be given together");
  }
}

void check_indices(const MakeSchedule& op) {
  require_lengths("make_schedule", "cache_seqlens", op.cache_seqlens, op.max_seqlen);
  require_lengths("make_schedule", "topk_length", op.topk_length, op.topk);
  require_lengths("make_schedule", "extra_topk_length", op.extra_topk_length, op.extra_topk);
}

std::size_t workspace_bytes(const MakeSchedule& op, const Execution& on) {
  return checked_workspace_bytes(op, on);
}
void run(const MakeSchedule& op, const Execution& on) { checked_run(op, on); }

namespace {

void require_dims(std::string_view operation, std::string_view name, const TensorView& tensor, int ndim) {
  if (tensor.ndim != ndim) {
    fail(ErrorKind::kValue, operation, name, " must have ", ndim, " dimensions, got ", tensor.ndim);
  }
}

MakeSchedule schedule_request(const DenseDecode& op) {
  require_dims("make_schedule", "kv_cache", op.kv_cache, 4);
  require_dims("make_schedule", "block_table", op.block_table, 2);
  require_dims("make_schedule", "cache_seqlens", op.cache_seqlens, 1);
  return {.cache_seqlens = op.cache_seqlens,
          .max_seqlen = longest_sequence(op),
          .split_size = op.split_size,
          .schedule = op.schedule,
          .num_splits = op.num_splits};
}

MakeSchedule schedule_request(const SparseDecode& op) {
  require_dims("make_schedule", "indices", op.indices, 3);
  if (op.extra_indices.given()) require_dims("make_schedule", "extra_indices", op.extra_indices, 3);
  return {.topk_length = op.topk_length,
          .extra_topk_length = op.extra_topk_length,
          .topk = op.indices.shape[2],
          .extra_topk = op.extra_indices.given() ? op.extra_indices.shape[2] : 0,
          .split_size = op.split_size,
          .schedule = op.schedule,
          .num_splits = op.num_splits};
}

}  // namespace

std::int64_t schedule_parts(const DenseDecode& op, const Execution& on) {
  return portable::available(on.device).yes ? portable::schedule_parts(op, on) : kCpuScheduleParts;
}
std::int64_t schedule_parts(const SparseDecode&, const Execution&) { return kCpuScheduleParts; }
std::size_t make_schedule_workspace_bytes(const DenseDecode& op, const Execution& on) {
  return workspace_bytes(schedule_request(op), on);
}
std::size_t make_schedule_workspace_bytes(const SparseDecode& op, const Execution& on) {
  return workspace_bytes(schedule_request(op), on);
}
void make_schedule(const DenseDecode& op, const Execution& on) { run(schedule_request(op), on); }
void make_schedule(const SparseDecode& op, const Execution& on) { run(schedule_request(op), on); }

}  // namespace flashmla
