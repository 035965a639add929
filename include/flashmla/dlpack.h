// TensorView to and from DLPack, without a copy. Needs <dlpack/dlpack.h>, which the library itself
// does not: include this file only where DLPack is installed.
#pragma once

#include <dlpack/dlpack.h>

#include <string>

#include "flashmla/error.h"
#include "flashmla/tensor.h"

namespace flashmla {

/// DLPack's description of an element type.
inline DLDataType to_dlpack(DataType type) {
  switch (type) {
    case DataType::kBf16:
      return {kDLBfloat, 16, 1};
    case DataType::kF16:
      return {kDLFloat, 16, 1};
    case DataType::kF32:
      return {kDLFloat, 32, 1};
    case DataType::kU8:
      return {kDLUInt, 8, 1};
    case DataType::kI32:
      return {kDLInt, 32, 1};
    case DataType::kI64:
      return {kDLInt, 64, 1};
  }
  throw Error(ErrorKind::kType, "to_dlpack: unknown element type");
}

/// A DLTensor over the same memory. Its shape and strides point into `view`, which must outlive it.
inline DLTensor to_dlpack(TensorView& view) {
  DLTensor tensor{};
  tensor.data = view.data;
  tensor.device.device_type = static_cast<DLDeviceType>(view.device.type);
  tensor.device.device_id = view.device.index;
  tensor.ndim = view.ndim;
  tensor.dtype = to_dlpack(view.type);
  tensor.shape = view.shape.data();
  tensor.strides = view.strides.data();
  tensor.byte_offset = 0;
  return tensor;
}

/// A view of the memory of a DLTensor; null strides mean row-major, as in DLPack. 8-bit types of
/// every kind (uint8, int8, float8) are taken as bytes. Throws Error for an element type, a device
/// or a number of dimensions that the library does not know.
inline TensorView from_dlpack(const DLTensor& tensor) {
  TensorView view = {};
  const DLDataType type = tensor.dtype;
  if (type.lanes == 1 && type.bits == 8) {
    view.type = DataType::kU8;
  } else if (type.lanes == 1 && type.code == kDLBfloat && type.bits == 16) {
    view.type = DataType::kBf16;
  } else if (type.lanes == 1 && type.code == kDLFloat && type.bits == 16) {
    view.type = DataType::kF16;
  } else if (type.lanes == 1 && type.code == kDLFloat && type.bits == 32) {
    view.type = DataType::kF32;
  } else if (type.lanes == 1 && type.code == kDLInt && type.bits == 32) {
    view.type = DataType::kI32;
  } else if (type.lanes == 1 && type.code == kDLInt && type.bits == 64) {
    view.type = DataType::kI64;
  } else {
    throw Error(ErrorKind::kType,
                "from_dlpack: element type must be bf16, f16, f32, i32, i64 or 8 bits wide, got code " +
                    std::to_string(type.code) + ", " + std::to_string(type.bits) + " bits, " +
                    std::to_string(type.lanes) + " lanes");
  }
  if (tensor.device.device_type != kDLCPU && tensor.device.device_type != kDLCUDA) {
    throw Error(ErrorKind::kValue, "from_dlpack: device must be a CPU or a CUDA device, got type " +
                                       std::to_string(tensor.device.device_type));
  }
  if (tensor.ndim < 0 || tensor.ndim > kMaxDims) {
    throw Error(ErrorKind::kValue, "from_dlpack: expected at most " + std::to_string(kMaxDims) +
                                       " dimensions, got " + std::to_string(tensor.ndim));
  }
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.device = {static_cast<DeviceType>(tensor.device.device_type), tensor.device.device_id};
  view.ndim = tensor.ndim;
  std::int64_t packed = 1;
  for (int dim = tensor.ndim - 1; dim >= 0; --dim) {
    view.shape[dim] = tensor.shape[dim];
    view.strides[dim] = tensor.strides != nullptr ? tensor.strides[dim] : packed;
    packed *= tensor.shape[dim];
  }
  return view;
}

}  // namespace flashmla
