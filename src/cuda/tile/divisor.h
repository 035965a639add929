// Division by a number that is known before the kernel starts.
#pragma once

#include <cstdint>

#include "cuda/ptx/target.h"

namespace flashmla::tile {

/// Divides i32 numbers that are not negative by a positive one: a product and a shift instead of some 20
/// instructions. With `l = ceil(log2 d)` and `m = floor(2^(31 + l) / d) + 1`, `n / d = n * m >> (31 + l)` for
/// all `n < 2^31`. Source: Granlund and Montgomery, "Division by Invariant Integers using Multiplication",
/// 1994.
class Divisor {
 public:
  Divisor() = default;

  explicit Divisor(std::int32_t divisor) : divisor_(divisor) {
    while ((std::int64_t{1} << log_) < divisor) ++log_;
    multiplier_ = static_cast<std::uint32_t>(
        (std::uint64_t{1} << (31 + log_)) / static_cast<std::uint32_t>(divisor) + 1);
  }

  FLASHMLA_DEVICE std::int32_t divisor() const { return divisor_; }

  FLASHMLA_DEVICE std::int32_t quotient(std::int32_t n) const {
    return static_cast<std::int32_t>(std::uint64_t{static_cast<std::uint32_t>(n)} * multiplier_ >>
                                     (31 + log_));
  }

  FLASHMLA_DEVICE std::int32_t remainder(std::int32_t n) const { return n - quotient(n) * divisor_; }

 private:
  std::int32_t divisor_ = 1;
  std::uint32_t multiplier_ = (1u << 31) + 1;
  std::int32_t log_ = 0;
};

}  // namespace flashmla::tile
