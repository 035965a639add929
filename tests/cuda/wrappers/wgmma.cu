// Tests of ptx/wgmma.h.
//
// Shared memory is full of random numbers, and descriptors point anywhere: what is tested is which bytes the
// instruction takes for which element, as well as its sums.
#include <string>

#include "buffer.h"
#include "cuda/launch.h"
#include "cuda/ptx/fence.h"
#include "cuda/ptx/threads.h"
#include "cuda/ptx/wgmma.h"
#include "matrix_values.h"
#include "values.h"
#include "wrapper_test.h"

namespace flashmla::wrappers {
namespace {

using ptx::Bf16;
using ptx::F16;
using ptx::Major;
using ptx::Swizzle;

constexpr std::uint32_t kThreads = ptx::kWarpgroupSize;
constexpr std::uint32_t kImageBytes = 80 * 1024;
constexpr int kProducts = 2;  // that one case adds up

struct Image {
  ptx::Bytes16 rows[kImageBytes / 16];
};

/// The fields of a descriptor, in bytes.
struct Operand {
  std::uint32_t start;
  std::uint32_t leading;
  std::uint32_t stride;
  Swizzle swizzle;
};

struct Case {
  Operand a[kProducts];
  Operand b[kProducts];
  bool accumulate;
};

constexpr std::uint32_t kCases = 4;

struct Params {
  Case cases[kCases];
  const ptx::Bytes16* image;
  const std::uint32_t* a;  // for operands in registers: 4 a thread and product
  const float* c;          // accumulators of each thread and case
  float* d;
};

FLASHMLA_DEVICE Image& load_image(const Params& params) {
  Image& shared = ptx::shared_memory<Image>();
  for (std::uint32_t i = ptx::thread_index().x; i < kImageBytes / 16; i += kThreads) {
    shared.rows[i] = params.image[i];
  }
  ptx::fence_async_proxy();
  ptx::sync_block();
  return shared;
}

FLASHMLA_DEVICE std::uint64_t descriptor(const Image& shared, const Operand& operand) {
  return ptx::matrix_descriptor(reinterpret_cast<const char*>(&shared) + operand.start, operand.leading,
                                operand.stride, operand.swizzle);
}

template <int kRegisters>
FLASHMLA_DEVICE void load(float (&d)[kRegisters], const float* from) {
  FLASHMLA_UNROLL
  for (int i = 0; i < kRegisters; ++i) d[i] = from[i];
}

template <int kRegisters>
FLASHMLA_DEVICE void store(float* to, const float (&d)[kRegisters]) {
  FLASHMLA_UNROLL
  for (int i = 0; i < kRegisters; ++i) to[i] = d[i];
}

template <class T, Major kA, Major kB, int kRegisters>
__global__ void __launch_bounds__(kThreads, 1) shared_kernel(const __grid_constant__ Params params) {
  const Image& shared = load_image(params);
  for (std::uint32_t i = 0; i < kCases; ++i) {
    const Case& one = params.cases[i];
    const std::uint32_t offset = (i * kThreads + ptx::thread_index().x) * kRegisters;
    float d[kRegisters];
    load(d, params.c + offset);
    ptx::wgmma_fence();
    ptx::wgmma<T, kA, kB>(d, descriptor(shared, one.a[0]), descriptor(shared, one.b[0]), one.accumulate);
    ptx::wgmma<T, kA, kB>(d, descriptor(shared, one.a[1]), descriptor(shared, one.b[1]), true);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    ptx::pin_registers(d);
    store(params.d + offset, d);
  }
}

template <class T, Major kB, int kRegisters>
__global__ void __launch_bounds__(kThreads, 1) registers_kernel(const __grid_constant__ Params params) {
  const Image& shared = load_image(params);
  const std::uint32_t thread = ptx::thread_index().x;
  for (std::uint32_t i = 0; i < kCases; ++i) {
    const Case& one = params.cases[i];
    const std::uint32_t offset = (i * kThreads + thread) * kRegisters;
    const std::uint32_t* const from = params.a + 4 * (i * kProducts * kThreads + thread);
    const std::uint32_t first[4] = {from[0], from[1], from[2], from[3]};
    const std::uint32_t* const next = from + 4 * kThreads;
    const std::uint32_t second[4] = {next[0], next[1], next[2], next[3]};
    float d[kRegisters];
    load(d, params.c + offset);
    ptx::wgmma_fence();
    ptx::wgmma<T, kB>(d, first, descriptor(shared, one.b[0]), one.accumulate);
    ptx::wgmma<T, kB>(d, second, descriptor(shared, one.b[1]), true);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    ptx::pin_registers(d);
    store(params.d + offset, d);
  }
}

/// Several groups at once, the last ones waited for later.
constexpr int kGroupRegisters = 32;

__global__ void __launch_bounds__(kThreads, 1) groups_kernel(const __grid_constant__ Params params) {
  const Image& shared = load_image(params);
  const Case& one = params.cases[0];
  const std::uint32_t offset = ptx::thread_index().x * kGroupRegisters;
  float first[kGroupRegisters], second[kGroupRegisters];
  load(first, params.c + offset);
  load(second, params.c + offset);
  const std::uint64_t a0 = descriptor(shared, one.a[0]), b0 = descriptor(shared, one.b[0]);
  const std::uint64_t a1 = descriptor(shared, one.a[1]), b1 = descriptor(shared, one.b[1]);
  ptx::pin_registers(first);
  ptx::pin_registers(second);
  ptx::wgmma_fence();
  ptx::wgmma<Bf16>(first, a0, b0, true);
  ptx::wgmma_commit();
  ptx::wgmma<Bf16>(second, a1, b1, false);
  ptx::wgmma<Bf16>(second, a0, b1, true);
  ptx::wgmma_commit();
  ptx::wgmma_wait<1>();
  ptx::pin_registers(first);
  store(params.d + offset, first);
  ptx::wgmma_wait<0>();
  ptx::pin_registers(second);
  store(params.d + kThreads * kGroupRegisters + offset, second);
}

/// Bytes of the pattern in which 16-byte chunks are exchanged.
std::uint32_t pattern_bytes(Swizzle swizzle) {
  switch (swizzle) {
    case Swizzle::k32:
      return 32;
    case Swizzle::k64:
      return 64;
    case Swizzle::k128:
      return 128;
    default:
      return 16;
  }
}

std::uint32_t multiple(Random& random, std::uint32_t unit, int low, int high) {
  return unit * static_cast<std::uint32_t>(random.between(low, high));
}

/// An operand somewhere in the image; it ends within 70 KB of its start.
Operand any_operand(Random& random, Major major, Swizzle swizzle) {
  const std::uint32_t pattern = pattern_bytes(swizzle);
  if (swizzle == Swizzle::kNone) {
    return {.start = multiple(random, 16, 0, 500),
            .leading = multiple(random, 16, 8, 60),
            .stride = multiple(random, 16, 8, 60),
            .swizzle = swizzle};
  }
  // Patterns repeat each 8 rows; where they begin must not change what is exchanged.
  const std::uint32_t repeat = 8 * pattern;
  if (major == Major::kK) {
    // Steps along the sum stay inside of a row: 32 bytes each. The leading offset is not used.
    return {
        .start = multiple(random, repeat, 0, 7) + multiple(random, 32, 0, static_cast<int>(pattern / 32) - 1),
        .leading = multiple(random, 16, 0, 60),
        .stride = multiple(random, repeat, 1, 2),
        .swizzle = swizzle};
  }
  return {.start = multiple(random, repeat, 0, 7),
          .leading = multiple(random, repeat, 1, 3),
          .stride = multiple(random, repeat, 1, 3),
          .swizzle = swizzle};
}

/// One case for each swizzle; that of B is another one than that of A.
void make_cases(Random& random, Major a, Major b, Case (&cases)[kCases]) {
  constexpr Swizzle kSwizzles[] = {Swizzle::kNone, Swizzle::k32, Swizzle::k64, Swizzle::k128};
  for (std::uint32_t i = 0; i < kCases; ++i) {
    cases[i].accumulate = random.percent(75);
    for (int product = 0; product < kProducts; ++product) {
      cases[i].a[product] = any_operand(random, a, kSwizzles[random.between(0, 3)]);
      cases[i].b[product] = any_operand(random, b, kSwizzles[i]);
    }
  }
}

/// The contents of all operands of a launch.
struct Contents {
  template <class T>
  static Contents of(Random& random, const Mix& mix, int registers) {
    constexpr Format kFormat = Format::of<T>();
    Contents contents;
    contents.image.resize(kImageBytes / 4);
    for (auto& pair : contents.image) {
      pair = operand(random, kFormat, mix) | operand(random, kFormat, mix) << 16;
    }
    contents.a.resize(4 * kThreads * kProducts * kCases);
    for (auto& pair : contents.a) pair = operand_pair(random, kFormat, mix, 0x8000);
    contents.c.resize(static_cast<std::size_t>(registers) * kThreads * kCases);
    for (auto& number : contents.c) number = accumulator(random, mix);
    return contents;
  }

