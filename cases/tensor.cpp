// Owning tensors: memory, element access, FP8 cache tensors.
#include "cases/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>

#include "flashmla/error.h"
#include "kv/float_types.h"
#include "kv/formats.h"

namespace flashmla::cases {
namespace {

std::int64_t checked_product(std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) {
    throw Error(ErrorKind::kValue, "tensor: its size does not fit in 64 bits");
  }
  return product;
}

std::int64_t checked_sum(std::int64_t a, std::int64_t b) {
  std::int64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) {
    throw Error(ErrorKind::kValue, "tensor: its size does not fit in 64 bits");
  }
  return sum;
}

TensorView layout(DataType type, const std::vector<std::int64_t>& shape,
                  const std::vector<std::int64_t>& strides) {
  if (shape.size() > kMaxDims || (!strides.empty() && strides.size() != shape.size())) {
    throw Error(ErrorKind::kValue, fmt::format("tensor: expected at most {} dimensions and as many strides, "
                                               "got shape {} and strides {}",
                                               kMaxDims, to_string(shape), to_string(strides)));
  }
  TensorView view;
  view.type = type;
  view.ndim = static_cast<std::int32_t>(shape.size());
  std::int64_t packed = 1;
  for (std::size_t dim = shape.size(); dim-- > 0;) {
    view.shape[dim] = shape[dim];
    view.strides[dim] = strides.empty() ? packed : strides[dim];
    if (view.shape[dim] < 0 || view.strides[dim] < 0) {
      throw Error(ErrorKind::kValue, fmt::format("tensor: sizes and strides must not be negative, got shape "
                                                 "{} and strides {}",
                                                 to_string(shape), to_string(strides)));
    }
    packed = checked_product(packed, std::max<std::int64_t>(shape[dim], 1));
  }
  return view;
}

/// From the first byte of the first element to the last byte of the last one: reading behind it is
/// found by AddressSanitizer.
std::size_t extent_in_bytes(const TensorView& view) {
  std::int64_t elements = 1;
  for (int dim = 0; dim < view.ndim; ++dim) {
    if (view.shape[dim] == 0) return 0;
    elements = checked_sum(elements, checked_product(view.shape[dim] - 1, view.strides[dim]));
  }
  return static_cast<std::size_t>(checked_product(elements, static_cast<std::int64_t>(size_of(view.type))));
}

template <class T>
T load(const void* address) {
  T value;
  std::memcpy(&value, address, sizeof(T));
  return value;
}

template <class T>
void store(void* address, T value) {
  std::memcpy(address, &value, sizeof(T));
}

std::int64_t fp8_row_bytes(KvFormat format) {
  std::int64_t bytes = 0;
  if (with_fp8_format(format, [&]<class Format>() { bytes = Format::kRowBytes; })) return bytes;
  throw Error(ErrorKind::kValue, fmt::format("{} is not an FP8 cache format", name_of(format)));
}

std::byte* address_of(const TensorView& view, std::span<const std::int64_t> index) {
  return view.as<std::byte>() + offset_of(view, index) * static_cast<std::int64_t>(size_of(view.type));
}

}  // namespace

void Tensor::Free::operator()(std::byte* memory) const {
  ::operator delete[](memory, std::align_val_t{kAlignment});
}

Tensor::Tensor(DataType type, const std::vector<std::int64_t>& shape,
               const std::vector<std::int64_t>& strides)
    : view_(layout(type, shape, strides)), bytes_(extent_in_bytes(view_)) {
  memory_.reset(static_cast<std::byte*>(
      ::operator new[](std::max<std::size_t>(bytes_, 1), std::align_val_t{kAlignment}, std::nothrow)));
  if (memory_ == nullptr) {
    throw Error(ErrorKind::kValue,
                fmt::format("tensor: {} bytes for shape {} cannot be had", bytes_, to_string(shape)));
  }
  view_.data = memory_.get();
  fill_nan();
}

Tensor::Tensor(const Tensor& other) : view_(other.view_), bytes_(other.bytes_) {
  if (other.memory_ == nullptr) return;
  memory_.reset(static_cast<std::byte*>(
      ::operator new[](std::max<std::size_t>(bytes_, 1), std::align_val_t{kAlignment})));
  std::memcpy(memory_.get(), other.memory_.get(), bytes_);
  view_.data = memory_.get();
}

