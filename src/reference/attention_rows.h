// Softmax attention of a few query rows over keys that come one at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "api/workspace.h"
#include "flashmla/tensor.h"
#include "host/threads.h"
#include "reference/tensor_rows.h"

namespace flashmla::reference {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

inline double dot(const double* a, const double* b, std::int64_t width) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < width; ++i) sum += a[i] * b[i];
  return sum;
}

/// `y += factor * x`.
inline void add_scaled(double factor, const double* x, std::int64_t width, double* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < width; ++i) y[i] += factor * x[i];
}

/// The larger one; NaN if one of them is NaN.
inline double max_or_nan(double a, double b) { return b > a || std::isnan(b) ? b : a; }

/// Up to kMost query rows that read the same kv head, so that a key is converted once for all of them.
///
/// Each row keeps the largest logit `max` so far, `sum = sum exp(l - max)` and `sum exp(l - max) v`.
class AttentionRows {
 public:
  static constexpr std::int64_t kMost = 16;

  /// Doubles of scratch memory.
  static std::int64_t scratch_size(std::int64_t d_qk, std::int64_t d_v) { return (kMost + 1) * (d_qk + d_v); }

  AttentionRows(double* scratch, std::int64_t d_qk, std::int64_t d_v, double softmax_scale)
      : d_qk_(d_qk),
        d_v_(d_v),
        softmax_scale_(softmax_scale),
        key_(scratch),
        value_(key_ + d_qk),
        queries_(value_ + d_v),
        sums_(queries_ + kMost * d_qk) {}

  void begin(std::int64_t row, const std::byte* q, DataType type) {
    load_row(q, type, d_qk_, queries_ + row * d_qk_);
    std::fill_n(sums_ + row * d_v_, d_v_, 0.0);
    max_[row] = -kInfinity;
    sum_[row] = 0;
  }

  /// Where the caller puts the current token.
  double* key() { return key_; }
  double* value() { return value_; }

  /// The current token becomes visible to a row. `value` is `value()`, or `key()` where they are one.
  void see(std::int64_t row, const double* value) {
    const double logit = softmax_scale_ * dot(queries_ + row * d_qk_, key_, d_qk_);
    double* sums = sums_ + row * d_v_;
    if (const double larger = max_or_nan(max_[row], logit); !(larger <= max_[row])) {
      const double rescale = std::exp(max_[row] - larger);
      for (std::int64_t i = 0; i < d_v_; ++i) sums[i] *= rescale;
      sum_[row] *= rescale;
      max_[row] = larger;
    }
    const double weight = logit == -kInfinity ? 0 : std::exp(logit - max_[row]);
    sum_[row] += weight;
    add_scaled(weight, value, d_v_, sums);
  }

  /// The largest logit; -inf if there is none.
  double max_logit(std::int64_t row) const { return max_[row]; }

  /// `log(sum exp l)`; +inf for a lonely row.
  double lse(std::int64_t row) const { return lonely(row) ? kInfinity : max_[row] + std::log(sum_[row]); }

  /// Divides by the sum and stores the row; call once. `sink`: one more logit, of a value that is 0;
  /// `value_factor`: of all values.
  void finish(std::int64_t row, double sink, DataType type, std::byte* out, double value_factor = 1) {
    if (lonely(row)) return store_zeros(type, d_v_, out);
    double* sums = sums_ + row * d_v_;
    const double share = 1 / (1 + std::exp(sink - lse(row)));
    for (std::int64_t i = 0; i < d_v_; ++i) sums[i] = value_factor * (sums[i] / sum_[row] * share);
    store_row(sums, type, d_v_, out);
  }

 private:
  /// Nothing was visible, or every logit was -inf.
  bool lonely(std::int64_t row) const { return sum_[row] == 0; }

  std::int64_t d_qk_;
  std::int64_t d_v_;
  double softmax_scale_;
  double* key_;
  double* value_;
  double* queries_;
  double* sums_;
  double max_[kMost];
  double sum_[kMost];
};

/// A number of query rows in blocks of at most AttentionRows::kMost.
struct RowBlocks {
  std::int64_t rows;

  std::int64_t count() const { return (rows + AttentionRows::kMost - 1) / AttentionRows::kMost; }
  std::int64_t begin(std::int64_t block) const { return block * AttentionRows::kMost; }
  std::int64_t size(std::int64_t block) const { return std::min(AttentionRows::kMost, rows - begin(block)); }
};

/// One AttentionRows scratch for each thread.
class AttentionScratch {
 public:
  AttentionScratch(Workspace workspace, const Execution& on, std::int64_t d_qk, std::int64_t d_v)
      : size_(AttentionRows::scratch_size(d_qk, d_v)),
        data_(workspace.take<double>(static_cast<std::size_t>(size_ * threads_of(on)))),
        bytes_(workspace.bytes()) {}

  double* of(int thread) const { return data_ + size_ * thread; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::int64_t size_;
  double* data_;
  std::size_t bytes_;
};

}  // namespace flashmla::reference
