// The one exception type that the library throws.
#pragma once

#include <stdexcept>
#include <string>

namespace flashmla {

enum class ErrorKind {
  kValue,        ///< a shape, stride, range or device is wrong
  kType,         ///< an element type is wrong
  kUnsupported,  ///< the arguments are valid, but no kernel here computes them
  kDevice,       ///< the CUDA runtime refused: no memory, a lost GPU, a kernel that failed before
};

/// Thrown by every public function before any work starts: no output has been written. (A kDevice error alone
/// can come later, from work that was started before.) The text names operation, argument, what was expected
/// and what came, for example `dense_decode: block_table must be i32 [batch=4, max_blocks], got f32 [3, 8]`.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

}  // namespace flashmla
