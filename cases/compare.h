// Compares an output with what is expected, by the tolerances that the library promises.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "cases/tensor.h"

namespace flashmla::cases {

/// An element passes if `|a - r| <= abs` or `|a - r| <= rel * |r|`; a tensor passes if all elements do
/// and `1 - 2<a,r> / (<a,a> + <r,r>) <= cos`.
struct Tolerance {
  /// Elements must be equal bit by bit, and the rest is not used. Any NaN equals any NaN in float types;
  /// the unused byte of each token in format fp8_model1 is not compared.
  bool exact = false;
  double abs = 0;
  double rel = 0;
  /// Not checked if negative.
  double cos = -1;
};

/// The promised tolerance of one output: (`dense_decode`, `out`). Throws Error (kValue) for an output
/// that no operation has. `type` is that of the output: merge_states has a tolerance for each.
const Tolerance& tolerance_of(std::string_view operation, std::string_view output,
                              DataType type = DataType::kBf16);

/// What compare found. Without elements everything passes.
struct Comparison {
  bool passed = true;
  /// Largest |actual - expected| among elements where both are finite, and where it is; no position if there
  /// are no such elements.
  double max_error = 0;
  Index max_error_position;
  /// Largest error in units of what is allowed there: at most 1 if all finite elements pass. For exact
  /// outputs 0, or infinity if something differs.
  double max_ratio = 0;
  /// Where the worst element is (largest ratio; a non-finite mismatch before all else), and its values.
  Index position;
  double got = 0;
  double expected = 0;
  /// `1 - 2<a,r> / (<a,a> + <r,r>)` over the elements where both are finite.
  double cosine_difference = 0;
  /// Elements that are non-finite on one side only, or differently.
  std::int64_t non_finite_mismatches = 0;
  /// Elements out of tolerance, those included.
  std::int64_t failed_elements = 0;
  /// One line for a person: `dense_decode out: ok, largest error 1.2e-04 at [0, 1, 3, 17] (...)`.
  std::string description;
};

/// Compares with the tolerance of this output. Types may differ if both are float types and the
/// tolerance is not exact; another shape fails.
Comparison compare(std::string_view operation, std::string_view output, const TensorView& actual,
                   const TensorView& expected);

/// The same with a tolerance of one's own.
Comparison compare(std::string_view operation, std::string_view output, const TensorView& actual,
                   const TensorView& expected, const Tolerance& tolerance);

}  // namespace flashmla::cases
