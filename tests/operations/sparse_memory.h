// Tensors far larger than memory, of which few pages exist.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cases/tensor.h"
#include "flashmla/tensor.h"

namespace flashmla {

/// A stride in elements whose multiples do not fit in 32 bits.
inline constexpr std::int64_t kFar = (std::int64_t{1} << 32) + 64;
inline constexpr std::size_t kGiB = std::size_t{1} << 30;

/// Address space without memory behind it until it is written.
class SparseMemory {
 public:
  explicit SparseMemory(std::size_t bytes)
      : bytes_(bytes),
        data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                   0)) {}
  ~SparseMemory() {
    if (ok()) munmap(data_, bytes_);
  }
  SparseMemory(const SparseMemory&) = delete;
  SparseMemory& operator=(const SparseMemory&) = delete;

  bool ok() const { return data_ != MAP_FAILED; }

  /// Moves the elements of `packed` here, `outer_stride` elements between positions of dimension 0.
  void take(TensorView& packed, std::int64_t outer_stride) const {
    TensorView spread = packed;
    spread.data = data_;
    spread.strides[0] = outer_stride;
    if (packed.type == DataType::kU8) {
      copy_blocks(packed, spread);
    } else {
      cases::copy_elements(packed, spread);
    }
    packed = spread;
  }

 private:
  /// Blocks of FP8 bytes as they are: scales of fp8_model1 lie where no element of the view is.
  static void copy_blocks(const TensorView& from, const TensorView& to) {
    for (std::int64_t block = 0; block < from.shape[0]; ++block) {
      std::memcpy(to.as<char>() + block * to.strides[0], from.as<char>() + block * from.strides[0],
                  static_cast<std::size_t>(from.shape[1] * from.shape[3]));
    }
  }

  std::size_t bytes_;
  void* data_;
};

}  // namespace flashmla
