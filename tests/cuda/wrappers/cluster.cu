// Tests of ptx/cluster.h.
#include "buffer.h"
#include "cuda/launch.h"
#include "cuda/ptx/cluster.h"
#include "cuda/ptx/threads.h"
#include "values.h"
#include "wrapper_test.h"

namespace flashmla::wrappers {
namespace {

constexpr std::uint32_t kThreads = 64;
constexpr std::uint32_t kBlocks = 16;
constexpr std::uint32_t kResults = 4;  // a thread

struct Params {
  const std::uint32_t* in;
  std::uint32_t* out;
};

struct Shared {
  std::uint32_t written[kThreads];   // by this block
  std::uint32_t received[kThreads];  // by the block in front of it
};

__global__ void exchange_kernel(const __grid_constant__ Params params) {
  Shared& shared = ptx::shared_memory<Shared>();
  const std::uint32_t thread = ptx::thread_index().x;
  const std::uint32_t in_grid = ptx::block_index().x * kThreads + thread;
  const std::uint32_t rank = ptx::cluster_rank(), blocks = ptx::cluster_blocks();
  shared.written[thread] = params.in[in_grid];
  ptx::cluster_arrive();
  ptx::cluster_wait();
  std::uint32_t hash = 1;
  for (std::uint32_t other = 0; other < blocks; ++other) {
    hash = hash * 31 + *ptx::peer_shared(&shared.written[(thread + 13) % kThreads], other);
  }
  *ptx::peer_shared(&shared.received[kThreads - 1 - thread], (rank + 1) % blocks) = hash;
  ptx::cluster_arrive();
  ptx::cluster_wait();
  std::uint32_t* const out = params.out + kResults * in_grid;
  out[0] = rank;
  out[1] = blocks;
  out[2] = hash;
  out[3] = shared.received[thread];
}

template <std::uint32_t kCluster>
void exchange(Outputs& outputs) {
  const Buffer<std::uint32_t> in(random_words(kBlocks * kThreads, 1));
  const Buffer<std::uint32_t> out(kResults * kBlocks * kThreads);
  cuda::launch(exchange_kernel, "exchange",
               {.grid = {kBlocks}, .block = {kThreads}, .shared_bytes = sizeof(Shared), .cluster = kCluster},
               Params{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

}  // namespace

std::vector<WrapperTest> cluster_tests() {
  return {{"cluster_of_1", Needs::kSm90, exchange<1>},
          {"cluster_of_2", Needs::kSm90, exchange<2>},
          {"cluster_of_4", Needs::kSm90, exchange<4>},
          {"cluster_of_8", Needs::kSm90, exchange<8>}};
}

}  // namespace flashmla::wrappers
