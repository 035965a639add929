// The ceilings of a GPU that every measured rate is compared with.
#include "cli/gpu_ceilings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cases/random.h"
#include "cli/gpu_loops.h"
#include "cli/gpu_times.h"
#include "cli/spot_check.h"
#include "cuda/device.h"
#include "cuda/memory.h"
#include "cuda/timing.h"
#include "kv/float_types.h"

namespace flashmla::cli {
namespace {

using Bf16Matrix = std::vector<std::uint16_t>;

/// Rows and columns of the factors. Large enough that the last blocks, which leave SMs idle, do not matter.
constexpr int kSize = 8192;

double copy_gbs(int ordinal, double seconds) {
  constexpr std::size_t kMost = std::size_t{4} << 30;
  const std::size_t bytes = std::min(kMost, cuda::device_properties(ordinal).memory_bytes / 8);
  const cuda::DeviceMemory from(ordinal, bytes);
  const cuda::DeviceMemory to(ordinal, bytes);
  cuda::fill(from.data(), 0x5a, bytes);
  const cuda::Stream stream(ordinal);
  const auto copy = [&] { cuda::copy_on(stream, to.data(), from.data(), bytes); };
  return 2 * static_cast<double>(bytes) / time_on_gpu(stream, copy, 1, seconds).median * 1e-9;
}

double mma_peak_tflops(int ordinal, double seconds) {
  constexpr int kRounds = 16'384;
  const int blocks = 2 * cuda::device_properties(ordinal).multiprocessors;
  const cuda::DeviceMemory out(ordinal, sizeof(float) * kMmaPeakThreads * static_cast<std::size_t>(blocks));
  const cuda::Stream stream(ordinal);
  const auto multiply = [&] {
    launch_mma_peak(reinterpret_cast<float*>(out.data()), blocks, kRounds, stream.handle());
  };
  return mma_peak_flops() * kRounds * blocks / time_on_gpu(stream, multiply, 1, seconds).median * 1e-12;
}

/// Nearly normal numbers, drawn from a table: how much power a product takes depends on the numbers.
Bf16Matrix random_matrix(cases::Random& random) {
  std::vector<std::uint16_t> drawn(1 << 16);
  for (std::uint16_t& value : drawn) value = double_to_bf16(random.normal());
  Bf16Matrix matrix(std::size_t{kSize} * kSize);
  for (std::size_t i = 0; i < matrix.size(); i += 4) {
    const std::uint64_t bits = random.next();
    for (std::size_t j = 0; j < 4; ++j) matrix[i + j] = drawn[bits >> (16 * j) & 0xffff];
  }
  return matrix;
}

/// Compares some elements with sums in double precision.
void check_product(const Bf16Matrix& a, const Bf16Matrix& b, const Bf16Matrix& c, cases::Random& random) {
  for (int i = 0; i < 1000; ++i) {
    const auto row = static_cast<std::size_t>(random.between(0, kSize - 1));
    const auto column = static_cast<std::size_t>(random.between(0, kSize - 1));
    double expected = 0;
    for (std::size_t k = 0; k < kSize; ++k) {
      expected += double{bf16_to_float(a[row * kSize + k])} * bf16_to_float(b[column * kSize + k]);
    }
    // Half a unit of bf16, and what f32 loses in sums whose terms are near 1 and whose size is near 90.
    const double got = bf16_to_float(c[row * kSize + column]);
    if (!(std::abs(got - expected) <= std::abs(expected) / 256 + 0.05)) {
      throw Mismatch(fmt::format("the matrix product of the ceiling is {} at [{}, {}], expected {}", got, row,
                                 column, expected));
    }
  }
}

double mma_tflops(int ordinal, double seconds) {
  constexpr std::size_t kBytes = std::size_t{kSize} * kSize * sizeof(std::uint16_t);
  cases::Random random(1);
  const Bf16Matrix a = random_matrix(random);
  const Bf16Matrix b = random_matrix(random);
  const cuda::DeviceMemory factors(ordinal, 2 * kBytes);
  const cuda::DeviceMemory product(ordinal, kBytes);
  cuda::copy(factors.data(), a.data(), kBytes);
  cuda::copy(factors.data() + kBytes, b.data(), kBytes);
  cuda::fill(product.data(), 0xff, kBytes);
  const cuda::Stream stream(ordinal);
  const MmaProduct multiplied{.a = factors.data(),
                              .b = factors.data() + kBytes,
                              .c = product.data(),
                              .m = kSize,
                              .n = kSize,
                              .k = kSize};
  const int shared_memory = cuda::device_properties(ordinal).shared_memory;
  const auto multiply = [&] { launch_mma_product(multiplied, shared_memory, stream.handle()); };
  const Times times = time_on_gpu(stream, multiply, 1, seconds);
  Bf16Matrix c(a.size());
  cuda::copy(c.data(), product.data(), kBytes);
  check_product(a, b, c, random);
  return 2.0 * kSize * kSize * kSize / times.median * 1e-12;
}

}  // namespace

GpuCeilings measure_gpu_ceilings(int ordinal, double seconds) {
  return {.copy_gbs = copy_gbs(ordinal, seconds),
          .mma_tflops = mma_tflops(ordinal, seconds),
          .mma_peak_tflops = mma_peak_tflops(ordinal, seconds)};
}

void raise(GpuCeilings& ceilings, const GpuCeilings& again) {
  ceilings.copy_gbs = std::max(ceilings.copy_gbs, again.copy_gbs);
  ceilings.mma_tflops = std::max(ceilings.mma_tflops, again.mma_tflops);
  ceilings.mma_peak_tflops = std::max(ceilings.mma_peak_tflops, again.mma_peak_tflops);
}

}  // namespace flashmla::cli
