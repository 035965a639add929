// Tests of copies from ptx/bulk_copy.h that go to several blocks.
#include "buffer.h"
#include "cuda/launch.h"
#include "cuda/ptx/bulk_copy.h"
#include "cuda/ptx/cluster.h"
#include "cuda/tensor_map.h"
#include "kernel_steps.h"
#include "values.h"
#include "wrapper_test.h"

namespace flashmla::wrappers {
namespace {

constexpr std::uint32_t kThreads = 64;
constexpr std::uint32_t kBlocks = 4;

struct Params {
  ptx::TensorMap map;
  std::int32_t corners[kBlocks][2];
  std::uint32_t* out;
};

struct MulticastMemory {
  alignas(1024) std::uint32_t words[2][512];
  ptx::Barrier barrier;
};

constexpr std::uint32_t kMulticastWords = 2 * 512;

/// Of two blocks, each sends one box of 2048 bytes to both.
__global__ void multicast_kernel(const __grid_constant__ Params params) {
  MulticastMemory& shared = ptx::shared_memory<MulticastMemory>();
  const std::uint32_t thread = ptx::thread_index().x, rank = ptx::cluster_rank();
  const std::uint32_t block = ptx::block_index().x;
  if (thread == 0) {
    make_barrier(shared.barrier, 1);
    shared.barrier.arrive_expect_bytes(sizeof(shared.words));
  }
  ptx::cluster_arrive();
  ptx::cluster_wait();
  if (thread == 0) {
    const std::int32_t (&corner)[2] = params.corners[block];
    ptx::copy_box_multicast(shared.words[rank], params.map, corner[0], corner[1], shared.barrier, 3);
  }
  const bool good = phase_ended_in_cluster(shared.barrier, 0);
  std::uint32_t* const out = params.out + block * (kMulticastWords + kThreads);
  write_out(out, shared.words[0], kMulticastWords);
  out[kMulticastWords + thread] = good;
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

void multicast(Outputs& outputs) {
  const Buffer<std::uint32_t> in(random_words(128 * 40 / 2, 11));
  const Buffer<std::uint32_t> out(kBlocks * (kMulticastWords + kThreads));
  const ptx::TensorMap map = cuda::make_tensor_map({.data = in.data(),
                                                    .sizes = {128, 40},
                                                    .stride_bytes = {256},
                                                    .box = {64, 16},
                                                    .swizzle = ptx::Swizzle::k128});
  cuda::launch(
      multicast_kernel, "multicast",
      {.grid = {kBlocks}, .block = {kThreads}, .shared_bytes = sizeof(MulticastMemory), .cluster = 2},
      Params{.map = map, .corners = {{0, 0}, {64, 20}, {104, 30}, {-8, -3}}, .out = out.data()});
  outputs.add(out.contents());
}

}  // namespace

std::vector<WrapperTest> multicast_tests() { return {{"box_multicast", Needs::kSm90a, multicast}}; }

}  // namespace flashmla::wrappers
