// The list of kernels.
#include "flashmla/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <variant>

#include "cases/on_device.h"
#include "cuda/device.h"
#include "flashmla/flashmla.h"
#include "valid_operations.h"

namespace flashmla {
namespace {

TEST(Kernels, ListEveryOperationForEveryBackend) {
  std::set<std::string> listed;
  for (const KernelInfo& kernel : kernels()) {
    listed.insert(std::string(kernel.backend) + " " + std::string(kernel.operation));
  }
  for (const std::string backend : {"cpu", "reference"}) {
    Operations::for_each([&]<class Op>() {
      EXPECT_TRUE(listed.contains(backend + " " + std::string(Op::fields().operation)));
    });
  }
}

TEST(Kernels, OfTheCpuAreAvailableOnTheCpuAlone) {
  for (const KernelInfo& kernel : kernels()) {
    EXPECT_EQ(kernel.available, kernel.backend == "cpu" || kernel.backend == "reference") << kernel.name;
    EXPECT_FALSE(kernel.reason.empty()) << kernel.name;
    EXPECT_TRUE(kernel.name.starts_with(std::string(kernel.backend) + "/")) << kernel.name;
  }
  for (const KernelInfo& kernel : kernels({DeviceType::kCuda, 0})) {
    if (kernel.backend != "cpu" && kernel.backend != "reference") continue;
    EXPECT_FALSE(kernel.available) << kernel.name;
    EXPECT_EQ(kernel.reason, "needs tensors in CPU memory");
  }
}

TEST(Kernels, OfGpusAreUnavailableWithoutOne) {
  if (cuda::device_count() > 0) GTEST_SKIP() << "this machine has a GPU";
  for (const KernelInfo& kernel : kernels({DeviceType::kCuda, 0})) {
    if (kernel.backend != "portable") continue;
    EXPECT_FALSE(kernel.available) << kernel.name;
    EXPECT_TRUE(kernel.reason == "no device" || kernel.reason == "built without CUDA") << kernel.reason;
  }
}

TEST(Kernels, OfGpusNameWhatIsMissing) {
  if (cuda::device_count() > 0) GTEST_SKIP() << "this machine has a GPU";
  Valid<DenseDecode> valid;
  Execution on;
  on.backend = "portable";
  for (const DeviceType type : {DeviceType::kCpu, DeviceType::kCuda}) {
    on.device = {type, 0};
    const cases::ShapesOn there(valid.op, on.device);
    try {
      workspace_bytes(std::get<DenseDecode>(there.operation()), on);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
      EXPECT_NE(std::string(error.what()).find("portable/mma_sync"), std::string::npos) << error.what();
    }
  }
}

TEST(Kernels, AreTriedFastestFirst) {
  std::string first;
  for (const KernelInfo& kernel : kernels()) {
    if (kernel.operation == "dense_decode" && kernel.available && first.empty()) first = kernel.backend;
  }
  EXPECT_EQ(first, "cpu");
}

TEST(Kernels, RunWhereTheyArePinned) {
  Operations::for_each([]<class Op>() {
    const Valid<Op> valid;
    for (const KernelInfo& kernel : kernels()) {
      if (kernel.operation != Op::fields().operation || !kernel.available) continue;
      Execution on;
      on.backend = kernel.backend;
      EXPECT_NO_THROW(run_with_workspace(valid.op, on)) << kernel.name << " " << kernel.operation;
    }
  });
}

}  // namespace
}  // namespace flashmla
