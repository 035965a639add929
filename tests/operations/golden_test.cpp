// Recorded outputs of other people's kernels, reproduced by every backend.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <tuple>
#include <vector>

#include "backends.h"
#include "cases/case.h"

namespace flashmla {
namespace {

std::vector<std::string> golden_files() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(FLASHMLA_GOLDEN_DIR)) {
    if (entry.path().extension() == ".safetensors") names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

class GoldenCase : public testing::TestWithParam<std::tuple<std::string, std::string>> {};

TEST_P(GoldenCase, IsReproduced) {
  const auto& [name, backend] = GetParam();
  const cases::Case golden = cases::read_case(std::string(FLASHMLA_GOLDEN_DIR) + "/" + name + ".safetensors");
  Execution on;
  on.backend = backend;
  int compared = 0;
  for (const cases::Result& result : cases::run_case(golden, on)) {
    if (!result.expected.given()) continue;
    const cases::Comparison comparison =
        cases::compare(result.operation, result.output, result.got.view(), result.expected);
    EXPECT_TRUE(comparison.passed) << comparison.description;
    ++compared;
  }
  EXPECT_GT(compared, 0);
}

std::string name_of_pair(const testing::TestParamInfo<GoldenCase::ParamType>& info) {
  return std::get<0>(info.param) + "_" + std::get<1>(info.param);
}

INSTANTIATE_TEST_SUITE_P(, GoldenCase,
                         testing::Combine(testing::ValuesIn(golden_files()), testing::ValuesIn(backends())),
                         name_of_pair);

}  // namespace
}  // namespace flashmla