Tensor& Tensor::operator=(const Tensor& other) {
  if (this != &other) *this = Tensor(other);
  return *this;
}

std::vector<std::int64_t> Tensor::shape() const {
  return {view_.shape.begin(), view_.shape.begin() + view_.ndim};
}

void Tensor::fill_nan() { std::memset(memory_.get(), 0xff, bytes_); }

double Tensor::at(std::initializer_list<std::int64_t> index) const {
  return element(view_, {index.begin(), index.size()});
}

void Tensor::set(std::initializer_list<std::int64_t> index, double value) {
  set_element(view_, {index.begin(), index.size()}, value);
}

std::int64_t packed_block_stride(KvFormat format, std::int64_t page) {
  constexpr std::int64_t kModel1Padding = 576;
  const std::int64_t bytes = checked_product(page, fp8_row_bytes(format));
  if (format != KvFormat::kFp8Model1) return bytes;
  return checked_sum(bytes, kModel1Padding - 1) / kModel1Padding * kModel1Padding;
}

Tensor fp8_cache(KvFormat format, std::int64_t blocks, std::int64_t page, std::int64_t block_stride_bytes) {
  const std::int64_t row = fp8_row_bytes(format);
  const std::int64_t stride =
      block_stride_bytes != 0 ? block_stride_bytes : packed_block_stride(format, page);
  return Tensor(DataType::kU8, {blocks, page, 1, row}, {stride, row, row, 1});
}

std::int64_t offset_of(const TensorView& view, std::span<const std::int64_t> index) {
  std::int64_t offset = 0;
  for (std::size_t dim = 0; dim < index.size(); ++dim) offset += index[dim] * view.strides[dim];
  return offset;
}

double element(const TensorView& view, std::span<const std::int64_t> index) {
  const std::byte* address = address_of(view, index);
  switch (view.type) {
    case DataType::kBf16:
      return bf16_to_float(load<std::uint16_t>(address));
    case DataType::kF16:
      return f16_to_float(load<std::uint16_t>(address));
    case DataType::kF32:
      return load<float>(address);
    case DataType::kU8:
      return load<std::uint8_t>(address);
    case DataType::kI32:
      return load<std::int32_t>(address);
    case DataType::kI64:
      return static_cast<double>(load<std::int64_t>(address));
  }
  return std::numeric_limits<double>::quiet_NaN();
}

void set_element(const TensorView& view, std::span<const std::int64_t> index, double value) {
  std::byte* address = address_of(view, index);
  switch (view.type) {
    case DataType::kBf16:
      return store(address, double_to_bf16(value));
    case DataType::kF16:
      return store(address, double_to_f16(value));
    case DataType::kF32:
      return store(address, static_cast<float>(value));
    case DataType::kU8:
      return store(address, static_cast<std::uint8_t>(value));
    case DataType::kI32:
      return store(address, static_cast<std::int32_t>(value));
    case DataType::kI64:
      return store(address, static_cast<std::int64_t>(value));
  }
}

std::string to_string(std::span<const std::int64_t> numbers) {
  return fmt::format("[{}]", fmt::join(numbers.begin(), numbers.end(), ", "));
}

void copy_elements(const TensorView& from, const TensorView& to) {
  if (from.type != to.type || from.ndim != to.ndim || from.shape != to.shape) {
    throw Error(ErrorKind::kValue, "copy_elements: tensors must have the same type and shape");
  }
  const std::size_t last = static_cast<std::size_t>(std::max(from.ndim - 1, 0));
  const bool rows = from.ndim > 0 && from.strides[last] == 1 && to.strides[last] == 1;
  const std::size_t count = rows ? static_cast<std::size_t>(from.shape[last]) : 1;
  const std::size_t dims = rows ? last : static_cast<std::size_t>(from.ndim);
  if (count == 0) return;
  for_each_index({from.shape.data(), dims}, [&](std::span<const std::int64_t> index) {
    std::memcpy(address_of(to, index), address_of(from, index), count * size_of(from.type));
  });
}

}  // namespace flashmla::cases
