// Attention of a block of rows over a stream of keys: scores, online softmax, values.
#include "cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>

namespace flashmla::cpu {
namespace {

/// f32, with the same bits for every NaN.
float one_nan(double value) {
  return std::isnan(value) ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(value);
}

}  // namespace

PartialState PartialState::take(Workspace& workspace, std::int64_t rows, std::int64_t d_v) {
  PartialState state;
  state.stride = ValueSum::stride_of(d_v);
  const auto count = static_cast<std::size_t>(rows);
  state.sums = workspace.take<float>(count * static_cast<std::size_t>(state.stride));
  state.max = workspace.take<float>(count);
  state.sum = workspace.take<float>(count);
  return state;
}

void copy_state(const PartialState& from, const PartialState& into, std::int64_t rows) {
  std::copy_n(from.sums, rows * from.stride, into.sums);
  std::copy_n(from.max, rows, into.max);
  std::copy_n(from.sum, rows, into.sum);
}

void merge_state(const Engine& engine, const PartialState& from, const PartialState& into,
                 std::int64_t rows) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const bool from_is_max = from.max[row] >= into.max[row] || std::isnan(from.max[row]);
    const float max = from_is_max ? from.max[row] : into.max[row];
    if (max == -kInfinity) continue;  // neither has seen anything
    const float from_factor = std::exp2(from.max[row] - max);
    const float into_factor = std::exp2(into.max[row] - max);
    engine.blend(into.sums + row * into.stride, into_factor, from.sums + row * from.stride, from_factor,
                 static_cast<int>(into.stride));
    into.sum[row] = into.sum[row] * into_factor + from.sum[row] * from_factor;
    into.max[row] = max;
  }
}

void finish_row(const Engine& engine, const PartialState& state, std::int64_t row, std::int64_t d_v,
                const RowOutput& to) {
  const float sum = state.sum[row];
  if (sum == 0) {  // a lonely query
    std::memset(to.out, 0, size_of(to.type) * static_cast<std::size_t>(d_v));
    *to.lse = kInfinity;
    if (to.max_logit != nullptr) *to.max_logit = -kInfinity;
    return;
  }
  const double max_logit = state.max[row] * std::numbers::ln2;
  const double lse = max_logit + std::log(static_cast<double>(sum));
  const double share = to.sink != nullptr ? 1 / (1 + std::exp(*to.sink - lse)) : 1;
  engine.narrow(state.sums + row * state.stride, static_cast<float>(to.value_factor * share / sum),
                static_cast<int>(d_v), to.type, to.out);
  *to.lse = one_nan(lse);
  if (to.max_logit != nullptr) *to.max_logit = one_nan(max_logit);
}

Attention::Attention(Workspace& workspace, int max_rows, DataType query_type, DataType key_type,
                     std::int64_t d_qk, std::int64_t d_v, bool latent)
    : engine_(&engine_for(query_type, key_type)),
      query_type_(query_type),
      key_type_(key_type),
      d_qk_(static_cast<int>(d_qk)),
      d_v_(static_cast<int>(d_v)),
      values_are_keys_(latent && engine_->pack == 1),
      value_sum_(workspace, *engine_, key_type, static_cast<int>(d_v)) {
  block_.capacity = engine_->block_tokens;
  queries_ = workspace.take<Unit>(panel_size(*engine_, d_qk_, max_rows));
  key_scratch_ = workspace.take<float>(engine_->token_scratch(d_qk_));
  scores_ = workspace.take<float>(score_block_size(*engine_, max_rows));
  weights_ = take_factors(workspace, *engine_, max_rows, scores_);
  correction_ = workspace.take<float>(static_cast<std::size_t>(max_rows));
  limits_ = workspace.take<std::int32_t>(static_cast<std::size_t>(max_rows));
  state_ = PartialState::take(workspace, max_rows, d_v);
}

void Attention::begin(const void* const* queries, int count, double softmax_scale) {
  scale_log2_ = static_cast<float>(softmax_scale * std::numbers::log2e);
  // The splits of a sequence follow each other, with the same rows.
  const bool packed = count == count_ && std::equal(queries, queries + count, packed_queries_);
  count_ = count;
  rows_ = round_up(count, engine_->lanes);
  few_rows_ = count % engine_->lanes <= engine_->most_few_rows ? count % engine_->lanes : 0;
  started_ = false;
  if (!packed) {
    std::copy_n(queries, count, packed_queries_);
    engine_->pack_rows(queries, query_type_, count, d_qk_, rows_, few_rows_, queries_);
  }
  std::fill_n(state_.max, rows_, -kInfinity);
  std::fill_n(state_.sum, rows_, 0.0f);
}

void Attention::clear_sums() { std::fill_n(state_.sums, count_ * state_.stride, 0.0f); }

/// Tokens of the block that each row sees; false if every row sees all.
bool Attention::set_limits(const std::int64_t* bounds) {
  const std::int64_t* positions = block_.positions;
  const std::int64_t* end = positions + block_.count;
  if (bounds == nullptr || bounds[0] > end[-1]) return false;
  for (int row = 0; row < count_; ++row) {
    limits_[row] = static_cast<std::int32_t>(std::lower_bound(positions, end, bounds[row]) - positions);
  }
  std::fill(limits_ + count_, limits_ + rows_, limits_[count_ - 1]);
  return true;
}

/// Adds the first `tokens` values, weighted, to rows `[first, last)`.
void Attention::accumulate_rows(int first, int last, int tokens, const float* correction) {
  const ValueSum::Target to = {first, last, limited_ ? limits_ : nullptr, correction, state_.sums};
  if (values_are_keys_) {
    value_sum_.add_units(weights_, key_scratch_, d_qk_, tokens, d_v_, to);
  } else {
    value_sum_.add(weights_, tokens, d_v_, to);
  }
}

void Attention::attend_block(const std::int64_t* bounds) {
  limited_ = set_limits(bounds);
  const std::int32_t* limits = limited_ ? limits_ : nullptr;
  // Values first: rows are best fetched from memory one after the other.
  if (!values_are_keys_) value_sum_.load(block_.values, block_.count, d_v_);
  engine_->token_units(block_.keys, key_type_, block_.count, d_qk_, key_scratch_, key_units_);
  engine_->scores({.panel = queries_,
                   .rows = rows_,
                   .few_rows = few_rows_,
                   .tokens = key_units_,
                   .count = block_.count,
                   .width = d_qk_,
                   .limits = limits,
                   .scratch = key_scratch_,
                   .scores = scores_});
  engine_->softmax({.tokens = block_.count,
                    .rows = rows_,
                    .scale_log2 = scale_log2_,
                    .limits = limits,
                    .scores = scores_,
                    .factors = weights_,
                    .max = state_.max,
                    .sum = state_.sum,
                    .correction = correction_});
  const float* correction = started_ ? correction_ : nullptr;
  started_ = true;
  // What no row sees is not in the block; what some row must not see is multiplied with a zero weight there,
  // unless that would not be zero.
  const int seen_by_all = limited_ ? limits_[0] : block_.count;
  if (value_sum_.all_finite(block_.values + seen_by_all, block_.count - seen_by_all, d_v_)) {
    accumulate_rows(0, count_, block_.count, correction);
    return;
  }
  for (int first = 0, last = 0; first < count_; first = last) {
    while (last < count_ && limits_[last] == limits_[first]) ++last;
    // The panel has no more tokens than are seen: what pads it must not be multiplied either.
    if (!values_are_keys_) value_sum_.load(block_.values, limits_[first], d_v_);
    accumulate_rows(first, last, limits_[first], correction);
  }
}

}  // namespace flashmla::cpu
