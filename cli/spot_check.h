// Compares outputs that were just computed with the reference, on as much of a case as the reference can
// compute in short time.
#pragma once

#include <stdexcept>
#include <string>

#include "cases/case.h"

namespace flashmla::cli {

/// What the reference may spend on a check.
struct CheckBudget {
  // Less than a second on two slow cores.
  double flops = 2e9;
  double bytes = 3e8;
};

/// An output is out of tolerance. The text says which one, and where.
class Mismatch : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Compares the outputs of a step that ran with the reference backend, on the same inputs. A case beyond the
/// budget is checked in part: some sequences, heads or rows, spread evenly over the case, each with all of
/// its keys. Returns what was compared. Throws Mismatch.
std::string check_against_reference(const cases::Case& what, const cases::Step& step,
                                    const CheckBudget& budget = {});

}  // namespace flashmla::cli
