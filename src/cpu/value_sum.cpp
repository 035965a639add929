// Weighted sums of 16-bit rows.
#include "cpu/value_sum.h"

#include <algorithm>

namespace flashmla::cpu {

ValueSum::ValueSum(Workspace& workspace, const Engine& engine, DataType type, int width)
    : engine_(&engine),
      type_(type),
      panel_(workspace.take<float>(static_cast<std::size_t>(kBlockTokens * columns_of(width)))) {}

bool ValueSum::all_finite(const void* const* values, int count, int width) const {
  return std::all_of(values, values + count,
                     [&](const void* row) { return engine_->all_finite(row, type_, width); });
}

void ValueSum::add(const float* factors, const void* const* values, int count, int width,
                   const Target& to) const {
  const std::int64_t columns = columns_of(width);
  engine_->value_panel(values, type_, count, width, columns, panel_);
  engine_->accumulate({.factors = factors,
                       .rows = to.rows,
                       .first_row = to.first_row,
                       .last_row = to.last_row,
                       .tokens = count,
                       .values = panel_,
                       .stride = columns,
                       .correction = to.correction,
                       .sums = to.sums,
                       .columns = columns});
}

}  // namespace flashmla::cpu
