// Tests of ptx/cp_async.h.
#include "buffer.h"
#include "cuda/launch.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/threads.h"
#include "values.h"
#include "wrapper_test.h"

namespace flashmla::wrappers {
namespace {

constexpr std::uint32_t kThreads = 128;

struct Params {
  const std::uint32_t* in;
  std::uint32_t* out;
};

struct Pieces {
  ptx::Bytes16 wide[kThreads];
  std::uint32_t narrow[kThreads];
};

/// Copies of every number of bytes, which must fill up with zeros. Threads read what others copied.
__global__ void sizes_kernel(const __grid_constant__ Params params) {
  Pieces& shared = ptx::shared_memory<Pieces>();
  const std::uint32_t thread = ptx::thread_index().x;
  ptx::copy_async_16(&shared.wide[thread], params.in + 4 * thread, static_cast<int>(thread % 17));
  ptx::copy_async_4(&shared.narrow[thread], params.in + 4 * kThreads + thread, static_cast<int>(thread % 5));
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  ptx::sync_block();
  const std::uint32_t other = kThreads - 1 - thread;
  for (std::uint32_t i = 0; i < 4; ++i) params.out[5 * thread + i] = shared.wide[other].words[i];
  params.out[5 * thread + 4] = shared.narrow[other];
}

void sizes(Outputs& outputs) {
  const Buffer<std::uint32_t> in(random_words(5 * kThreads, 1));
  const Buffer<std::uint32_t> out(5 * kThreads);
  cuda::launch(sizes_kernel, "sizes", {.block = {kThreads}, .shared_bytes = sizeof(Pieces)},
               Params{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

constexpr std::uint32_t kStages = 3;
constexpr std::uint32_t kTiles = 10;

struct Ring {
  ptx::Bytes16 tiles[kStages][kThreads];
};

FLASHMLA_DEVICE void start_tile(Ring& shared, const Params& params, std::uint32_t tile) {
  const std::uint32_t thread = ptx::thread_index().x;
  if (tile < kTiles) {
    ptx::copy_async_16(&shared.tiles[tile % kStages][thread], params.in + 4 * (tile * kThreads + thread), 16);
  }
  // Groups without a copy count too.
  ptx::copy_async_commit();
}

/// A ring of copies, as kernels have it.
__global__ void ring_kernel(const __grid_constant__ Params params) {
  Ring& shared = ptx::shared_memory<Ring>();
  const std::uint32_t thread = ptx::thread_index().x;
  for (std::uint32_t tile = 0; tile < kStages - 1; ++tile) start_tile(shared, params, tile);
  std::uint32_t hash = thread;
  for (std::uint32_t tile = 0; tile < kTiles; ++tile) {
    ptx::copy_async_wait<kStages - 2>();
    ptx::sync_block();
    start_tile(shared, params, tile + kStages - 1);
    for (std::uint32_t i = 0; i < 4; ++i) {
      hash = hash * 31 + shared.tiles[tile % kStages][(thread + 37) % kThreads].words[i];
    }
    params.out[tile * kThreads + thread] = hash;
  }
}

void ring(Outputs& outputs) {
  const Buffer<std::uint32_t> in(random_words(4 * kTiles * kThreads, 2));
  const Buffer<std::uint32_t> out(kTiles * kThreads);
  cuda::launch(ring_kernel, "ring", {.block = {kThreads}, .shared_bytes = sizeof(Ring)},
               Params{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

}  // namespace

std::vector<WrapperTest> cp_async_tests() {
  return {{"cp_async_sizes", Needs::kSm80, sizes}, {"cp_async_ring", Needs::kSm80, ring}};
}

}  // namespace flashmla::wrappers
