// What the environment says about the shared memory of a block.
#pragma once

#include <algorithm>
#include <charconv>
#include <string_view>

#include "api/message.h"

namespace flashmla::cuda {

/// The lower of `most` and of what `variable`, the value of FLASHMLA_CUDA_SHARED_MEMORY, says; null or empty
/// says nothing. Throws Error for a value that is no number, or less than every block of every GPU has.
inline int limited_shared_memory(const char* variable, int most) {
  constexpr int kLeast = 48 * 1024;
  if (variable == nullptr || *variable == '\0') return most;
  const std::string_view given(variable);
  int bytes = 0;
  const auto [end, error] = std::from_chars(given.data(), given.data() + given.size(), bytes);
  if (error != std::errc() || end != given.data() + given.size() || bytes < kLeast) {
    fail(ErrorKind::kValue, "FLASHMLA_CUDA_SHARED_MEMORY", "must be a number of bytes from ", kLeast,
         " on, got \"", given, "\"");
  }
  return std::min(bytes, most);
}

}  // namespace flashmla::cuda
