// Tests of ptx/math.h.
#include <cmath>
#include <string>

#include "buffer.h"
#include "cuda/launch.h"
#include "cuda/ptx/math.h"
#include "cuda/ptx/threads.h"
#include "values.h"
#include "wrapper_test.h"

namespace flashmla::wrappers {
namespace {

constexpr std::uint32_t kThreads = 128;
constexpr std::uint32_t kBlocks = 64;
constexpr std::uint32_t kCount = kThreads * kBlocks;

FLASHMLA_DEVICE std::uint32_t index_in_grid() {
  return ptx::block_index().x * kThreads + ptx::thread_index().x;
}

/// The bits of a NaN that comes from f32 arithmetic are not promised.
FLASHMLA_DEVICE std::uint32_t bits_of(float x) {
  return x != x ? 0x7fffffffu : __builtin_bit_cast(std::uint32_t, x);
}

struct FloatsParams {
  const float* in;  // 3 a thread
  std::uint32_t* out;
};

constexpr std::uint32_t kArithmeticResults = 4;

__global__ void arithmetic_kernel(const __grid_constant__ FloatsParams params) {
  const std::uint32_t i = index_in_grid();
  const float a = params.in[3 * i], b = params.in[3 * i + 1], c = params.in[3 * i + 2];
  std::uint32_t* const out = params.out + kArithmeticResults * i;
  out[0] = bits_of(ptx::fma(a, b, c));
  // Written so that a compiler could fuse them.
  out[1] = bits_of(ptx::add(ptx::multiply(a, b), c));
  out[2] = bits_of(ptx::add(a, b));
  out[3] = bits_of(ptx::max(a, b));
}

/// Thirds of all are triples of any bits (with zeros and pairs of one magnitude), of numbers that nearly
/// cancel, and of moderate numbers.
std::vector<float> triples() {
  Random random(1);
  std::vector<float> numbers = any_floats(3 * kCount, 2);
  for (std::uint32_t i = 0; i < kCount; ++i) {
    float* const triple = numbers.data() + 3 * i;
    if (i % 12 == 0) triple[0] = random.percent(50) ? 0.0f : -0.0f;
    if (i % 12 == 0 || i % 12 == 6) triple[1] = random.percent(50) ? triple[0] : -triple[0];
    if (i % 3 == 0) continue;
    for (int k = 0; k < 3; ++k) {
      const std::uint32_t exponent = static_cast<std::uint32_t>(random.between(120, 134));
      triple[k] = std::bit_cast<float>((random.bits() & 0x807fffffu) | exponent << 23);
    }
    if (i % 3 == 1) triple[2] = -(triple[0] * triple[1]);
  }
  return numbers;
}

void arithmetic(Outputs& outputs) {
  const Buffer<float> in(triples());
  const Buffer<std::uint32_t> out(kArithmeticResults * kCount);
  cuda::launch(arithmetic_kernel, "arithmetic", {.grid = {kBlocks}, .block = {kThreads}},
               FloatsParams{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

__global__ void pack_kernel(const __grid_constant__ FloatsParams params) {
  const std::uint32_t i = index_in_grid();
  params.out[2 * i] = ptx::pack_bf16(params.in[2 * i], params.in[2 * i + 1]);
  params.out[2 * i + 1] = ptx::pack_f16(params.in[2 * i], params.in[2 * i + 1]);
}

/// Half of the numbers are any bits, the others lie where f16 is fine, or half-way between two of its
/// numbers.
std::vector<float> numbers_to_pack() {
  Random random(3);
  std::vector<float> numbers = any_floats(2 * kCount, 4);
  for (std::size_t i = 0; i < numbers.size(); i += 2) {
    const std::uint32_t exponent = static_cast<std::uint32_t>(random.between(101, 144));
    const std::uint32_t kept = random.percent(50)   ? 0x807fffffu
                               : random.percent(50) ? 0x807ff000u
                                                    : 0x807f8000u;
    numbers[i] = std::bit_cast<float>((random.bits() & kept) | exponent << 23);
  }
  return numbers;
}

void pack(Outputs& outputs) {
  const Buffer<float> in(numbers_to_pack());
  const Buffer<std::uint32_t> out(2 * kCount);
  cuda::launch(pack_kernel, "pack", {.grid = {kBlocks}, .block = {kThreads}},
               FloatsParams{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

struct WordsParams {
  const std::uint32_t* in;
  std::uint32_t* out;
};

constexpr std::uint32_t kCodes = 1 << 16;
constexpr std::uint32_t kUnpacked = 5;

/// Each 16-bit code, once in the lower and once in the upper half.
__global__ void unpack_kernel(const __grid_constant__ WordsParams params) {
  const std::uint32_t code = index_in_grid(), packed = code | (kCodes - 1 - code) << 16;
  std::uint32_t* const out = params.out + kUnpacked * code;
  out[0] = __builtin_bit_cast(std::uint32_t, ptx::low_bf16(packed));
  out[1] = __builtin_bit_cast(std::uint32_t, ptx::high_bf16(packed));
  out[2] = __builtin_bit_cast(std::uint32_t, ptx::low_f16(packed));
  out[3] = __builtin_bit_cast(std::uint32_t, ptx::high_f16(packed));
  out[4] = ptx::e4m3_to_f16(code);
}

void unpack(Outputs& outputs) {
  const Buffer<std::uint32_t> out(kUnpacked * kCodes);
  cuda::launch(unpack_kernel, "unpack", {.grid = {kCodes / kThreads}, .block = {kThreads}},
               WordsParams{.in = nullptr, .out = out.data()});
  outputs.add(out.contents());
}

__global__ void multiply_pairs_kernel(const __grid_constant__ WordsParams params) {
  const std::uint32_t i = index_in_grid();
  const std::uint32_t a = params.in[2 * i], b = params.in[2 * i + 1];
  params.out[2 * i] = ptx::multiply_f16(a, b);
  params.out[2 * i + 1] = ptx::multiply_bf16(a, b);
}

void multiply_pairs(Outputs& outputs) {
  const Buffer<std::uint32_t> in(random_words(2 * kCount, 5));
  const Buffer<std::uint32_t> out(2 * kCount);
  cuda::launch(multiply_pairs_kernel, "multiply_pairs", {.grid = {kBlocks}, .block = {kThreads}},
               WordsParams{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

struct ApproximationParams {
  const float* in;
  float* out;
};

struct Exp2 {
  FLASHMLA_DEVICE static float of(float x) { return ptx::exp2_approx(x); }
};
struct Log2 {
  FLASHMLA_DEVICE static float of(float x) { return ptx::log2_approx(x); }
};
struct Reciprocal {
  FLASHMLA_DEVICE static float of(float x) { return ptx::reciprocal_approx(x); }
};

template <class Function>
__global__ void approximation_kernel(const __grid_constant__ ApproximationParams params) {
  const std::uint32_t i = index_in_grid();
  params.out[i] = Function::of(params.in[i]);
}

/// Asks for each argument `x` and result `y` whether `good(x, y)`.
template <class Function, class Good>
void approximate(Outputs& outputs, const std::vector<float>& arguments, Good good) {
  const Buffer<float> in(arguments);
  const Buffer<float> out(kCount);
  cuda::launch(approximation_kernel<Function>, "approximation", {.grid = {kBlocks}, .block = {kThreads}},
               ApproximationParams{.in = in.data(), .out = out.data()});
  const std::vector<float> results = out.contents();
  for (std::uint32_t i = 0; i < kCount; ++i) {
    outputs.expect(good(arguments[i], results[i]),
                   "f(" + std::to_string(arguments[i]) + ") = " + std::to_string(results[i]));
  }
}

/// Any bits, and in between numbers of moderate exponents.
std::vector<float> arguments(int smallest_exponent, int largest_exponent, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> numbers = any_floats(kCount, seed + 1);
  for (std::size_t i = 0; i < numbers.size(); i += 2) {
    const auto exponent =
        static_cast<std::uint32_t>(127 + random.between(smallest_exponent, largest_exponent));
    numbers[i] = std::bit_cast<float>((random.bits() & 0x807fffffu) | exponent << 23);
  }
  return numbers;
}

constexpr double kSmallestNormal = 0x1p-126;

/// Subnormal arguments count as zeros of their sign.
double flushed(float x) { return std::abs(x) < kSmallestNormal ? std::copysign(0.0, x) : x; }

bool both_nan_or_equal(double exact, float y) { return std::isnan(exact) ? std::isnan(y) : exact == y; }

void exp2_approx(Outputs& outputs) {
  approximate<Exp2>(outputs, arguments(-10, 7, 6), [](float x, float y) {
    const double exact = std::exp2(flushed(x));
    if (!std::isfinite(exact)) return both_nan_or_equal(exact, y);
    // Next to the borders of f32 a result may be on the other side.
    if (exact < kSmallestNormal * (1 - 0x1p-22)) return y == 0;
    if (exact < kSmallestNormal * (1 + 0x1p-22) && y == 0) return true;
    if (exact > 0x1.fffffep127) return std::isinf(y);
    return std::abs(y - exact) <= exact * 0x1p-22;
  });
}

void log2_approx(Outputs& outputs) {
  approximate<Log2>(outputs, arguments(-3, 3, 8), [](float x, float y) {
    const double exact = std::log2(flushed(x));
    if (!std::isfinite(exact)) return both_nan_or_equal(exact, y);
    const bool absolute = x >= 0.5f && x <= 2.0f;
    return std::abs(y - exact) <= (absolute ? 1.0 : std::abs(exact)) * 0x1p-22;
  });
}

void reciprocal_approx(Outputs& outputs) {
  approximate<Reciprocal>(outputs, arguments(-20, 20, 10), [](float x, float y) {
    const double exact = 1.0 / flushed(x);
    if (!std::isfinite(exact) || exact == 0) return both_nan_or_equal(exact, y);
    if (std::abs(exact) < kSmallestNormal) return y == 0;
    int exponent;
    std::frexp(exact, &exponent);
    return std::abs(y - exact) <= std::ldexp(1.0, exponent - 24);
  });
}

}  // namespace

std::vector<WrapperTest> math_tests() {
  return {{"math_arithmetic", Needs::kSm80, arithmetic},
          {"math_pack", Needs::kSm80, pack},
          {"math_unpack", Needs::kSm80, unpack},
          {"math_multiply_pairs", Needs::kSm80, multiply_pairs},
          {"math_exp2_approx", Needs::kSm80, exp2_approx},
          {"math_log2_approx", Needs::kSm80, log2_approx},
          {"math_reciprocal_approx", Needs::kSm80, reciprocal_approx}};
}

}  // namespace flashmla::wrappers
