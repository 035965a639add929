// An owning tensor for test cases: aligned memory, any strides, elements as double.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "flashmla/kv_format.h"
#include "flashmla/tensor.h"

namespace flashmla::cases {

/// Position of an element, one number a dimension.
using Index = std::vector<std::int64_t>;

/// Memory and a view of it. Copies are deep; moving keeps the address, so views stay valid.
class Tensor {
 public:
  static constexpr std::size_t kAlignment = 64;

  /// Not given: `view().given()` is false.
  Tensor() = default;

  /// Every byte is 0xff: NaN in bf16, f16, f32 and e4m3, -1 in the integer types. Without strides
  /// (in elements) the tensor is row-major without gaps. Throws Error (kValue) for a negative size or
  /// stride, more than kMaxDims dimensions, or memory that cannot be had.
  Tensor(DataType type, const std::vector<std::int64_t>& shape,
         const std::vector<std::int64_t>& strides = {});

  Tensor(const Tensor& other);
  Tensor& operator=(const Tensor& other);
  Tensor(Tensor&& other) noexcept = default;
  Tensor& operator=(Tensor&& other) noexcept = default;

  /// A view of the memory; whoever has one may write, also through a const Tensor.
  const TensorView& view() const { return view_; }

  DataType type() const { return view_.type; }
  std::vector<std::int64_t> shape() const;

  /// All bytes, gaps between rows and blocks included.
  std::span<std::byte> memory() const { return {memory_.get(), bytes_}; }

  /// Sets every byte, gaps included, to 0xff.
  void fill_nan();

  double at(std::initializer_list<std::int64_t> index) const;
  void set(std::initializer_list<std::int64_t> index, double value);

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  TensorView view_;
  std::unique_ptr<std::byte[], Free> memory_;
  std::size_t bytes_ = 0;
};

/// A cache `[blocks, page, 1, row]` of bytes in an FP8 format, 0xff everywhere. Blocks are
/// `block_stride_bytes` apart; 0 takes the smallest distance that the format allows
/// (packed_block_stride). Throws Error (kValue) for a format that is not FP8.
Tensor fp8_cache(KvFormat format, std::int64_t blocks, std::int64_t page,
                 std::int64_t block_stride_bytes = 0);

/// Distance between blocks of an FP8 format without spare rows: `page * row` bytes, for fp8_model1
/// rounded up to a multiple of 576.
std::int64_t packed_block_stride(KvFormat format, std::int64_t page);

/// The element at `index` as double; exact but for i64 beyond 2^53.
double element(const TensorView& view, std::span<const std::int64_t> index);

/// Stores `value`, rounded to nearest even for float types.
void set_element(const TensorView& view, std::span<const std::int64_t> index, double value);

/// Offset of an element from the first one, in elements.
std::int64_t offset_of(const TensorView& view, std::span<const std::int64_t> index);

/// `[3, 8]`.
std::string to_string(std::span<const std::int64_t> numbers);

/// Copies the elements of `from` into `to`: same type and shape, any strides.
void copy_elements(const TensorView& from, const TensorView& to);

/// Calls `visit(std::span<const std::int64_t> index)` for every position in row-major order.
template <class Visit>
void for_each_index(std::span<const std::int64_t> shape, Visit&& visit) {
  for (const std::int64_t size : shape) {
    if (size <= 0) return;
  }
  Index index(shape.size(), 0);
  while (true) {
    visit(std::span<const std::int64_t>(index));
    std::size_t dim = shape.size();
    while (dim > 0 && ++index[dim - 1] == shape[dim - 1]) index[--dim] = 0;
    if (dim == 0) return;
  }
}

/// The same over all positions of a view.
template <class Visit>
void for_each_index(const TensorView& view, Visit&& visit) {
  for_each_index(std::span<const std::int64_t>(view.shape.data(), static_cast<std::size_t>(view.ndim)),
                 std::forward<Visit>(visit));
}

}  // namespace flashmla::cases
