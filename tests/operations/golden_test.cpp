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

cases::Case read_golden(const std::string& name) {
  return cases::read_case(std::string(FLASHMLA_GOLDEN_DIR) + "/" + name + ".safetensors");
}

class GoldenCase : public testing::TestWithParam<std::tuple<std::string, std::string>> {};

TEST_P(GoldenCase, IsReproduced) {
  const auto& [name, backend] = GetParam();
  const cases::Case golden = read_golden(name);
  const Execution on = on_backend(backend);
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

/// Every file on every backend that has its operation.
std::vector<GoldenCase::ParamType> golden_cases() {
  std::vector<GoldenCase::ParamType> all;
  for (const std::string& file : golden_files()) {
    const std::string operation = read_golden(file).operation;
    for (const std::string& backend : backends()) {
      if (computes(backend, operation)) all.emplace_back(file, backend);
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(, GoldenCase, testing::ValuesIn(golden_cases()), name_of_pair);

}  // namespace
}  // namespace flashmla
