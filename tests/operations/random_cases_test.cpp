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
  const auto expected = cases::run_case(what, on_backend("reference"));
  const auto got = cases::run_case(what, on_backend(backend));
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
  std::uint64_t unsupported = 0;
  for (std::uint64_t i = 0; i < count; ++i) {
    cases::Random random(seed + i);
    const cases::Case what = cases::random_case(operation, random);
    std::string found;
    try {
      found = difference(what, backend);
    } catch (const Error& error) {
      const bool on_gpu = cases::device_of(backend) != Device{};
      if (on_gpu && error.kind() == ErrorKind::kUnsupported) {
        ++unsupported;
      } else {
        found = error.what();
      }
    }
    EXPECT_EQ(found, "") << what.source << "\nTo run this case alone: FLASHMLA_RANDOM_SEED=" << seed + i
                         << " FLASHMLA_RANDOM_CASES=1, --gtest_filter=*RandomCases*" << operation << "_"
                         << backend;
  }
  RecordProperty("unsupported", std::to_string(unsupported));
  EXPECT_TRUE(count == 1 || 2 * unsupported < count) << backend << " does not take most of them";
}

/// Every operation on every backend that has it.
std::vector<RandomCases::ParamType> random_cases() {
  std::vector<RandomCases::ParamType> all;
  for (const std::string& operation : cases::operation_names()) {
    for (const std::string& backend : fast_backends()) {
      if (computes(backend, operation)) all.emplace_back(operation, backend);
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(, RandomCases, testing::ValuesIn(random_cases()), name_of_pair);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(RandomCases);

}  // namespace
}  // namespace flashmla
