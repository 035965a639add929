// What is known of GPUs, and what the environment may change about them.
#include "cuda/device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <string>
#include <vector>

#include "cuda/memory.h"
#include "cuda/shared_memory_limit.h"
#include "cuda/timing.h"
#include "flashmla/error.h"
#include "gpus.h"

namespace flashmla {
namespace {

TEST(SharedMemoryLimit, IsThatOfTheGpuUnlessTheEnvironmentSaysLess) {
  EXPECT_EQ(cuda::limited_shared_memory(nullptr, 232448), 232448);
  EXPECT_EQ(cuda::limited_shared_memory("", 232448), 232448);
  EXPECT_EQ(cuda::limited_shared_memory("101376", 232448), 101376);
  EXPECT_EQ(cuda::limited_shared_memory("49152", 232448), 49152);
}

TEST(SharedMemoryLimit, IsNeverMoreThanTheGpuHas) {
  EXPECT_EQ(cuda::limited_shared_memory("232448", 101376), 101376);
}

TEST(SharedMemoryLimit, ThatMakesNoSenseIsAnError) {
  for (const char* value : {"99K", "-1", "0", "49151", " 101376", "99999999999", "x"}) {
    try {
      cuda::limited_shared_memory(value, 232448);
      ADD_FAILURE() << value;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kValue);
      const std::string text = error.what();
      EXPECT_NE(text.find("FLASHMLA_CUDA_SHARED_MEMORY"), std::string::npos) << text;
      EXPECT_NE(text.find(std::string("got \"") + value + "\""), std::string::npos) << text;
    }
  }
}

TEST(Gpu, ThatDoesNotExistIsAnError) {
  for (const int ordinal : {-1, cuda::device_count()}) {
    EXPECT_THROW(cuda::device_properties(ordinal), Error) << ordinal;
    EXPECT_THROW(cuda::shared_memory_limit(ordinal), Error) << ordinal;
    EXPECT_THROW(cuda::DeviceMemory(ordinal, 1), Error) << ordinal;
  }
}

class EachGpu : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(, EachGpu, testing::ValuesIn(gpus()));
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(EachGpu);

TEST_P(EachGpu, HasProperties) {
  const cuda::DeviceProperties& gpu = cuda::device_properties(GetParam());
  EXPECT_FALSE(gpu.name.empty());
  EXPECT_GE(gpu.architecture(), 50);
  EXPECT_GT(gpu.multiprocessors, 0);
  EXPECT_GE(gpu.shared_memory, 48 * 1024);
  EXPECT_GT(gpu.l2_bytes, 0U);
  EXPECT_GT(gpu.memory_bytes, gpu.l2_bytes);
  EXPECT_GT(gpu.clock_khz, 0);
  EXPECT_GT(gpu.memory_clock_khz, 0);
  EXPECT_FALSE(gpu.pci_bus_id.empty());
}

TEST_P(EachGpu, KeepsItsSharedMemoryWithinTheEnvironmentsLimit) {
  setenv("FLASHMLA_CUDA_SHARED_MEMORY", "49152", 1);
  EXPECT_EQ(cuda::shared_memory_limit(GetParam()), 49152);
  unsetenv("FLASHMLA_CUDA_SHARED_MEMORY");
  EXPECT_EQ(cuda::shared_memory_limit(GetParam()), cuda::device_properties(GetParam()).shared_memory);
}

TEST_P(EachGpu, GivesBackWhatWasCopiedToIt) {
  std::vector<int> sent(10'000);
  std::iota(sent.begin(), sent.end(), 1);
  const std::size_t bytes = sent.size() * sizeof(int);
  const cuda::DeviceMemory first(GetParam(), bytes);
  const cuda::DeviceMemory second(GetParam(), bytes);
  cuda::copy(first.data(), sent.data(), bytes);
  cuda::fill(second.data(), 0xff, bytes);
  const cuda::Stream stream(GetParam());
  cuda::copy_on(stream, second.data(), first.data(), bytes / 2);
  stream.synchronize();
  std::vector<int> got(sent.size());
  cuda::copy(got.data(), second.data(), bytes);
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], i < got.size() / 2 ? sent[i] : -1) << i;
}

TEST_P(EachGpu, RunsAGraphAsOftenAsItIsLaunched) {
  const cuda::DeviceMemory memory(GetParam(), 3);
  const cuda::Stream stream(GetParam());
  cuda::fill(memory.data(), 1, 1);
  cuda::fill(memory.data() + 1, 2, 1);
  cuda::fill(memory.data() + 2, 3, 1);
  // Shifts by one byte: 1 2 3, 2 3 3, 3 3 3.
  const cuda::Graph graph(stream, [&] {
    cuda::copy_on(stream, memory.data(), memory.data() + 1, 1);
    cuda::copy_on(stream, memory.data() + 1, memory.data() + 2, 1);
  });
  for (const int expected : {1, 2, 3}) {
    unsigned char first = 0;
    cuda::copy(&first, memory.data(), 1);
    EXPECT_EQ(first, expected);
    graph.launch();
    stream.synchronize();
  }
}

TEST_P(EachGpu, TimesWhatItRuns) {
  constexpr std::size_t kBytes = std::size_t{64} << 20;
  const cuda::DeviceMemory from(GetParam(), kBytes);
  const cuda::DeviceMemory to(GetParam(), kBytes);
  const cuda::Stream stream(GetParam());
  const auto times = [&](std::size_t bytes) {
    std::vector<double> all =
        cuda::time_each(stream, [&] { cuda::copy_on(stream, to.data(), from.data(), bytes); }, 11);
    std::sort(all.begin(), all.end());
    return all[5];
  };
  EXPECT_GT(times(kBytes), 2 * times(kBytes / 16));
}

TEST_P(EachGpu, SaysHowMuchMemoryItDoesNotHave) {
  const std::size_t bytes = std::size_t{1} << 50;
  try {
    const cuda::DeviceMemory memory(GetParam(), bytes);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kDevice);
    EXPECT_NE(std::string(error.what()).find(std::to_string(bytes)), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace flashmla
