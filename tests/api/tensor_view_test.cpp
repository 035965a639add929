// TensorView: shapes, strides, what counts as given.
#include <gtest/gtest.h>

#include <string>

#include "flashmla/error.h"
#include "flashmla/tensor.h"

namespace flashmla {
namespace {

TEST(TensorView, ContiguousHasRowMajorStrides) {
  float memory[24] = {};
  const TensorView view = TensorView::contiguous(memory, DataType::kF32, {2, 3, 4}, {DeviceType::kCuda, 2});
  EXPECT_EQ(view.data, memory);
  EXPECT_EQ(view.ndim, 3);
  EXPECT_EQ(view.shape, (std::array<std::int64_t, kMaxDims>{2, 3, 4, 0, 0}));
  EXPECT_EQ(view.strides, (std::array<std::int64_t, kMaxDims>{12, 4, 1, 0, 0}));
  EXPECT_EQ(view.size(), 24);
  EXPECT_EQ(view.device, (Device{DeviceType::kCuda, 2}));
}

TEST(TensorView, MayHaveNoElementsAndNoDimensions) {
  EXPECT_EQ(TensorView::contiguous(nullptr, DataType::kI32, {3, 0, 2}).size(), 0);
  EXPECT_EQ(TensorView::contiguous(nullptr, DataType::kI32, {}).size(), 1);
}

TEST(TensorView, IsGivenUnlessDefaultConstructed) {
  int number = 0;
  EXPECT_FALSE(TensorView{}.given());
  EXPECT_TRUE(TensorView::contiguous(&number, DataType::kI32, {}).given());
  EXPECT_TRUE(TensorView::contiguous(nullptr, DataType::kI32, {0}).given());
}

TEST(TensorView, RefusesNegativeSizesAndTooManyDimensions) {
  try {
    (void)TensorView::contiguous(nullptr, DataType::kI32, {2, -3});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()), "TensorView: dimension 1 is negative: -3");
  }
  try {
    (void)TensorView::contiguous(nullptr, DataType::kI32, {1, 1, 1, 1, 1, 1});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()), "TensorView: expected at most 5 dimensions, got 6");
  }
}

TEST(DataType, HasANameAndASize) {
  const std::pair<DataType, std::pair<const char*, std::size_t>> types[] = {
      {DataType::kBf16, {"bf16", 2}}, {DataType::kF16, {"f16", 2}}, {DataType::kF32, {"f32", 4}},
      {DataType::kU8, {"u8", 1}},     {DataType::kI32, {"i32", 4}}, {DataType::kI64, {"i64", 8}}};
  for (const auto& [type, expected] : types) {
    EXPECT_EQ(name_of(type), expected.first);
    EXPECT_EQ(size_of(type), expected.second);
  }
}

}  // namespace
}  // namespace flashmla
