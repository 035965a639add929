// Weighted sums of 16-bit rows.
#include "cpu/value_sum.h"

#include <algorithm>

namespace flashmla::cpu {

std::size_t panel_size(const Engine& engine, int width, int rows) {
  return static_cast<std::size_t>(panel_steps(width, engine.pack)) * static_cast<std::size_t>(rows);
}

std::size_t score_block_size(const Engine& engine, int rows) {
  return static_cast<std::size_t>(engine.block_tokens) * static_cast<std::size_t>(rows);
}

void* take_factors(Workspace& workspace, const Engine& engine, int rows, float* scores) {
  if (engine.factor_bytes == 0) return scores;
  const std::size_t bytes = static_cast<std::size_t>(engine.factor_bytes) * score_block_size(engine, rows);
  return workspace.take<std::byte>(bytes);
}

ValueSum::ValueSum(Workspace& workspace, const Engine& engine, DataType type, int width)
    : engine_(&engine),
      type_(type),
      panel_(workspace.take<float>(engine.value_panel_size(columns_of(width)))) {}

bool ValueSum::all_finite(const void* const* values, int count, int width) const {
  return std::all_of(values, values + count,
                     [&](const void* row) { return engine_->all_finite(row, type_, width); });
}

void ValueSum::load(const void* const* values, int count, int width) const {
  engine_->value_panel(values, type_, count, width, columns_of(width), panel_);
}

void ValueSum::add_units(const void* factors, const float* values, std::int64_t value_stride, int count,
                         int width, const Target& to) const {
  engine_->accumulate({.factors = factors,
                       .first_row = to.first_row,
                       .last_row = to.last_row,
                       .tokens = count,
                       .limits = to.limits,
                       .values = values,
                       .value_stride = value_stride,
                       .columns = columns_of(width),
                       .correction = to.correction,
                       .sums = to.sums,
                       .stride = stride_of(width)});
}

}  // namespace flashmla::cpu
