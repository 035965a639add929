// How much an operation has to compute and to move, as a basis of rates.
#pragma once

#include "cases/case.h"
#include "cli/machine.h"

namespace flashmla::cli {

/// What the values of the inputs make necessary: masked and invalid tokens cost nothing.
struct Work {
  /// Multiplications and additions of the matrix products; 0 for operations that only move data.
  double flops = 0;
  /// Bytes that must come from or go to memory, each once. Decode and sparse prefill: the rows of the
  /// cache that are visible to anybody. Everything else: inputs and outputs.
  double bytes = 0;
};

Work work_of(const cases::AnyOperation& operation);

/// Whether repeated runs may find all that they read in the last-level cache, faster than memory.
bool fits_in_cache(const Work& work, const Machine& machine);

}  // namespace flashmla::cli
