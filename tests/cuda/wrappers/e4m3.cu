// Tests of what ptx/math.h has from SM89 on.
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

struct Params {
  const float* in;  // 2 a thread
  std::uint32_t* out;
};

__global__ void pack_e4m3_kernel(const __grid_constant__ Params params) {
  const std::uint32_t i = ptx::block_index().x * kThreads + ptx::thread_index().x;
  params.out[i] = ptx::pack_e4m3(params.in[2 * i], params.in[2 * i + 1]);
}

/// Any bits, and numbers where e4m3 is fine, many of them half-way between two of its numbers.
void pack_e4m3(Outputs& outputs) {
  Random random(1);
  std::vector<float> numbers = any_floats(2 * kBlocks * kThreads, 2);
  for (std::size_t i = 0; i < numbers.size(); i += 3) {
    const auto exponent = static_cast<std::uint32_t>(127 + random.between(-12, 10));
    const std::uint32_t kept = random.percent(50) ? 0x807fffffu : 0x80780000u;
    numbers[i] = std::bit_cast<float>((random.bits() & kept) | exponent << 23);
  }
  const Buffer<float> in(numbers);
  const Buffer<std::uint32_t> out(kBlocks * kThreads);
  cuda::launch(pack_e4m3_kernel, "pack_e4m3", {.grid = {kBlocks}, .block = {kThreads}},
               Params{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

}  // namespace

std::vector<WrapperTest> e4m3_tests() { return {{"math_pack_e4m3", Needs::kSm89, pack_e4m3}}; }

}  // namespace flashmla::wrappers
