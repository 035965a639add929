// Runs a test once on every backend of the library.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "cases/compare.h"
#include "cases/tensor.h"
#include "flashmla/flashmla.h"

namespace flashmla {

/// Names of the backends that this machine can run, each once.
inline std::vector<std::string> backends() {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : kernels()) {
    const std::string name(kernel.backend);
    if (kernel.available && std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  return names;
}

inline std::string backend_name(const testing::TestParamInfo<std::string>& info) { return info.param; }

/// Runs `op` with a workspace of exactly the promised size, full of NaN.
template <class Op>
void run_on(const std::string& backend, const Op& op, int threads = 0) {
  Execution on;
  on.backend = backend;
  on.threads = threads;
  std::vector<std::byte> workspace(workspace_bytes(op, on), std::byte{0xff});
  on.workspace = workspace.data();
  on.workspace_size = workspace.size();
  run(op, on);
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
  template <class Op>
  void run(const Op& op, int threads = 0) const {
    run_on(GetParam(), op, threads);
  }
};

}  // namespace flashmla

/// Declares a test suite whose tests run on every backend.
#define FLASHMLA_ON_EVERY_BACKEND(Suite)         \
  class Suite : public ::flashmla::OnBackend {}; \
  INSTANTIATE_TEST_SUITE_P(, Suite, testing::ValuesIn(::flashmla::backends()), ::flashmla::backend_name)
