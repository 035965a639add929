// Tests of setmaxnreg: ptx/control.h on SM90a.
#include "buffer.h"
#include "cuda/launch.h"
#include "cuda/ptx/control.h"
#include "cuda/ptx/threads.h"
#include "values.h"
#include "wrapper_test.h"

namespace flashmla::wrappers {
namespace {

constexpr std::uint32_t kThreads = 3 * ptx::kWarpgroupSize;
constexpr int kValues = 40;

struct Params {
  const std::uint32_t* in;
  std::uint32_t* out;
};

/// A kernel of 384 threads starts with 168 registers a thread; 24 + 2 * 240 are not more than 3 * 168. Values
/// from before must survive.
__global__ void __launch_bounds__(kThreads, 1) registers_kernel(const __grid_constant__ Params params) {
  const std::uint32_t thread = ptx::thread_index().x;
  std::uint32_t word = params.in[thread];
  if (thread < ptx::kWarpgroupSize) {
    ptx::decrease_registers<24>();
    params.out[thread] = word + 1;
    return;
  }
  ptx::increase_registers<240>();
  std::uint32_t values[kValues];
  FLASHMLA_UNROLL
  for (int i = 0; i < kValues; ++i) values[i] = word = word * 1664525u + params.in[(thread + i) % kThreads];
  FLASHMLA_UNROLL
  for (int i = 0; i < kValues; ++i) word = word * 31 + values[kValues - 1 - i];
  params.out[thread] = word;
}

void registers(Outputs& outputs) {
  const Buffer<std::uint32_t> in(random_words(kThreads, 1));
  const Buffer<std::uint32_t> out(kThreads);
  cuda::launch(registers_kernel, "registers", {.grid = {4}, .block = {kThreads}},
               Params{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

}  // namespace

std::vector<WrapperTest> register_tests() { return {{"control_registers", Needs::kSm90a, registers}}; }

}  // namespace flashmla::wrappers
