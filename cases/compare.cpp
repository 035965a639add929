// The promised tolerances, and the comparison by them.
#include "cases/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "flashmla/error.h"

namespace flashmla::cases {
namespace {

struct Row {
  std::string_view operation;
  std::string_view output;
  Tolerance tolerance;
  std::optional<DataType> type = {};  ///< any, if not given
};

constexpr Tolerance kExact{.exact = true};
constexpr Tolerance kDecodeLse{.abs = 1e-6, .rel = 8.01 / 65536};
constexpr Tolerance kLse{.abs = 1e-6, .rel = 2.01 / 65536};
constexpr Tolerance kMha{.abs = 1e-3, .rel = 8.01 / 128, .cos = 7e-6};

constexpr Row kTolerances[] = {
    {"dense_decode", "out", {.abs = 8e-4, .rel = 2.01 / 128, .cos = 5e-6}},
    {"dense_decode", "lse", kDecodeLse},
    {"sparse_decode", "out", {.abs = 1e-3, .rel = 2.01 / 128, .cos = 5e-6}},
    {"sparse_decode", "lse", kDecodeLse},
    {"sparse_prefill", "out", {.abs = 8e-4, .rel = 3.01 / 128, .cos = 7e-6}},
    {"sparse_prefill", "lse", kLse},
    {"sparse_prefill", "max_logits", kLse},
    {"mha_forward", "out", kMha},
    {"mha_forward", "lse", kLse},
    {"mha_backward", "d_q", kMha},
    {"mha_backward", "d_k", kMha},
    {"mha_backward", "d_v", kMha},
    // A few operations in f32, then one rounding: neighbours in the output's type are right.
    {"merge_states", "out", {.abs = 1e-6, .rel = 2.01 / 256}, DataType::kBf16},
    {"merge_states", "out", {.abs = 1e-6, .rel = 2.01 / 2048}, DataType::kF16},
    {"merge_states", "out", {.abs = 1e-6, .rel = 1e-5}, DataType::kF32},
    {"merge_states", "lse", kDecodeLse},
    // What is stored, rounded once by a rule, or counted has one right answer.
    {"quantize_kv", "kv_cache", kExact},
    {"dequantize_kv", "kv", kExact},
    {"append_kv", "kv_cache", kExact},
    {"make_schedule", "schedule", kExact},
    {"make_schedule", "num_splits", kExact},
};

bool is_float(DataType type) {
  return type == DataType::kBf16 || type == DataType::kF16 || type == DataType::kF32;
}

/// The float type with fewer bits of precision; the first type where they are none.
DataType coarser(DataType a, DataType b) {
  for (const DataType type : {DataType::kBf16, DataType::kF16, DataType::kF32}) {
    if (a == type || b == type) return type;
  }
  return a;
}

bool same_bits(const TensorView& a, const TensorView& b, std::span<const std::int64_t> index) {
  const std::size_t size = size_of(a.type);
  const auto at = [&](const TensorView& view) {
    return view.as<const std::byte>() + offset_of(view, index) * static_cast<std::int64_t>(size);
  };
  return std::memcmp(at(a), at(b), size) == 0;
}

/// Whether this byte of a cache in format fp8_model1 is the unused one behind a token's 7 scales. Nobody
/// has to write it: in measured cases it holds what was in the memory before.
bool is_unused_byte(const TensorView& cache, std::span<const std::int64_t> index) {
  constexpr std::int64_t kScaleBytes = 8;
  const std::int64_t row = cache.shape[3];
  const std::int64_t first_scale = cache.shape[1] * (row - kScaleBytes);
  const std::int64_t byte = index[1] * row + index[3];  // of the block
  return byte >= first_scale && byte % kScaleBytes == kScaleBytes - 1;
}

std::string describe_type(const TensorView& view) {
  return fmt::format("{} {}", name_of(view.type),
                     to_string({view.shape.data(), static_cast<std::size_t>(view.ndim)}));
}

/// Walks over two tensors of the same shape and keeps what is worst.
class Comparer {
 public:
  Comparer(const TensorView& actual, const TensorView& expected, const Tolerance& tolerance)
      : actual_(actual), expected_(expected), tolerance_(tolerance) {}

  Comparison compare() {
    const bool has_unused_bytes = actual_.ndim == 4 && kv_format_of(actual_) == KvFormat::kFp8Model1;
    for_each_index(actual_, [&](std::span<const std::int64_t> index) {
      if (!has_unused_bytes || !is_unused_byte(actual_, index)) visit(index);
    });
    const double norms = actual_norm_ + expected_norm_;
    if (norms > 0) result_.cosine_difference = 1 - 2 * product_ / norms;
    const bool cosine_fails = tolerance_.cos >= 0 && !(result_.cosine_difference <= tolerance_.cos);
    result_.passed = result_.failed_elements == 0 && (tolerance_.exact || !cosine_fails);
    return result_;
  }

