// The functions of src/cuda/ptx/ give the same bits on the emulator as on a GPU: its outputs were written by
// `wrapper_outputs write h200.bin` on an H200.
#include <gtest/gtest.h>

#include <ostream>

#include "cuda/emulator/settings.h"
#include "cuda/wrappers/records.h"
#include "cuda/wrappers/wrapper_test.h"

namespace flashmla::wrappers {

/// In the text of failures.
static std::ostream& operator<<(std::ostream& stream, const WrapperTest& test) { return stream << test.name; }

namespace {

const Records& h200() {
  static const Records records = read_records(FLASHMLA_H200_OUTPUTS);
  return records;
}

class WrapperOutputs : public testing::TestWithParam<WrapperTest> {
 protected:
  static void run_with(const emulator::Settings& settings) {
    SCOPED_TRACE("seed " + std::to_string(settings.seed) + ", mode " +
                 std::to_string(static_cast<int>(settings.mode)) + (settings.checked ? ", checked" : ""));
    const emulator::ScopedSettings scope(settings);
    Outputs outputs;
    GetParam().run(outputs);
    for (const std::string& complaint : outputs.complaints()) ADD_FAILURE() << complaint;
    const auto expected = h200().find(GetParam().name);
    ASSERT_NE(expected, h200().end()) << "no outputs of an H200";
    EXPECT_EQ(difference(outputs.bytes(), expected->second), "");
  }
};

TEST_P(WrapperOutputs, AreThoseOfAnH200) {
  for (const auto mode : {emulator::Mode::kRandom, emulator::Mode::kEarly, emulator::Mode::kLate}) {
    for (std::uint64_t seed = 0; seed < 2; ++seed) run_with({.seed = seed, .mode = mode});
  }
}

TEST_P(WrapperOutputs, AreThoseOfAnH200WithAllChecks) {
  if (!emulator::kSeesAccesses) GTEST_SKIP() << "a build with AddressSanitizer does not see accesses";
  run_with({.seed = 7, .checked = true});
}

INSTANTIATE_TEST_SUITE_P(Emulator, WrapperOutputs, testing::ValuesIn(wrapper_tests()),
                         [](const auto& test) { return test.param.name; });

/// A test that lost its kernel would go unnoticed otherwise.
TEST(WrapperRecords, HaveATestEach) {
  std::size_t tests = 0;
  for (const WrapperTest& test : wrapper_tests()) tests += h200().count(test.name);
  EXPECT_EQ(tests, h200().size());
}

}  // namespace
}  // namespace flashmla::wrappers
