// Text of error messages.
#pragma once

#include <sstream>
#include <string>
#include <string_view>

#include "flashmla/error.h"

namespace flashmla {

/// The parts, printed one behind the other.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

/// Throws Error with the text `operation: parts...`.
template <class... Parts>
[[noreturn]] void fail(ErrorKind kind, std::string_view operation, const Parts&... parts) {
  throw Error(kind, text(operation, ": ", parts...));
}

}  // namespace flashmla
