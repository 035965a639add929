// Tests of kernels that wait for other kernels: ptx/control.h. For its registers see registers.cu.
#include "buffer.h"
#include "cuda/launch.h"
#include "cuda/ptx/control.h"
#include "cuda/ptx/threads.h"
#include "values.h"
#include "wrapper_test.h"

namespace flashmla::wrappers {
namespace {

constexpr std::uint32_t kThreads = 64;
constexpr std::uint32_t kBlocks = 8;

struct Params {
  const std::uint32_t* in;
  std::uint32_t* out;
};

/// Lets the next kernel start at once, and then takes its time.
__global__ void first_kernel(const __grid_constant__ Params params) {
  const std::uint32_t i = ptx::block_index().x * kThreads + ptx::thread_index().x;
  ptx::launch_dependents();
  std::uint32_t word = params.in[i];
  for (int round = 0; round < 2000; ++round) word = word * 1664525u + (word >> 13);
  params.out[i] = word;
}

__global__ void second_kernel(const __grid_constant__ Params params) {
  const std::uint32_t i = ptx::block_index().x * kThreads + ptx::thread_index().x;
  ptx::wait_for_previous_kernel();
  params.out[i] = params.in[kBlocks * kThreads - 1 - i] ^ i;
}

void previous_kernel(Outputs& outputs) {
  const Buffer<std::uint32_t> in(random_words(kBlocks * kThreads, 1));
  const Buffer<std::uint32_t> between(kBlocks * kThreads), out(kBlocks * kThreads);
  cuda::launch(first_kernel, "first", {.grid = {kBlocks}, .block = {kThreads}},
               Params{.in = in.data(), .out = between.data()});
  cuda::launch(second_kernel, "second", {.grid = {kBlocks}, .block = {kThreads}, .overlaps_previous = true},
               Params{.in = between.data(), .out = out.data()});
  outputs.add(out.contents());
}

}  // namespace

std::vector<WrapperTest> control_tests() {
  return {{"control_previous_kernel", Needs::kSm90, previous_kernel}};
}

}  // namespace flashmla::wrappers
