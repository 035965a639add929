// How many threads a call may use.
#pragma once

#include <omp.h>

#include "flashmla/execution.h"

namespace flashmla::reference {

inline int thread_count(const Execution& on) { return on.threads > 0 ? on.threads : omp_get_max_threads(); }

}  // namespace flashmla::reference
