// The sequences that cu_seqlens describes, whatever numbers it holds.
#pragma once

#include <algorithm>
#include <cstdint>

#include "flashmla/tensor.h"

namespace flashmla {

/// Walks over packed sequences: `for (SequenceWalk s(cu_seqlens, total); s.next();)`. Sequence `b` is
/// `[begin, end)` of `total` rows. A bound outside the tensor is clamped, and one smaller than the bound
/// before it counts as equal; so the sequences are disjoint and in order for any content.
class SequenceWalk {
 public:
  /// `cu_seqlens`: i32 `[batch + 1]`.
  SequenceWalk(const TensorView& cu_seqlens, std::int64_t total)
      : bounds_(cu_seqlens.as<const std::int32_t>()),
        stride_(cu_seqlens.strides[0]),
        count_(cu_seqlens.shape[0]),
        total_(total),
        end_(bound(0, 0)) {}

  bool next() {
    if (next_ >= count_) return false;
    begin_ = end_;
    end_ = bound(next_, begin_);
    ++next_;
    return true;
  }

  std::int64_t begin() const { return begin_; }
  std::int64_t end() const { return end_; }
  std::int64_t length() const { return end_ - begin_; }

 private:
  std::int64_t bound(std::int64_t index, std::int64_t least) const {
    return std::clamp<std::int64_t>(bounds_[index * stride_], least, total_);
  }

  const std::int32_t* bounds_;
  std::int64_t stride_;
  std::int64_t count_;
  std::int64_t total_;
  std::int64_t next_ = 1;
  std::int64_t begin_ = 0;
  std::int64_t end_;
};

}  // namespace flashmla
