// Cuts a caller's workspace into typed arrays; the same code measures how much is needed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flashmla/execution.h"

namespace flashmla {

/// Each array begins at a multiple of 64 bytes (a cache line, and the width of an AVX-512 vector).
/// Without memory the same calls only add up sizes and return null.
class Workspace {
 public:
  static constexpr std::size_t kAlignment = 64;

  /// Measures.
  Workspace() = default;

  /// Cuts the memory of `on`, which has been checked to be large enough.
  explicit Workspace(const Execution& on) {
    const auto address = reinterpret_cast<std::uintptr_t>(on.workspace);
    const std::size_t skip = (kAlignment - address % kAlignment) % kAlignment;
    base_ = on.workspace == nullptr ? nullptr : static_cast<std::byte*>(on.workspace) + skip;
  }

  /// Cuts memory that begins at a multiple of kAlignment.
  explicit Workspace(std::byte* aligned) : base_(aligned) {}

  template <class T>
  T* take(std::size_t count) {
    std::byte* at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(at);
  }

  /// Bytes that have been taken, a multiple of kAlignment.
  std::size_t used() const { return used_; }

  /// Bytes that a caller must provide so that memory of any alignment is enough.
  std::size_t bytes() const { return used_ == 0 ? 0 : used_ + kAlignment - 1; }

 private:
  std::byte* base_ = nullptr;
  std::size_t used_ = 0;
};

}  // namespace flashmla
