// The matrix product that is a ceiling of a GPU, run by the emulator: it is right in every element.
#include "cli/gpu_loops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cases/random.h"
#include "cuda/emulator/global_memory.h"
#include "cuda/emulator/settings.h"
#include "kv/float_types.h"

namespace flashmla::cli {
namespace {

using Bf16Matrix = std::vector<std::uint16_t>;

Bf16Matrix random_matrix(int rows, int columns, cases::Random& random) {
  Bf16Matrix matrix(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns));
  for (std::uint16_t& value : matrix) value = double_to_bf16(random.normal());
  return matrix;
}

void expect_right_product(int m, int n, int k, int shared_memory, std::uint64_t seed) {
  cases::Random random(seed);
  const Bf16Matrix a = random_matrix(m, k, random);
  const Bf16Matrix b = random_matrix(n, k, random);
  Bf16Matrix c(static_cast<std::size_t>(m) * static_cast<std::size_t>(n), 0xffff);
  emulator::MemoryScope scope;
  scope.add("a", a.data(), a.size() * sizeof(a[0]));
  scope.add("b", b.data(), b.size() * sizeof(b[0]));
  scope.add("c", c.data(), c.size() * sizeof(c[0]));
  launch_mma_product({.a = a.data(), .b = b.data(), .c = c.data(), .m = m, .n = n, .k = k}, shared_memory,
                     nullptr);
  for (int row = 0; row < m; ++row) {
    for (int column = 0; column < n; ++column) {
      double expected = 0;
      for (int i = 0; i < k; ++i) {
        expected += double{bf16_to_float(a[static_cast<std::size_t>(row * k + i)])} *
                    bf16_to_float(b[static_cast<std::size_t>(column * k + i)]);
      }
      const double got = bf16_to_float(c[static_cast<std::size_t>(row * n + column)]);
      ASSERT_LE(std::abs(got - expected), std::abs(expected) / 256 + 1e-3) << row << " " << column;
    }
  }
}

class MmaProductOnTheEmulator : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(SharedMemory, MmaProductOnTheEmulator, testing::Values(101376, 232448));

TEST_P(MmaProductOnTheEmulator, IsRightWhateverTheNumberOfTiles) {
  expect_right_product(128, 256, 64, GetParam(), 1);
  expect_right_product(9 * 128, 256, 3 * 64, GetParam(), 2);
  expect_right_product(2 * 128, 2 * 256, 6 * 64, GetParam(), 3);
}

TEST_P(MmaProductOnTheEmulator, HasNoRaces) {
  for (const emulator::Mode mode : {emulator::Mode::kRandom, emulator::Mode::kEarly, emulator::Mode::kLate}) {
    const emulator::ScopedSettings settings({.seed = 7, .mode = mode, .checked = emulator::kSeesAccesses});
    expect_right_product(128, 256, 6 * 64, GetParam(), 4);
  }
}

}  // namespace
}  // namespace flashmla::cli
