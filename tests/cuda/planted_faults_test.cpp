// Each planted fault is found under every seed and named by its line; without it nothing is found, and the
// result is the same under every schedule.
#include "planted_faults.h"

#include <gtest/gtest.h>

#include <cmath>
#include <sstream>
#include <string>
#include <vector>

#include "cuda/emulator/global_memory.h"
#include "cuda/emulator/settings.h"
#include "cuda/emulator/tensor_map.h"

namespace flashmla {
namespace {

using emulator::Mode;
using planted::kNumbers;

constexpr Mode kModes[] = {Mode::kRandom, Mode::kEarly, Mode::kLate};
constexpr std::uint64_t kSeeds = 10;

/// Input and output of a launch, and behind each what nobody may touch.
class Launch {
 public:
  Launch() : in_(2 * kNumbers, std::nanf("")), out_(2 * kNumbers, std::nanf("")) {
    for (int i = 0; i < kNumbers; ++i) in_[static_cast<std::size_t>(i)] = static_cast<float>(1 + i % 200);
    scope_.add("in", in_.data(), kNumbers * sizeof(float));
    scope_.add("out", out_.data(), kNumbers * sizeof(float));
  }

  void run(const planted::Case& planted, bool faulty, const emulator::Settings& settings) {
    const emulator::ScopedSettings scoped(settings);
    const emulator::TensorLayout layout{.data = reinterpret_cast<std::byte*>(in_.data()),
                                        .element_bytes = sizeof(float),
                                        .dimensions = 2,
                                        .sizes = {32, kNumbers / 32},
                                        .stride_bytes = {0, 32 * sizeof(float)},
                                        .box = {32, 16}};
    const planted::Params params{
        .in = in_.data(), .out = out_.data(), .map = emulator::encode_tensor_map(layout), .faulty = faulty};
    planted::clear_mark();
    emulator::launch(planted.kernel, planted.name, planted.config, params);
  }

  /// What the kernel wrote is right; the rest of the output is untouched.
  void expect_result(const planted::Case& planted) const {
    int written = 0;
    for (int i = 0; i < 2 * kNumbers; ++i) {
      const float result = out_[static_cast<std::size_t>(i)];
      if (std::isnan(result)) continue;
      ++written;
      ASSERT_LT(i, kNumbers);
      ASSERT_EQ(result, planted.expected(in_.data(), i)) << "number " << i;
    }
    EXPECT_GE(written, 32);
  }

 private:
  std::vector<float> in_;
  std::vector<float> out_;
  emulator::MemoryScope scope_;
};

std::string failure_of(const planted::Case& planted, const emulator::Settings& settings) {
  try {
    Launch().run(planted, true, settings);
  } catch (const emulator::Failure& failure) {
    return failure.what();
  }
  return "";
}

class PlantedFault : public testing::TestWithParam<planted::Case> {};

TEST_P(PlantedFault, IsFoundUnderEverySeedAndMode) {
  if constexpr (!emulator::kSeesAccesses) return;
  for (const Mode mode : kModes) {
    for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
      SCOPED_TRACE(testing::Message() << "mode " << static_cast<int>(mode) << ", seed " << seed);
      const std::string text = failure_of(GetParam(), {.seed = seed, .mode = mode, .checked = true});
      std::ostringstream place;
      place << planted::file_name() << ':' << planted::marked_line();
      EXPECT_NE(text.find(place.str()), std::string::npos) << "expected " << place.str() << ", got: " << text;
      EXPECT_NE(text.find(GetParam().name), std::string::npos) << text;
    }
  }
}

TEST_P(PlantedFault, WithoutTheFaultNothingIsFound) {
  for (const bool checked : {false, true}) {
    if (checked && !emulator::kSeesAccesses) continue;
    for (const Mode mode : kModes) {
      for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
        SCOPED_TRACE(testing::Message()
                     << "mode " << static_cast<int>(mode) << ", seed " << seed << ", checked " << checked);
        Launch launch;
        ASSERT_NO_THROW(launch.run(GetParam(), false, {.seed = seed, .mode = mode, .checked = checked}));
        launch.expect_result(GetParam());
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Emulator, PlantedFault, testing::ValuesIn(planted::cases()),
                         [](const auto& planted) { return std::string(planted.param.name); });

}  // namespace
}  // namespace flashmla
