// Kernels that show what the emulator does with a launch.
#include "cuda/ptx/bulk_copy.h"
#include "cuda/ptx/cluster.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/fence.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/memory.h"
#include "cuda/ptx/threads.h"
#include "cuda/ptx/wgmma.h"
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

__global__ void copy_part(const __grid_constant__ PartCopy params) {
  float* const shared = &ptx::shared_memory<float>();
  ptx::copy_async_16(shared, params.in, 4 * params.numbers);
  for (int i = 0; i < 4; ++i) ptx::copy_async_4(shared + 4 + i, params.in + i, i < params.numbers ? 4 : 0);
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  for (int i = 0; i < 8; ++i) params.out[i] = shared[i];
}

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

namespace {

/// Cores of 8 rows of 8 elements; those of 8 neighbouring columns k lie together.
struct ChainOperands {
  alignas(128) std::uint16_t a[kChainDepth / 8][kChainRows][8];
  alignas(128) std::uint16_t b[2][kChainDepth / 8][kChainColumns][8];
};

std::uint16_t bf16_of(float x) {
  return static_cast<std::uint16_t>(__builtin_bit_cast(std::uint32_t, x) >> 16);
}

void write_operands(ChainOperands& operands, const Chain& params) {
  const int thread = static_cast<int>(ptx::thread_index().x);
  for (int i = thread; i < kChainRows * kChainDepth; i += 128) {
    const int k = i % kChainDepth;
    operands.a[k / 8][i / kChainDepth][k % 8] = bf16_of(params.a[i]);
  }
  for (int i = thread; i < 2 * kChainColumns * kChainDepth; i += 128) {
    const int k = i % kChainDepth;
    const int n = i / kChainDepth;
    operands.b[n / kChainColumns][k / 8][n % kChainColumns][k % 8] = bf16_of(params.b[i]);
  }
}

std::uint64_t describe(const std::uint16_t* operand, std::uint32_t rows) {
  return ptx::matrix_descriptor(operand, rows * 16, 128, ptx::Swizzle::kNone);
}

int first_row() { return 16 * ptx::warp_index() + ptx::lane_index() / 4; }

void multiply(float (&d)[kChainColumns / 2], ChainOperands& operands, bool accumulate) {
  for (int step = 0; step < kChainDepth / 16; ++step) {
    ptx::wgmma<ptx::Bf16>(d, describe(operands.a[2 * step][0], kChainRows),
                          describe(operands.b[0][2 * step][0], kChainColumns), accumulate || step > 0);
  }
  ptx::wgmma_commit();
}

void write(const float (&d)[kChainColumns / 2], float* out) {
  for (int i = 0; i < kChainColumns / 2; ++i) {
    const int row = first_row() + 8 * (i % 4 / 2);
    const int column = 8 * (i / 4) + 2 * (ptx::lane_index() % 4) + i % 2;
    out[row * kChainColumns + column] = d[i];
  }
}

}  // namespace

__global__ void multiply_in_chains(const __grid_constant__ Chain params) {
  ChainOperands& operands = ptx::shared_memory<ChainOperands>();
  write_operands(operands, params);
  ptx::fence_async_proxy();
  ptx::sync_block();

  std::uint32_t a[kChainDepth / 16][4];
  for (int step = 0; step < kChainDepth / 16; ++step) {
    for (int i = 0; i < 4; ++i) {
      const int row = first_row() + 8 * (i % 2);
      const int k = 16 * step + 2 * (ptx::lane_index() % 4) + 8 * (i / 2);
      const float* const pair = params.a + row * kChainDepth + k;
      a[step][i] = bf16_of(pair[0]) | std::uint32_t{bf16_of(pair[1])} << 16;
    }
  }
  float d[kChainColumns / 2];
  float other[kChainColumns / 2];
  ptx::wgmma_fence();
  multiply(d, operands, false);
  for (int step = 0; step < kChainDepth / 16; ++step) {
    ptx::wgmma<ptx::Bf16>(other, a[step], describe(operands.b[1][2 * step][0], kChainColumns), step > 0);
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<1>();
  for (float& element : d) element += 1;
  ptx::wgmma_fence();
  multiply(d, operands, true);
  ptx::wgmma_wait<0>();
  write(d, params.twice_and_one);
  write(other, params.other);
}

}  // namespace flashmla::emulated
