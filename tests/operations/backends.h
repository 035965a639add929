// Runs a test once on every backend of the library.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "cases/compare.h"
#include "cases/on_device.h"
#include "cases/tensor.h"
#include "flashmla/flashmla.h"

namespace flashmla {

/// Names of the backends with kernels that run on this device of this machine, each once.
inline std::vector<std::string> backends_on(Device device) {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : kernels(device)) {
    const std::string name(kernel.backend);
    if (kernel.available && std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  return names;
}

/// Those of the CPU.
inline std::vector<std::string> host_backends() { return backends_on({}); }

/// Those of the CPU and of the first GPU.
inline std::vector<std::string> backends() {
  std::vector<std::string> names = host_backends();
  for (const std::string& name : backends_on({DeviceType::kCuda, 0})) names.push_back(name);
  return names;
}

/// Whether a backend has a kernel for an operation of a case.
inline bool computes(const std::string& backend, std::string_view operation) {
  const std::string_view needed = operation == "mha" ? "mha_forward" : operation;
  for (const KernelInfo& kernel : kernels()) {
    if (kernel.backend == backend && kernel.operation == needed) return true;
  }
  return false;
}

inline std::string backend_name(const testing::TestParamInfo<std::string>& info) { return info.param; }

/// Pins a backend, on its device.
inline Execution on_backend(const std::string& backend) {
  Execution on;
  on.backend = backend;
  on.device = cases::device_of(backend);
  return on;
}

/// Runs `op`, whose tensors are in host memory, with a workspace of exactly the promised size, full of NaN.
template <class Op>
void run_on(const std::string& backend, const Op& op, int threads = 0) {
  Execution on = on_backend(backend);
  on.threads = threads;
  cases::run_on(op, on);
}

/// All bytes of a tensor, gaps included.
inline std::vector<std::byte> bytes_of(const cases::Tensor& tensor) {
  return {tensor.memory().begin(), tensor.memory().end()};
}

inline void expect_close(const char* operation, const char* output, const cases::Tensor& got,
                         const cases::Tensor& expected) {
  const cases::Comparison result = cases::compare(operation, output, got.view(), expected.view());
  EXPECT_TRUE(result.passed) << result.description;
}

class OnBackend : public testing::TestWithParam<std::string> {
 protected:
  /// What a backend of a GPU does not compute is computed on the CPU, and the test counts as skipped.
  template <class Op>
  void run(const Op& op, int threads = 0) const {
    std::string why = GetParam() + " has no " + std::string(Op::fields().operation);
    if (computes(GetParam(), Op::fields().operation)) {
      try {
        return run_on(GetParam(), op, threads);
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::kUnsupported || cases::device_of(GetParam()) == Device{}) throw;
        why = error.what();
      }
    }
    run_on("cpu", op, threads);
    GTEST_SKIP() << why;
  }
};

}  // namespace flashmla

/// Declares a test suite whose tests run on every backend.
#define FLASHMLA_ON_EVERY_BACKEND(Suite)         \
  class Suite : public ::flashmla::OnBackend {}; \
  INSTANTIATE_TEST_SUITE_P(, Suite, testing::ValuesIn(::flashmla::backends()), ::flashmla::backend_name)

/// The same on every backend of the CPU.
#define FLASHMLA_ON_EVERY_HOST_BACKEND(Suite)    \
  class Suite : public ::flashmla::OnBackend {}; \
  INSTANTIATE_TEST_SUITE_P(, Suite, testing::ValuesIn(::flashmla::host_backends()), ::flashmla::backend_name)
