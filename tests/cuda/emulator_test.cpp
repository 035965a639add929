// What the emulator does with launches: who runs, in which order, with which memory, and how failures read.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "cuda/emulator/global_memory.h"
#include "cuda/emulator/launch.h"
#include "cuda/emulator/settings.h"
#include "cuda/emulator/tensor_map.h"
#include "emulator_kernels.h"

namespace flashmla {
namespace {

using emulator::Failure;
using emulator::Mode;
using emulator::ScopedSettings;
using Words = std::vector<std::uint32_t>;

/// Runs `launch` and returns the text of its failure; empty if there was none.
template <class Launch>
std::string failure_of(Launch&& launch) {
  try {
    launch();
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "";
}

TEST(EmulatorLaunch, RunsEachThreadOfTheGridOnce) {
  const std::uint32_t threads = 4 * 3 * 2 * 5 * 4 * 2;
  Words out(threads);
  emulator::launch(emulated::number_threads, "number_threads",
                   {.grid = {4, 3, 2}, .block = {5, 4, 2}, .shared_bytes = 0, .cluster = 1},
                   emulated::Sizes{out.data()});
  Words expected(threads);
  std::iota(expected.begin(), expected.end(), 0u);
  EXPECT_EQ(out, expected);
}

TEST(EmulatorLaunch, NeighboursAlongXAreACluster) {
  Words out(8);
  emulator::launch(emulated::number_threads, "number_threads",
                   {.grid = {4, 2, 1}, .block = {1, 1, 1}, .shared_bytes = 0, .cluster = 2},
                   emulated::Sizes{out.data()});
  EXPECT_EQ(out, (Words{0, 1000001, 2, 1000003, 4, 1000005, 6, 1000007}));
}

Words warp_order(std::uint64_t seed) {
  const ScopedSettings scoped({.seed = seed});
  std::uint32_t counter = 0;
  Words order(32, ~0u);
  emulator::launch(emulated::count_warps, "count_warps", {.block = {1024, 1, 1}},
                   emulated::Sum{&counter, order.data()});
  return order;
}

TEST(EmulatorLaunch, OneSeedIsOneScheduleAndAnotherIsAnother) {
  EXPECT_EQ(warp_order(1), warp_order(1));
  EXPECT_NE(warp_order(1), warp_order(2));
}

TEST(EmulatorLaunch, AtomicAdditionsOfBlocksOnSeveralHostThreadsAreAllCounted) {
  const ScopedSettings scoped({.threads = 4});
  std::uint32_t counter = 0;
  Words order(1000, ~0u);
  emulator::launch(emulated::count_warps, "count_warps", {.grid = {1000, 1, 1}, .block = {32, 1, 1}},
                   emulated::Sum{&counter, order.data()});
  EXPECT_EQ(counter, 1000u);
  EXPECT_EQ(std::ranges::count(order, 0u), 1000);
}

TEST(EmulatorLaunch, FreshSharedMemoryIsNaNInEachBlock) {
  Words out(256);
  emulator::launch(emulated::read_fresh_shared_memory, "read_fresh_shared_memory",
                   {.grid = {3, 1, 1}, .block = {1, 1, 1}, .shared_bytes = 1024},
                   emulated::Fresh{out.data(), 256});
  EXPECT_EQ(std::ranges::count(out, ~0u), 256);
}

TEST(EmulatorLaunch, SharedMemoryBeyondTheDevicesLimitIsAFailure) {
  const ScopedSettings scoped({.device = {.shared_bytes_per_block = 99 * 1024}});
  Words out(1);
  const auto launch = [&](std::size_t bytes) {
    emulator::launch(emulated::read_fresh_shared_memory, "too_large", {.shared_bytes = bytes},
                     emulated::Fresh{out.data(), 1});
  };
  EXPECT_NO_THROW(launch(99 * 1024));
  EXPECT_EQ(failure_of([&] { launch(99 * 1024 + 1); }),
            "kernel too_large: a block needs 101377 bytes of shared memory, this device has 101376");
}

TEST(EmulatorLaunch, ABlockOfMoreThan1024ThreadsIsAFailure) {
  Words out(2048);
  EXPECT_THROW(emulator::launch(emulated::number_threads, "number_threads", {.block = {1025, 1, 1}},
                                emulated::Sizes{out.data()}),
               Failure);
}

TEST(EmulatorLaunch, AClusterThatDoesNotDivideTheGridIsAFailure) {
  Words out(8);
  EXPECT_THROW(emulator::launch(emulated::number_threads, "number_threads",
                                {.grid = {3, 1, 1}, .block = {1, 1, 1}, .shared_bytes = 0, .cluster = 2},
                                emulated::Sizes{out.data()}),
               Failure);
}

TEST(EmulatorLaunch, ASpinOnAFlagEndsWhenAnotherThreadSetsIt) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const ScopedSettings scoped({.seed = seed});
    std::uint32_t flag = 0;
    emulator::launch(emulated::spin, "spin", {.block = {64, 1, 1}}, emulated::Spin{&flag, true});
    EXPECT_EQ(flag, 1u);
  }
}

TEST(EmulatorFailure, ASpinThatNobodyCanEndIsReported) {
  std::uint32_t flag = 0;
  const std::string text = failure_of(
      [&] { emulator::launch(emulated::spin, "spin", {.block = {64, 1, 1}}, emulated::Spin{&flag, false}); });
  EXPECT_NE(text.find("no thread can go on"), std::string::npos) << text;
  EXPECT_NE(text.find("1 thread (0,0,0)"), std::string::npos) << text;
  EXPECT_NE(text.find("emulator_kernels.cu:"), std::string::npos) << text;
}

TEST(EmulatorFailure, NamesTheBlockAndTheThreadOfAHelper) {
  const ScopedSettings scoped({.threads = 3});
  const std::string text = failure_of([&] {
    emulator::launch(emulated::fail_in_one_block, "fail_in_one_block",
                     {.grid = {50, 1, 1}, .block = {32, 1, 1}}, emulated::FailInBlock{37, 5});
  });
  EXPECT_NE(text.find("kernel fail_in_one_block, block (37,0,0), thread"), std::string::npos) << text;
  EXPECT_NE(text.find("(5,0,0)"), std::string::npos) << text;
}

TEST(EmulatorFailure, ALaunchAfterAFailureIsAsGoodAsNew) {
  EXPECT_THROW(emulator::launch(emulated::fail_in_one_block, "fail_in_one_block", {.block = {32, 1, 1}},
                                emulated::FailInBlock{0, 5}),
               Failure);
  EXPECT_NO_THROW(emulator::launch(emulated::fail_in_one_block, "fail_in_one_block", {.block = {32, 1, 1}},
                                   emulated::FailInBlock{1, 5}));
}

TEST(EmulatorFailure, ADeadlockListsWhatEachGroupOfThreadsWaitsFor) {
  const std::string text = failure_of([&] {
    emulator::launch(emulated::wait_for_ever, "wait_for_ever", {.block = {96, 1, 1}, .shared_bytes = 64},
                     emulated::Deadlock{});
  });
  EXPECT_NE(text.find("32 threads from (0,0,0) to (31,0,0)"), std::string::npos) << text;
  EXPECT_NE(text.find("32 threads from (32,0,0) to (63,0,0)"), std::string::npos) << text;
  EXPECT_NE(text.find("1 thread (70,0,0)"), std::string::npos) << text;
  EXPECT_NE(text.find("waiting for an mbarrier"), std::string::npos) << text;
}

/// The failure of a kernel that reads `in[at]` of a tensor of 4 rows of 8 numbers, 16 apart.
std::string failure_of_read(std::int64_t at, bool checked) {
  const ScopedSettings scoped({.checked = checked});
  std::vector<float> in(64, 1.0f);
  float out = 0;
  emulator::MemoryScope scope;
  scope.add(emulator::Region("in", in.data(), sizeof(float), {{4, 16 * sizeof(float)}, {8, sizeof(float)}}));
  scope.add("out", &out, sizeof(out));
  return failure_of([&] {
    emulator::launch(emulated::copy_number, "copy_number", {}, emulated::Gap{in.data(), &out, at});
  });
}

TEST(EmulatorMemory, AGapBetweenRowsIsNoPartOfATensor) {
  if constexpr (!emulator::kSeesAccesses) return;
  for (const int at : {0, 7, 16, 23, 48, 55}) EXPECT_EQ(failure_of_read(at, true), "") << at;
  for (const int at : {8, 15, 24, 47}) {
    EXPECT_NE(failure_of_read(at, true).find("in a gap of in"), std::string::npos) << at;
  }
  EXPECT_NE(failure_of_read(-1, true).find("4 bytes in front of in"), std::string::npos);
  EXPECT_NE(failure_of_read(56, true).find("up to 4 bytes behind the end of in"), std::string::npos);
}

TEST(EmulatorMemory, PlainAccessesAreSeenInCheckedModeOnly) { EXPECT_EQ(failure_of_read(8, false), ""); }

TEST(EmulatorMemory, WithoutAScopeEverythingMayBeTouched) {
  const ScopedSettings scoped({.checked = emulator::kSeesAccesses});
  const float in = 3;
  float out = 0;
  emulator::launch(emulated::copy_number, "copy_number", {}, emulated::Gap{&in, &out, 0});
  EXPECT_EQ(out, 3);
}

TEST(EmulatorCopies, WhatIsNotCopiedIsZeroAndNotRead) {
  for (int numbers = 0; numbers <= 4; ++numbers) {
    alignas(16) const float in[4] = {1, 2, 3, 4};
    float out[8];
    emulator::MemoryScope scope;
    scope.add("in", in, static_cast<std::size_t>(numbers) * sizeof(float));
    scope.add("out", out, sizeof(out));
    emulator::launch(emulated::copy_part, "copy_part", {.shared_bytes = sizeof(out)},
                     emulated::PartCopy{in, out, numbers});
    for (int i = 0; i < 8; ++i) EXPECT_EQ(out[i], i % 4 < numbers ? in[i % 4] : 0) << i;
  }
}

/// A tensor of 2 planes of 5 rows of 12 words, numbered from 1.
struct Tensor {
  Words words = Words(2 * 5 * 12);
  emulator::TensorLayout layout;

