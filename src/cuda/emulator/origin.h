// Who started an operation, and where.
#pragma once

#include <source_location>

namespace flashmla::emulator {

struct Thread;

/// A place in a kernel that an instruction was given with.
using Location = std::source_location;

struct Origin {
  Thread* thread = nullptr;
  Location place;
};

}  // namespace flashmla::emulator
