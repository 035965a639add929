// The list of kernels.
#include "flashmla/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

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
    EXPECT_TRUE(kernel.available) << kernel.name;
    EXPECT_FALSE(kernel.reason.empty()) << kernel.name;
    EXPECT_TRUE(kernel.name.starts_with(std::string(kernel.backend) + "/")) << kernel.name;
  }
  for (const KernelInfo& kernel : kernels({DeviceType::kCuda, 0})) {
    if (kernel.backend != "cpu" && kernel.backend != "reference") continue;
    EXPECT_FALSE(kernel.available) << kernel.name;
    EXPECT_EQ(kernel.reason, "needs tensors in CPU memory");
  }
}

TEST(Kernels, AreTriedFastestFirst) {
  std::string first;
  for (const KernelInfo& kernel : kernels()) {
    if (kernel.operation == "dense_decode" && first.empty()) first = kernel.backend;
  }
  EXPECT_EQ(first, "cpu");
}

TEST(Kernels, RunWhereTheyArePinned) {
  Operations::for_each([]<class Op>() {
    const Valid<Op> valid;
    for (const KernelInfo& kernel : kernels()) {
      if (kernel.operation != Op::fields().operation) continue;
      Execution on;
      on.backend = kernel.backend;
      EXPECT_NO_THROW(run_with_workspace(valid.op, on)) << kernel.name << " " << kernel.operation;
    }
  });
}

}  // namespace
}  // namespace flashmla