  Tensor() {
    std::iota(words.begin(), words.end(), 1u);
    layout = {.data = reinterpret_cast<std::byte*>(words.data()),
              .element_bytes = 4,
              .dimensions = 2,
              .sizes = {12, 10, 1, 1},
              .stride_bytes = {4, 48, 0, 0},
              .box = {8, 3, 1, 1},
              .swizzle = emulator::Swizzle::kNone};
  }
};

Words load(const emulator::TensorLayout& layout, std::int32_t x, std::int32_t y, std::int32_t z = -1) {
  Words out(layout.box_bytes() / 4);
  const emulated::BoxCopy params{.map = emulator::encode_tensor_map(layout),
                                 .corner = {x, y, z},
                                 .out = out.data(),
                                 .words = layout.box_bytes() / 4};
  emulator::launch(emulated::load_box, "load_box", {.block = {32, 1, 1}, .shared_bytes = 17 * 1024}, params);
  return out;
}

TEST(EmulatorTensorMap, ABoxIsCopiedRowByRow) {
  const Tensor tensor;
  EXPECT_EQ(load(tensor.layout, 4, 1), (Words{17, 18, 19, 20, 21, 22, 23, 24, 29, 30, 31, 32,  //
                                              33, 34, 35, 36, 41, 42, 43, 44, 45, 46, 47, 48}));
}

TEST(EmulatorTensorMap, WhatLiesOutsideOfTheTensorIsZero) {
  const Tensor tensor;
  EXPECT_EQ(load(tensor.layout, -4, -1), (Words{0, 0, 0, 0, 0, 0, 0, 0, 0,  0,  0,  0,  //
                                                1, 2, 3, 4, 0, 0, 0, 0, 13, 14, 15, 16}));
  EXPECT_EQ(load(tensor.layout, 8, 9), (Words{117, 118, 119, 120, 0, 0, 0, 0, 0, 0, 0, 0,  //
                                              0,   0,   0,   0,   0, 0, 0, 0, 0, 0, 0, 0}));
}

TEST(EmulatorTensorMap, TheThirdCoordinateIsAPlaneWithEdgesOfItsOwn) {
  Tensor tensor;
  tensor.layout.dimensions = 3;
  tensor.layout.sizes = {12, 5, 2, 1};
  tensor.layout.stride_bytes = {4, 48, 240, 0};
  EXPECT_EQ(load(tensor.layout, 0, 3, 0), (Words{37, 38, 39, 40, 41, 42, 43, 44, 49, 50, 51, 52,  //
                                                 53, 54, 55, 56, 0,  0,  0,  0,  0,  0,  0,  0}));
  EXPECT_EQ(load(tensor.layout, 0, 0, 1)[0], 61u);
}

TEST(EmulatorTensorMap, SwizzledRowsExchangeTheirChunks) {
  Words words(8 * 32);
  std::iota(words.begin(), words.end(), 0u);
  const Words image = load({.data = reinterpret_cast<std::byte*>(words.data()),
                            .element_bytes = 4,
                            .dimensions = 2,
                            .sizes = {32, 8, 1, 1},
                            .stride_bytes = {4, 128, 0, 0},
                            .box = {32, 8, 1, 1},
                            .swizzle = emulator::Swizzle::k128},
                           0, 0);
  for (std::uint32_t row = 0; row < 8; ++row) {
    for (std::uint32_t chunk = 0; chunk < 8; ++chunk) {
      EXPECT_EQ(image[32 * row + 4 * (chunk ^ row)], 32 * row + 4 * chunk) << row << ", " << chunk;
    }
  }
}

void store(const emulator::TensorLayout& layout, std::int32_t x, std::int32_t y) {
  const emulated::BoxStore params{
      .map = emulator::encode_tensor_map(layout), .corner = {x, y}, .words = layout.box_bytes() / 4};
  emulator::launch(emulated::store_box, "store_box", {.block = {32, 1, 1}, .shared_bytes = 17 * 1024},
                   params);
}

TEST(EmulatorTensorMap, AStoreLeavesOutWhatLiesOutside) {
  Tensor tensor;
  const Words before = tensor.words;
  store(tensor.layout, 8, 8);
  Words expected = before;
  std::copy_n((Words{1, 2, 3, 4}).begin(), 4, expected.begin() + 8 * 12 + 8);
  std::copy_n((Words{9, 10, 11, 12}).begin(), 4, expected.begin() + 9 * 12 + 8);
  EXPECT_EQ(tensor.words, expected);
}

TEST(EmulatorTensorMap, AStoreDoesNotBeginInFrontOfTheTensor) {
  const Tensor tensor;
  EXPECT_THROW(store(tensor.layout, -4, 0), emulator::Failure);
  EXPECT_THROW(store(tensor.layout, 0, -1), emulator::Failure);
}

TEST(EmulatorTensorMap, ABoxBeginsAtAMultipleOf16Bytes) {
  const Tensor tensor;
  EXPECT_THROW(load(tensor.layout, 2, 0), emulator::Failure);
  EXPECT_THROW(load(tensor.layout, -1, 0), emulator::Failure);
}

TEST(EmulatorTensorMap, AMapThatHardwareWouldRefuseIsRefused) {
  const Tensor tensor;
  emulator::TensorLayout odd_stride = tensor.layout;
  odd_stride.stride_bytes[1] = 52;
  EXPECT_THROW(emulator::encode_tensor_map(odd_stride), std::invalid_argument);
  emulator::TensorLayout wide_row = tensor.layout;
  wide_row.swizzle = emulator::Swizzle::k32;
  wide_row.box[0] = 12;
  EXPECT_THROW(emulator::encode_tensor_map(wide_row), std::invalid_argument);
}

TEST(EmulatorWgmma, ChainsOfProductsOverlapAndGoOn) {
  using emulated::kChainColumns;
  using emulated::kChainDepth;
  using emulated::kChainRows;
  std::vector<float> a(kChainRows * kChainDepth);
  std::vector<float> b(2 * kChainColumns * kChainDepth);
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i * 7 % 11) - 5;
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i * 5 % 13) - 6;
  const auto product = [&](int matrix, int row, int column) {
    float sum = 0;
    for (int k = 0; k < kChainDepth; ++k) {
      sum += a[static_cast<std::size_t>(row * kChainDepth + k)] *
             b[static_cast<std::size_t>((matrix * kChainColumns + column) * kChainDepth + k)];
    }
    return sum;
  };
  for (const Mode mode : {Mode::kRandom, Mode::kEarly, Mode::kLate}) {
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      const ScopedSettings scoped({.seed = seed, .mode = mode, .checked = emulator::kSeesAccesses});
      std::vector<float> twice_and_one(kChainRows * kChainColumns);
      std::vector<float> other(kChainRows * kChainColumns);
      emulator::launch(emulated::multiply_in_chains, "multiply_in_chains",
                       {.block = {128, 1, 1}, .shared_bytes = 16 * 1024},
                       emulated::Chain{a.data(), b.data(), twice_and_one.data(), other.data()});
      for (int row = 0; row < kChainRows; ++row) {
        for (int column = 0; column < kChainColumns; ++column) {
          const auto at = static_cast<std::size_t>(row * kChainColumns + column);
          ASSERT_EQ(twice_and_one[at], 2 * product(0, row, column) + 1) << row << ", " << column;
          ASSERT_EQ(other[at], product(1, row, column)) << row << ", " << column;
        }
      }
    }
  }
}

}  // namespace
}  // namespace flashmla
