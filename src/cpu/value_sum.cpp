// Weighted sums of 16-bit rows.
#include "cpu/value_sum.h"

#include <algorithm>

namespace flashmla::cpu {

Factors take_factors(Workspace& workspace, const Engine& engine) {
  const std::size_t units = std::size_t{kBlockTokens} * kMaxRows / static_cast<std::size_t>(engine.pack);
  const std::size_t groups = std::size_t{kMaxRows} / static_cast<std::size_t>(engine.lanes);
  return {.units = workspace.take<Unit>(units),
          .residuals = workspace.take<Unit>(engine.pack > 1 ? units : 0),
          .residual_steps = workspace.take<std::uint8_t>(groups * kBlockTokens),
          .residual_counts = workspace.take<std::int32_t>(groups)};
}

ValueSum::ValueSum(Workspace& workspace, const Engine& engine, DataType type, int width)
    : engine_(&engine),
      type_(type),
      panel_(workspace.take<Unit>(static_cast<std::size_t>(kBlockTokens / engine.pack * columns_of(width)))),
      ones_(workspace.take<float>(kMaxRows)) {}

bool ValueSum::all_finite(const void* const* values, int count, int width) const {
  return std::all_of(values, values + count,
                     [&](const void* row) { return engine_->all_finite(row, type_, width); });
}

bool ValueSum::has_residuals(const Factors& factors, std::int64_t rows) const {
  return std::any_of(factors.residual_counts, factors.residual_counts + rows / engine_->lanes,
                     [](std::int32_t count) { return count > 0; });
}

void ValueSum::add(const Factors& factors, const void* const* values, int count, int width,
                   const Target& to) const {
  const std::int64_t columns = columns_of(width);
  Accumulation work{.factors = factors,
                    .terms = Terms::kAll,
                    .rows = to.rows,
                    .first_row = to.first_row,
                    .last_row = to.last_row,
                    .steps = (count + engine_->pack - 1) / engine_->pack,
                    .values = panel_,
                    .stride = columns,
                    .correction = to.correction,
                    .sums = to.sums,
                    .columns = columns};
  engine_->value_panel(values, type_, count, width, columns, panel_);
  if (!has_residuals(factors, to.rows) || all_finite(values, count, width)) {
    engine_->accumulate(work);
    return;
  }
  // An infinity times a factor is right, but times a residual of zero it would be NaN.
  work.terms = Terms::kUnits;
  engine_->accumulate(work);
  std::fill_n(ones_, to.rows, 1.0f);
  work.terms = Terms::kResiduals;
  work.correction = ones_;
  engine_->finite_value_panel(values, type_, count, width, columns, panel_);
  engine_->accumulate(work);
}

}  // namespace flashmla::cpu