 private:
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  void visit(std::span<const std::int64_t> index) {
    const double a = element(actual_, index);
    const double r = element(expected_, index);
    const bool finite = std::isfinite(a) && std::isfinite(r);
    const bool equal = (std::isnan(a) && std::isnan(r)) ||
                       (tolerance_.exact ? same_bits(actual_, expected_, index) : !finite && a == r);
    double error = 0;
    double ratio = 0;
    if (finite) {
      error = std::abs(a - r);
      product_ += a * r;
      actual_norm_ += a * a;
      expected_norm_ += r * r;
      if (error > result_.max_error || result_.max_error_position.empty()) {
        result_.max_error = error;
        result_.max_error_position.assign(index.begin(), index.end());
      }
      if (tolerance_.exact) {
        ratio = equal ? 0 : kInfinity;
      } else if (error > 0) {
        ratio = error / std::max(tolerance_.abs, tolerance_.rel * std::abs(r));
      }
    } else if (!equal) {
      ++result_.non_finite_mismatches;
      ratio = kInfinity;
    }
    // The comparison itself, not the ratio: a division may round across 1.
    const bool passed = finite && !tolerance_.exact
                            ? error <= tolerance_.abs || error <= tolerance_.rel * std::abs(r)
                            : equal;
    result_.failed_elements += passed ? 0 : 1;
    keep_worst(index, a, r, ratio, error, finite);
  }

  void keep_worst(std::span<const std::int64_t> index, double a, double r, double ratio, double error,
                  bool finite) {
    // A non-finite mismatch before all else, then the ratio, then the plain error.
    const double rank = !finite && ratio > 0 ? 2 : ratio == kInfinity ? 1 : 0;
    const std::array<double, 3> badness{rank, rank == 0 ? ratio : 0, finite ? error : 0};
    if (!result_.position.empty() && !(badness > worst_)) return;
    worst_ = badness;
    result_.max_ratio = std::max(result_.max_ratio, ratio);
    result_.position.assign(index.begin(), index.end());
    result_.got = a;
    result_.expected = r;
  }

  const TensorView& actual_;
  const TensorView& expected_;
  const Tolerance& tolerance_;
  Comparison result_;
  std::array<double, 3> worst_{};
  double product_ = 0;
  double actual_norm_ = 0;
  double expected_norm_ = 0;
};

std::string describe(const Comparison& found, const Tolerance& tolerance) {
  std::string text = found.passed ? "ok" : "FAILED";
  if (found.failed_elements > 0) text += fmt::format(", {} elements out of tolerance", found.failed_elements);
  if (found.non_finite_mismatches > 0) {
    text += fmt::format(", {} of them not finite on one side or differently", found.non_finite_mismatches);
  }
  text += fmt::format(", largest error {:.3g}", found.max_error);
  if (!tolerance.exact) text += fmt::format(" ({:.3g} of what is allowed)", found.max_ratio);
  if (!found.position.empty()) {
    text += fmt::format(", worst at {}: got {:.9g}, expected {:.9g}", to_string(found.position), found.got,
                        found.expected);
  }
  if (tolerance.cos >= 0 && !tolerance.exact) {
    text +=
        fmt::format(", cosine difference {:.2g} (at most {:.2g})", found.cosine_difference, tolerance.cos);
  }
  return text;
}

}  // namespace

const Tolerance& tolerance_of(std::string_view operation, std::string_view output, DataType type) {
  for (const Row& row : kTolerances) {
    if (row.operation == operation && row.output == output && row.type.value_or(type) == type) {
      return row.tolerance;
    }
  }
  throw Error(ErrorKind::kValue, fmt::format("no operation {} has an output {}", operation, output));
}

Comparison compare(std::string_view operation, std::string_view output, const TensorView& actual,
                   const TensorView& expected) {
  return compare(operation, output, actual, expected,
                 tolerance_of(operation, output, coarser(actual.type, expected.type)));
}

Comparison compare(std::string_view operation, std::string_view output, const TensorView& actual,
                   const TensorView& expected, const Tolerance& tolerance) {
  const bool comparable =
      actual.type == expected.type || (!tolerance.exact && is_float(actual.type) && is_float(expected.type));
  Comparison result;
  if (!comparable || actual.ndim != expected.ndim || actual.shape != expected.shape) {
    result.passed = false;
    result.description = fmt::format("{} {}: FAILED, got {}, expected {}", operation, output,
                                     describe_type(actual), describe_type(expected));
    return result;
  }
  result = Comparer(actual, expected, tolerance).compare();
  result.description = fmt::format("{} {}: {}", operation, output, describe(result, tolerance));
  return result;
}

}  // namespace flashmla::cases
