// Element types and views.
#include "flashmla/tensor.h"

#include <algorithm>
#include <limits>

#include "api/message.h"

namespace flashmla {

std::size_t size_of(DataType type) {
  switch (type) {
    case DataType::kU8:
      return 1;
    case DataType::kBf16:
    case DataType::kF16:
      return 2;
    case DataType::kF32:
    case DataType::kI32:
      return 4;
    case DataType::kI64:
      return 8;
  }
  fail(ErrorKind::kType, "size_of", "unknown element type ", static_cast<int>(type));
}

std::string_view name_of(DataType type) {
  switch (type) {
    case DataType::kBf16:
      return "bf16";
    case DataType::kF16:
      return "f16";
    case DataType::kF32:
      return "f32";
    case DataType::kU8:
      return "u8";
    case DataType::kI32:
      return "i32";
    case DataType::kI64:
      return "i64";
  }
  return "unknown type";
}

TensorView TensorView::contiguous(const void* data, DataType type, std::initializer_list<std::int64_t> shape,
                                  Device device) {
  if (shape.size() > kMaxDims) {
    fail(ErrorKind::kValue, "TensorView", "expected at most ", kMaxDims, " dimensions, got ", shape.size());
  }
  TensorView view;
  view.data = const_cast<void*>(data);
  view.type = type;
  view.device = device;
  view.ndim = static_cast<std::int32_t>(shape.size());
  int dim = 0;
  for (const std::int64_t extent : shape) {
    if (extent < 0) fail(ErrorKind::kValue, "TensorView", "dimension ", dim, " is negative: ", extent);
    view.shape[dim++] = extent;
  }
  std::int64_t stride = 1;
  for (dim = view.ndim - 1; dim >= 0; --dim) {
    view.strides[dim] = stride;
    if (__builtin_mul_overflow(stride, std::max<std::int64_t>(view.shape[dim], 1), &stride)) {
      fail(ErrorKind::kValue, "TensorView", "expected fewer than 2^63 elements");
    }
  }
  return view;
}

std::int64_t TensorView::size() const {
  std::int64_t count = 1;
  bool too_large = false;
  for (int dim = 0; dim < ndim; ++dim) {
    if (shape[dim] == 0) return 0;
    too_large |= __builtin_mul_overflow(count, shape[dim], &count);
  }
  return too_large ? std::numeric_limits<std::int64_t>::max() : count;
}

}  // namespace flashmla
