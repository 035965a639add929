// Attention of one query in double precision, straight from the definition: what tests expect.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <vector>

#include "cases/tensor.h"

namespace flashmla {

using Row = std::vector<double>;
using Positions = std::vector<std::int64_t>;

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// 0, 1, ... count - 1.
inline Positions first(std::int64_t count) {
  Positions result(static_cast<std::size_t>(std::max<std::int64_t>(count, 0)));
  std::iota(result.begin(), result.end(), std::int64_t{0});
  return result;
}

/// The last dimension of a tensor at the given position of the others.
inline Row row_at(const TensorView& view, std::initializer_list<std::int64_t> position) {
  cases::Index index(position);
  index.push_back(0);
  Row row;
  for (; index.back() < view.shape[view.ndim - 1]; ++index.back()) row.push_back(cases::element(view, index));
  return row;
}

inline void set_row(const TensorView& view, std::initializer_list<std::int64_t> position, const Row& row) {
  cases::Index index(position);
  index.push_back(0);
  for (; index.back() < view.shape[view.ndim - 1]; ++index.back()) {
    cases::set_element(view, index, row[static_cast<std::size_t>(index.back())]);
  }
}

inline double dot(const Row& a, const Row& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

struct Attended {
  Row out;
  double lse = kInfinity;
  double max_logit = -kInfinity;
};

/// `out = sum exp(l_t - lse) v_t` over the keys given; the first `d_v` columns of the values count.
inline Attended attend(const Row& q, const std::vector<Row>& keys, const std::vector<Row>& values,
                       std::int64_t d_v, double scale, double sink = -kInfinity) {
  Attended result;
  result.out.assign(static_cast<std::size_t>(d_v), 0.0);
  if (keys.empty()) return result;
  Row logits;
  for (const Row& key : keys) logits.push_back(scale * dot(q, key));
  result.max_logit = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const double logit : logits) sum += std::exp(logit - result.max_logit);
  result.lse = result.max_logit + std::log(sum);
  const double kept = 1 / (1 + std::exp(sink - result.lse));
  for (std::size_t t = 0; t < keys.size(); ++t) {
    const double weight = kept * std::exp(logits[t] - result.lse);
    for (std::size_t c = 0; c < result.out.size(); ++c) result.out[c] += weight * values[t][c];
  }
  return result;
}

/// An i32 vector.
inline cases::Tensor int_vector(const std::vector<std::int64_t>& values) {
  cases::Tensor result(DataType::kI32, {static_cast<std::int64_t>(values.size())});
  for (std::size_t i = 0; i < values.size(); ++i) {
    result.set({static_cast<std::int64_t>(i)}, static_cast<double>(values[i]));
  }
  return result;
}

/// An f32 vector.
inline cases::Tensor float_vector(const Row& values) {
  cases::Tensor result(DataType::kF32, {static_cast<std::int64_t>(values.size())});
  set_row(result.view(), {}, values);
  return result;
}

inline constexpr std::int64_t kIntMin = std::numeric_limits<std::int32_t>::min();
inline constexpr std::int64_t kIntMax = std::numeric_limits<std::int32_t>::max();

}  // namespace flashmla
