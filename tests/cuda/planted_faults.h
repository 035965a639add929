// Small kernels, each with a fault that can be switched on, and the line that a report must name.
#pragma once

#include <cstddef>
#include <ostream>
#include <span>

#include "cuda/emulator/launch.h"
#include "cuda/ptx/bulk_copy.h"

namespace flashmla::planted {

inline constexpr int kNumbers = 4096;  // of input and of output

struct Params {
  const float* in;
  float* out;
  ptx::TensorMap map;  // of the input as rows of 32 numbers, and boxes of 16 rows
  bool faulty;
};

struct Case {
  const char* name;
  void (*kernel)(Params);
  emulator::LaunchConfig config;
  /// What the kernel writes; kernels copy the input unless they say something else.
  float (*expected)(const float* in, int i);
};

/// How GoogleTest names it.
inline void PrintTo(const Case& planted, std::ostream* out) { *out << planted.name; }

std::span<const Case> cases();

/// The line of the fault in the kernel that ran last; 0 if no thread has come there.
int marked_line();
void clear_mark();

/// The name of the file of the kernels, as reports have it.
const char* file_name();

}  // namespace flashmla::planted
