// Compares outputs that were just computed with the reference, on as much of a case as the reference can
// compute in about a second.
#pragma once

#include <stdexcept>
#include <string>

#include "cases/case.h"

namespace flashmla::cli {

/// Compares the outputs of a step that ran with the reference backend, on the same inputs. A large case
/// is checked in part: some sequences, heads or rows, spread evenly over the case, each with all of its
/// keys. Returns what was compared. Throws Mismatch if an output is out of tolerance.
std::string check_against_reference(const cases::Case& what, const cases::Step& step);

/// The text says which output differs, and where.
class Mismatch : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace flashmla::cli
