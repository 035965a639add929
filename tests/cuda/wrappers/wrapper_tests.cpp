// The list of all tests of the functions of src/cuda/ptx/.
#include "wrapper_test.h"

namespace flashmla::wrappers {

std::vector<WrapperTest> wrapper_tests() {
  std::vector<WrapperTest> tests;
  for (const auto list : {thread_tests, memory_tests, cp_async_tests, mbarrier_tests, bulk_copy_tests,
                          multicast_tests, cluster_tests, control_tests, register_tests, matrix_tests,
                          store_matrix_tests, wgmma_tests, math_tests, e4m3_tests}) {
    for (WrapperTest& test : list()) tests.push_back(std::move(test));
  }
  return tests;
}

}  // namespace flashmla::wrappers
