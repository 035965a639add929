// Numbers for the tests, the same on every machine for the same seed.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace flashmla::wrappers {

/// Its numbers are fixed by the C++ standard; those of the standard's distributions are not.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  std::uint32_t bits() { return static_cast<std::uint32_t>(engine_() >> 32); }
  /// Uniform in `[low, high]`, nearly.
  int between(int low, int high) {
    return low + static_cast<int>(engine_() % static_cast<std::uint64_t>(high - low + 1));
  }
  bool percent(int p) { return between(0, 99) < p; }

 private:
  std::mt19937_64 engine_;
};

inline std::vector<std::uint32_t> random_words(std::size_t count, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::uint32_t> words(count);
  for (auto& word : words) word = random.bits();
  return words;
}

/// Small integers, whose sums are exact in any order.
inline std::vector<float> random_integers(std::size_t count, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> numbers(count);
  for (auto& number : numbers) number = static_cast<float>(random.between(-1000, 1000));
  return numbers;
}

/// Arguments of functions: all f32 bit patterns alike, so every exponent and now and then NaN, with the
/// numbers at the borders of f32, bf16, f16 and e4m3 among them.
inline std::vector<float> any_floats(std::size_t count, std::uint64_t seed) {
  static constexpr float kBorders[] = {0.0f,
                                       1.0f,
                                       0x1p-126f,
                                       0x1p-149f,
                                       0x1.fffffep127f,
                                       0x1p-24f,
                                       0x1p-25f,
                                       0x1.8p-25f,
                                       65504.0f,
                                       65519.996f,
                                       65520.0f,
                                       0x1p-14f,
                                       0x1.ffp-15f,
                                       448.0f,
                                       464.0f,
                                       480.0f,
                                       0x1p-9f,
                                       0x1p-10f,
                                       0x1.8p-10f,
                                       0x1.fffffcp-127f,
                                       0x1p-133f,
                                       0x1.fep127f,
                                       0x1.ffp127f,
                                       0x1.01p0f,
                                       0x1.03p0f,
                                       0x1p-6f,
                                       0x1.002p0f,
                                       0x1.006p0f,
                                       17.0f,
                                       0x1.1p0f,
                                       0x1.3p0f,
                                       __builtin_huge_valf(),
                                       __builtin_nanf("")};
  Random random(seed);
  std::vector<float> numbers(count);
  for (auto& number : numbers) {
    if (random.percent(75)) {
      number = std::bit_cast<float>(random.bits());
    } else {
      const float border = kBorders[random.between(0, static_cast<int>(std::size(kBorders)) - 1)];
      number = random.percent(50) ? -border : border;
    }
  }
  return numbers;
}

}  // namespace flashmla::wrappers
