// Operations on copies of their tensors in the memory of a GPU.
#include "cases/on_device.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <variant>
#include <vector>

#include "../cuda/gpus.h"
#include "cases/random.h"
#include "flashmla/kernels.h"

namespace flashmla::cases {
namespace {

TEST(DeviceOf, IsWhereTheBackendRuns) {
  EXPECT_EQ(device_of("cpu"), Device{});
  EXPECT_EQ(device_of("reference"), Device{});
  EXPECT_EQ(device_of("portable"), (Device{DeviceType::kCuda, 0}));
  EXPECT_EQ(device_of(""), Device{});
}

TEST(ShapesOn, NameTheDeviceInEveryView) {
  const Device gpu{DeviceType::kCuda, 3};
  const Case dense = make_dense_decode({}, 1);
  const std::vector<Step> steps = prepare(dense);
  const ShapesOn there(steps[0].operation, gpu);
  const auto& op = std::get<DenseDecode>(there.operation());
  for (const TensorView& view : {op.q, op.kv_cache, op.block_table, op.cache_seqlens, op.out, op.lse}) {
    EXPECT_EQ(view.device, gpu);
  }
  EXPECT_EQ(op.q.data, std::get<DenseDecode>(steps[0].operation).q.data);
  EXPECT_FALSE(op.schedule.given());
  EXPECT_EQ(std::get<DenseDecode>(steps[0].operation).q.device, Device{});
}

TEST(ShapesOn, NameTheDeviceInLists) {
  const Device gpu{DeviceType::kCuda, 0};
  const Case merge = make_merge_states({.states = 3}, 1);
  const std::vector<Step> steps = prepare(merge);
  const ShapesOn there(steps[0].operation, gpu);
  const auto& op = std::get<MergeStates>(there.operation());
  ASSERT_EQ(op.outs.size(), 3U);
  for (const TensorView& view : op.outs) EXPECT_EQ(view.device, gpu);
  for (const TensorView& view : std::get<MergeStates>(steps[0].operation).outs)
    EXPECT_EQ(view.device, Device{});
}

class EachGpu : public testing::TestWithParam<int> {
 protected:
  Device device() const { return {DeviceType::kCuda, GetParam()}; }
};
INSTANTIATE_TEST_SUITE_P(, EachGpu, testing::ValuesIn(gpus()));
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(EachGpu);

std::vector<std::byte> bytes_of(const Tensor& tensor) {
  return {tensor.memory().begin(), tensor.memory().end()};
}

TEST_P(EachGpu, HasTheTensorsWithTheirGapsAndGivesBackWhatIsWritten) {
  const Case dense = make_dense_decode({.gaps = true}, 1);
  const std::vector<Step> steps = prepare(dense);
  const Tensor& q = dense.tensors.at("q");
  const Tensor& out = steps[0].outputs.at("out");
  const OnGpu copies(steps[0].operation, device());
  const auto& op = std::get<DenseDecode>(copies.operation());
  EXPECT_EQ(op.q.device, device());
  EXPECT_NE(op.q.data, q.view().data);
  EXPECT_EQ(op.q.strides, q.view().strides);
  std::vector<std::byte> there(q.memory().size());
  cuda::copy(there.data(), op.q.data, there.size());
  EXPECT_EQ(there, bytes_of(q));

  cuda::fill(op.q.data, 0, q.memory().size());
  cuda::fill(op.out.data, 0x17, out.memory().size());
  const std::vector<std::byte> q_before = bytes_of(q);
  copies.copy_back();
  EXPECT_EQ(bytes_of(q), q_before) << "an input is not written";
  EXPECT_EQ(bytes_of(out), std::vector<std::byte>(out.memory().size(), std::byte{0x17}));
  copies.copy_all_back();
  EXPECT_EQ(bytes_of(q), std::vector<std::byte>(q.memory().size(), std::byte{0}));
}

TEST_P(EachGpu, HasTensorsWithNegativeStrides) {
  const Tensor rows(DataType::kI32, {5});
  for (std::int64_t i = 0; i < 5; ++i) rows.view().as<std::int32_t>()[i] = static_cast<std::int32_t>(i);
  DenseDecode backwards;
  backwards.cache_seqlens = rows.view();
  backwards.cache_seqlens.data = rows.view().as<std::int32_t>() + 4;
  backwards.cache_seqlens.strides[0] = -1;
  const OnGpu copies(backwards, device());
  std::int32_t value = -1;
  cuda::copy(&value, std::get<DenseDecode>(copies.operation()).cache_seqlens.as<std::int32_t>() - 4,
             sizeof(value));
  EXPECT_EQ(value, 0);
}

TEST_P(EachGpu, SharesMemoryWhereTheHostDoes) {
  const Case merge = make_merge_states({.states = 2}, 1);
  const std::vector<Step> steps = prepare(merge);
  MergeStates op = std::get<MergeStates>(steps[0].operation);
  op.out = op.outs[0];
  const OnGpu copies(op, device());
  const auto& there = std::get<MergeStates>(copies.operation());
  EXPECT_EQ(there.out.data, there.outs[0].data);
  EXPECT_NE(there.out.data, there.outs[1].data);
}

}  // namespace
}  // namespace flashmla::cases