  std::vector<std::uint32_t> image;
  std::vector<std::uint32_t> a;
  std::vector<float> c;
};

/// Runs a kernel once for each of these: moderate numbers, any exponents, subnormal numbers, zeros, Inf and
/// NaN.
constexpr Mix kMixes[] = {{.exponents = 2},
                          {.exponents = 300},
                          {.exponents = 5, .accumulator = -8, .zeros = 20, .subnormals = 20, .specials = 2}};

template <class T>
void run(Outputs& outputs, void (*kernel)(Params), Major a, Major b, int registers) {
  Random random(static_cast<std::uint64_t>(registers));
  for (const Mix& mix : kMixes) {
    const Contents contents = Contents::of<T>(random, mix, registers);
    const Buffer<std::uint32_t> image(contents.image), device_a(contents.a);
    const Buffer<float> c(contents.c), d(contents.c.size());
    Params params{.cases = {},
                  .image = reinterpret_cast<const ptx::Bytes16*>(image.data()),
                  .a = device_a.data(),
                  .c = c.data(),
                  .d = d.data()};
    make_cases(random, a, b, params.cases);
    cuda::launch(kernel, "wgmma", {.block = {kThreads}, .shared_bytes = kImageBytes}, params);
    outputs.add(d.contents());
  }
}

template <class T, Major kA, Major kB, int kRegisters>
void from_shared(Outputs& outputs) {
  run<T>(outputs, shared_kernel<T, kA, kB, kRegisters>, kA, kB, kRegisters);
}

template <class T, Major kB, int kRegisters>
void from_registers(Outputs& outputs) {
  run<T>(outputs, registers_kernel<T, kB, kRegisters>, Major::kK, kB, kRegisters);
}

/// It writes as many outputs as the other kernels would with half of their cases; the rest stays NaN.
void groups(Outputs& outputs) { run<Bf16>(outputs, groups_kernel, Major::kK, Major::kK, kGroupRegisters); }

constexpr Major kK = Major::kK, kMn = Major::kOther;

/// All widths with the usual layout.
template <class T, int kRegisters>
void add_width(std::vector<WrapperTest>& tests, const std::string& name) {
  const std::string width = name + "_n" + std::to_string(2 * kRegisters);
  tests.push_back({"wgmma_shared_" + width, Needs::kSm90a, from_shared<T, kK, kK, kRegisters>});
  tests.push_back({"wgmma_registers_" + width, Needs::kSm90a, from_registers<T, kK, kRegisters>});
}

/// Operands whose other dimension is contiguous.
template <class T, int kRegisters>
void add_majors(std::vector<WrapperTest>& tests, const std::string& name) {
  const std::string width = name + "_n" + std::to_string(2 * kRegisters);
  tests.push_back({"wgmma_shared_a_mn_" + width, Needs::kSm90a, from_shared<T, kMn, kK, kRegisters>});
  tests.push_back({"wgmma_shared_b_mn_" + width, Needs::kSm90a, from_shared<T, kK, kMn, kRegisters>});
  tests.push_back({"wgmma_shared_ab_mn_" + width, Needs::kSm90a, from_shared<T, kMn, kMn, kRegisters>});
  tests.push_back({"wgmma_registers_b_mn_" + width, Needs::kSm90a, from_registers<T, kMn, kRegisters>});
}

template <class T>
void add_widths(std::vector<WrapperTest>& tests, const std::string& name) {
  add_width<T, 4>(tests, name);
  add_width<T, 8>(tests, name);
  add_width<T, 16>(tests, name);
  add_width<T, 32>(tests, name);
  add_width<T, 64>(tests, name);
  add_width<T, 128>(tests, name);
}

}  // namespace

std::vector<WrapperTest> wgmma_tests() {
  std::vector<WrapperTest> tests = {{"wgmma_groups", Needs::kSm90a, groups}};
  add_widths<Bf16>(tests, "bf16");
  add_widths<F16>(tests, "f16");
  add_majors<Bf16, 4>(tests, "bf16");
  add_majors<Bf16, 32>(tests, "bf16");
  add_majors<Bf16, 128>(tests, "bf16");
  add_majors<F16, 64>(tests, "f16");
  return tests;
}

}  // namespace flashmla::wrappers
