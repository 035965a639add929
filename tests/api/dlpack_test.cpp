// TensorView to and from DLPack.
#include "flashmla/dlpack.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

namespace flashmla {
namespace {

constexpr DataType kTypes[] = {DataType::kBf16, DataType::kF16, DataType::kF32,
                               DataType::kU8,   DataType::kI32, DataType::kI64};

DLTensor row_of_floats(std::vector<float>& memory, std::vector<std::int64_t>& shape) {
  DLTensor tensor{};
  tensor.data = memory.data();
  tensor.device = {kDLCPU, 0};
  tensor.ndim = static_cast<std::int32_t>(shape.size());
  tensor.dtype = {kDLFloat, 32, 1};
  tensor.shape = shape.data();
  return tensor;
}

std::string message_of(const DLTensor& tensor, ErrorKind kind) {
  try {
    (void)from_dlpack(tensor);
    return "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind);
    return error.what();
  }
}

TEST(DLPack, KeepsEveryElementTypeThereAndBack) {
  for (const DataType type : kTypes) {
    std::vector<std::byte> memory(1000);
    TensorView view = TensorView::contiguous(memory.data(), type, {2, 3, 4});
    const DLTensor tensor = to_dlpack(view);
    EXPECT_EQ(std::size_t{tensor.dtype.bits} / 8, size_of(type));
    EXPECT_EQ(tensor.dtype.lanes, 1);
    const TensorView back = from_dlpack(tensor);
    EXPECT_EQ(back.type, type);
    EXPECT_EQ(back.data, view.data);
    EXPECT_EQ(back.ndim, 3);
    EXPECT_EQ(back.shape, view.shape);
    EXPECT_EQ(back.strides, view.strides);
    EXPECT_EQ(back.device, view.device);
  }
}

TEST(DLPack, HasTheCodesOfDLPack) {
  EXPECT_EQ(to_dlpack(DataType::kBf16).code, kDLBfloat);
  EXPECT_EQ(to_dlpack(DataType::kF16).code, kDLFloat);
  EXPECT_EQ(to_dlpack(DataType::kU8).code, kDLUInt);
  EXPECT_EQ(to_dlpack(DataType::kI64).code, kDLInt);
  EXPECT_THROW((void)to_dlpack(static_cast<DataType>(77)), Error);
}

TEST(DLPack, PointsIntoTheView) {
  std::vector<float> memory(24);
  TensorView view = TensorView::contiguous(memory.data(), DataType::kF32, {4, 6});
  view.strides[0] = 5;
  const DLTensor tensor = to_dlpack(view);
  EXPECT_EQ(tensor.shape, view.shape.data());
  EXPECT_EQ(tensor.strides, view.strides.data());
  EXPECT_EQ(tensor.strides[0], 5);
  EXPECT_EQ(tensor.byte_offset, 0u);
}

TEST(DLPack, WithoutStridesIsRowMajor) {
  std::vector<float> memory(24);
  std::vector<std::int64_t> shape{2, 3, 4};
  const TensorView view = from_dlpack(row_of_floats(memory, shape));
  EXPECT_EQ(view.strides[0], 12);
  EXPECT_EQ(view.strides[1], 4);
  EXPECT_EQ(view.strides[2], 1);
}

TEST(DLPack, KeepsStrides) {
  std::vector<float> memory(24);
  std::vector<std::int64_t> shape{2, 3};
  std::vector<std::int64_t> strides{-7, 2};
  DLTensor tensor = row_of_floats(memory, shape);
  tensor.strides = strides.data();
  const TensorView view = from_dlpack(tensor);
  EXPECT_EQ(view.strides[0], -7);
  EXPECT_EQ(view.strides[1], 2);
}

TEST(DLPack, AddsTheByteOffset) {
  std::vector<float> memory(24);
  std::vector<std::int64_t> shape{3};
  DLTensor tensor = row_of_floats(memory, shape);
  tensor.byte_offset = 20;
  EXPECT_EQ(from_dlpack(tensor).as<float>(), memory.data() + 5);
}

TEST(DLPack, TakesEveryTypeOfEightBitsAsBytes) {
  std::vector<float> memory(24);
  std::vector<std::int64_t> shape{3};
  DLTensor tensor = row_of_floats(memory, shape);
  for (const int code : {int{kDLInt}, int{kDLUInt}, 10, 12}) {
    tensor.dtype = {static_cast<std::uint8_t>(code), 8, 1};
    EXPECT_EQ(from_dlpack(tensor).type, DataType::kU8);
  }
}

TEST(DLPack, KeepsACudaDevice) {
  std::vector<std::int64_t> shape{3};
  std::vector<float> memory(3);
  DLTensor tensor = row_of_floats(memory, shape);
  tensor.device = {kDLCUDA, 3};
  EXPECT_EQ(from_dlpack(tensor).device, (Device{DeviceType::kCuda, 3}));
}

TEST(DLPack, RefusesOtherTypesDevicesAndDimensions) {
  std::vector<float> memory(24);
  std::vector<std::int64_t> shape{1, 1, 1, 1, 1, 1};
  DLTensor tensor = row_of_floats(memory, shape);
  EXPECT_EQ(message_of(tensor, ErrorKind::kValue), "from_dlpack: expected at most 5 dimensions, got 6");
  tensor.ndim = -1;
  EXPECT_EQ(message_of(tensor, ErrorKind::kValue), "from_dlpack: expected at most 5 dimensions, got -1");
  tensor.ndim = 1;
  tensor.device = {kDLVulkan, 0};
  EXPECT_EQ(message_of(tensor, ErrorKind::kValue),
            "from_dlpack: device must be a CPU or a CUDA device, got type 7");
  tensor.device = {kDLCPU, 0};
  const DLDataType refused[] = {{kDLFloat, 64, 1}, {kDLUInt, 32, 1},   {kDLInt, 16, 1},
                                {kDLFloat, 32, 4}, {kDLBfloat, 32, 1}, {kDLInt, 8, 4}};
  for (const DLDataType& type : refused) {
    tensor.dtype = type;
    EXPECT_EQ(message_of(tensor, ErrorKind::kType),
              "from_dlpack: element type must be bf16, f16, f32, i32, i64 or 8 bits wide, got code " +
                  std::to_string(type.code) + ", " + std::to_string(type.bits) + " bits, " +
                  std::to_string(type.lanes) + " lanes");
  }
}

}  // namespace
}  // namespace flashmla
