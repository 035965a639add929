// Kernels that show what the emulator does with a launch.
#include "cuda/ptx/bulk_copy.h"
#include "cuda/ptx/cluster.h"
#include "cuda/ptx/fence.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/memory.h"
#include "cuda/ptx/threads.h"
#include "emulator_kernels.h"

namespace flashmla::emulated {
namespace {

std::uint32_t linear(const ptx::Index3& index, const ptx::Index3& size) {
  return index.x + size.x * (index.y + size.y * index.z);
}

std::uint32_t threads_of_block() {
  const ptx::Index3 size = ptx::block_size();
  return size.x * size.y * size.z;
}

}  // namespace

__global__ void number_threads(const __grid_constant__ Sizes params) {
  const std::uint32_t block = linear(ptx::block_index(), ptx::grid_size());
  const std::uint32_t thread = linear(ptx::thread_index(), ptx::block_size());
  const std::uint32_t number = block * threads_of_block() + thread;
  params.out[number] = number + 1000000 * ptx::cluster_rank();
}

__global__ void count_warps(const __grid_constant__ Sum params) {
  if (ptx::lane_index() != 0) return;
  const std::uint32_t place = ptx::atomic_add(params.counter, 1u);
  params.order[place] = linear(ptx::thread_index(), ptx::block_size());
}

__global__ void read_fresh_shared_memory(const __grid_constant__ Fresh params) {
  const std::uint32_t* const shared = &ptx::shared_memory<std::uint32_t>();
  for (std::uint32_t i = 0; i < params.words; ++i) params.out[i] = shared[i];
}

__global__ void spin(const __grid_constant__ Spin params) {
  if (ptx::thread_index().x == 0) {
    while (ptx::load_acquire(params.flag) == 0) {
    }
  } else if (params.set && ptx::thread_index().x == 32) {
    ptx::store_release(params.flag, 1);
  }
}

__global__ void fail_in_one_block(const __grid_constant__ FailInBlock params) {
  if (ptx::block_index().x == params.block && ptx::thread_index().x == params.thread) return;
  ptx::sync_warp();
}

__global__ void wait_for_ever(const __grid_constant__ Deadlock) {
  ptx::Barrier& barrier = ptx::shared_memory<ptx::Barrier>();
  if (ptx::thread_index().x == 0) barrier.init(1);
  ptx::sync_block();
  if (ptx::warp_index() == 0) ptx::barrier_sync(1, 64);
  if (ptx::warp_index() == 1) ptx::barrier_sync(2, 64);
  if (ptx::thread_index().x == 70) barrier.wait(0);
}

__global__ void copy_number(const __grid_constant__ Gap params) { *params.out = params.in[params.at]; }

namespace {

struct BoxMemory {
  alignas(1024) std::uint32_t image[4096];
  ptx::Barrier full;
};

}  // namespace

__global__ void load_box(const __grid_constant__ BoxCopy params) {
  BoxMemory& shared = ptx::shared_memory<BoxMemory>();
  if (ptx::thread_index().x == 0) {
    shared.full.init(1);
    ptx::fence_barrier_init();
    shared.full.arrive_expect_bytes(4 * params.words);
    if (params.corner[2] < 0) {
      ptx::copy_box(shared.image, params.map, params.corner[0], params.corner[1], shared.full);
    } else {
      ptx::copy_box(shared.image, params.map, params.corner[0], params.corner[1], params.corner[2],
                    shared.full);
    }
  }
  ptx::sync_block();
  shared.full.wait(0);
  for (std::uint32_t i = ptx::thread_index().x; i < params.words; i += 32) params.out[i] = shared.image[i];
}

__global__ void store_box(const __grid_constant__ BoxStore params) {
  BoxMemory& shared = ptx::shared_memory<BoxMemory>();
  for (std::uint32_t i = ptx::thread_index().x; i < params.words; i += 32) shared.image[i] = i + 1;
  ptx::fence_async_proxy();
  ptx::sync_warp();
  if (ptx::thread_index().x == 0) {
    ptx::store_box(params.map, params.corner[0], params.corner[1], shared.image);
    ptx::store_bulk_commit();
    ptx::store_bulk_wait<0>();
  }
}

}  // namespace flashmla::emulated
