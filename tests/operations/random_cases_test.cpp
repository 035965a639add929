// Random cases of every operation, each backend against the reference.
//
// FLASHMLA_RANDOM_CASES: how many for each operation. FLASHMLA_RANDOM_SEED: seed of the first one; the
// others follow by counting up; `random` takes a fresh one.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <tuple>

#include "backends.h"
#include "cases/case.h"
#include "cases/random.h"

namespace flashmla {
namespace {

std::string variable(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

std::uint64_t first_seed() {
  const std::string text = variable("FLASHMLA_RANDOM_SEED", "20250601");
  if (text != "random") return std::stoull(text);
  std::random_device device;
  return device();
}

std::vector<std::string> fast_backends() {
  std::vector<std::string> names = backends();
  std::erase(names, "reference");
  return names;
}

class RandomCases : public testing::TestWithParam<std::tuple<std::string, std::string>> {};

std::string name_of_pair(const testing::TestParamInfo<RandomCases::ParamType>& info) {
  return std::get<0>(info.param) + "_" + std::get<1>(info.param);
}

/// Runs a case on a backend and on the reference; the text of the first difference, or nothing.
std::string difference(const cases::Case& what, const std::string& backend) {
  Execution on;
  on.backend = "reference";
  const auto expected = cases::run_case(what, on);
  on.backend = backend;
  const auto got = cases::run_case(what, on);
  if (got.size() != expected.size()) return "other outputs";
  for (std::size_t i = 0; i < got.size(); ++i) {
    const cases::Comparison result =
        cases::compare(got[i].operation, got[i].output, got[i].got.view(), expected[i].got.view());
    if (!result.passed) return result.description;
  }
  return {};
}

TEST_P(RandomCases, AgreeWithTheReference) {
  const auto& [operation, backend] = GetParam();
  const std::uint64_t seed = first_seed();
  const std::uint64_t count = std::stoull(variable("FLASHMLA_RANDOM_CASES", "60"));
  for (std::uint64_t i = 0; i < count; ++i) {
    cases::Random random(seed + i);
    const cases::Case what = cases::random_case(operation, random);
    std::string found;
    try {
      found = difference(what, backend);
    } catch (const Error& error) {
      found = error.what();
    }
    EXPECT_EQ(found, "") << what.source << "\nTo run this case alone: FLASHMLA_RANDOM_SEED=" << seed + i
                         << " FLASHMLA_RANDOM_CASES=1, --gtest_filter=*RandomCases*" << operation << "_"
                         << backend;
  }
}

INSTANTIATE_TEST_SUITE_P(, RandomCases,
                         testing::Combine(testing::ValuesIn(cases::operation_names()),
                                          testing::ValuesIn(fast_backends())),
                         name_of_pair);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(RandomCases);

}  // namespace
}  // namespace flashmla
