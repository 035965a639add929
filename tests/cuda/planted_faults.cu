// Kernels with faults that hardware often forgives, and that the emulator must find under every seed.
#include <cstdint>

#include "cuda/ptx/bulk_copy.h"
#include "cuda/ptx/cluster.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/fence.h"
#include "cuda/ptx/matrix.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/memory.h"
#include "cuda/ptx/target.h"
#include "cuda/ptx/threads.h"
#include "cuda/ptx/wgmma.h"
#include "planted_faults.h"

namespace flashmla::planted {
namespace {

int line_of_fault = 0;

}  // namespace

int marked_line() { return line_of_fault; }
void clear_mark() { line_of_fault = 0; }
const char* file_name() { return __FILE__; }

/// Says that a report must name this line.
#define FAULT_HERE line_of_fault = __LINE__;

namespace {

int thread() { return static_cast<int>(ptx::thread_index().x); }

/// Rows of 128 numbers, copied by 32 threads each.
struct Rows {
  alignas(16) float numbers[4][128];
};

// --- copies that threads wait for ---

__global__ void missing_copy_wait(const __grid_constant__ Params params) {
  Rows& shared = ptx::shared_memory<Rows>();
  float* const numbers = shared.numbers[0] + 4 * thread();
  ptx::copy_async_16(numbers, params.in + 4 * thread(), 16);
  ptx::copy_async_commit();
  if (!params.faulty) ptx::copy_async_wait<0>();
  FAULT_HERE for (int i = 0; i < 4; ++i) params.out[4 * thread() + i] = numbers[i];
  ptx::copy_async_wait<0>();
}

__global__ void wait_for_too_few_groups(const __grid_constant__ Params params) {
  Rows& shared = ptx::shared_memory<Rows>();
  for (int row = 0; row < 2; ++row) {
    ptx::copy_async_16(&shared.numbers[row][4 * thread()], params.in + 128 * row + 4 * thread(), 16);
    ptx::copy_async_commit();
  }
  if (params.faulty) {
    ptx::copy_async_wait<1>();
  } else {
    ptx::copy_async_wait<0>();
  }
  for (int row = 0; row < 2; ++row) {
    for (int i = 4 * thread(); i < 4 * thread() + 4; ++i) {
      FAULT_HERE params.out[128 * row + i] = shared.numbers[row][i];
    }
  }
}

__global__ void missing_sync_after_wait(const __grid_constant__ Params params) {
  Rows& shared = ptx::shared_memory<Rows>();
  float* const numbers = shared.numbers[0];
  ptx::copy_async_16(numbers + 4 * thread(), params.in + 4 * thread(), 16);
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  if (!params.faulty) ptx::sync_block();
  for (int i = 0; i < 4; ++i) {
    const int at = 128 * i + thread();
    FAULT_HERE params.out[at] = numbers[at];
  }
}

__global__ void missing_sync_before_overwrite(const __grid_constant__ Params params) {
  Rows& shared = ptx::shared_memory<Rows>();
  float* const numbers = shared.numbers[0];
  for (int round = 0; round < 2; ++round) {
    const int begin = 512 * round;
    ptx::copy_async_16(numbers + 4 * thread(), params.in + begin + 4 * thread(), 16);
    ptx::copy_async_commit();
    ptx::copy_async_wait<0>();
    ptx::sync_block();
    for (int i = 0; i < 4; ++i) {
      const int at = 128 * i + thread();
      FAULT_HERE params.out[begin + at] = numbers[at];
    }
    if (!params.faulty) ptx::sync_block();
  }
}

__global__ void missing_sync_in_epilogue(const __grid_constant__ Params params) {
  Rows& shared = ptx::shared_memory<Rows>();
  float* const sums = shared.numbers[0];
  sums[thread()] = params.in[thread()];
  if (!params.faulty) ptx::sync_block();
  FAULT_HERE params.out[thread()] = sums[127 - thread()];
}

__global__ void missing_sync_warp(const __grid_constant__ Params params) {
  Rows& shared = ptx::shared_memory<Rows>();
  float* const sums = shared.numbers[0];
  sums[thread()] = params.in[thread()];
  if (!params.faulty) ptx::sync_warp();
  FAULT_HERE params.out[thread()] = sums[thread() ^ 1];
}

// --- barriers in shared memory ---

/// A ring of two slots of 512 bytes, filled by one thread and read by the warp behind it.
struct Ring {
  alignas(128) float slots[2][128];
  ptx::Barrier full[2];
  ptx::Barrier empty[2];
};

constexpr std::uint32_t kSlotBytes = 512;
constexpr int kTiles = 6;

void init_ring(Ring& ring) {
  if (thread() == 0) {
    for (int i = 0; i < 2; ++i) {
      ring.full[i].init(1);
      ring.empty[i].init(32);
    }
    ptx::fence_barrier_init();
  }
  ptx::sync_block();
}

/// What can be wrong with a ring.
enum class RingFault { kNone, kFullPhase, kEmptyPhase, kEarlyRelease, kWrongStage };

void fill_ring(Ring& ring, const Params& params, RingFault fault) {
  if (thread() != 0) return;
  for (int tile = 0; tile < kTiles; ++tile) {
    const int slot = tile % 2;
    const std::uint32_t parity = static_cast<std::uint32_t>(tile / 2) & 1;
    const bool wrong = fault == RingFault::kEmptyPhase && tile >= 2;
    ring.empty[slot].wait(wrong ? parity : parity ^ 1);
    if (fault == RingFault::kEmptyPhase) line_of_fault = __LINE__ + 1;
    ptx::copy_bulk(ring.slots[slot], params.in + 128 * tile, kSlotBytes, ring.full[slot]);
    ring.full[slot].arrive_expect_bytes(kSlotBytes);
  }
}

void read_ring(Ring& ring, const Params& params, RingFault fault) {
  const int lane = ptx::lane_index();
  for (int tile = 0; tile < kTiles; ++tile) {
    const int slot = tile % 2;
    const std::uint32_t parity = static_cast<std::uint32_t>(tile / 2) & 1;
    ptx::Barrier& full = ring.full[fault == RingFault::kWrongStage ? 0 : slot];
    // Depending on the schedule, the wait never ends or ends too early.
    if (fault == RingFault::kFullPhase) line_of_fault = __LINE__ + 1;
    full.wait(fault == RingFault::kFullPhase ? parity ^ 1 : parity);
    if (fault == RingFault::kEarlyRelease) ring.empty[slot].arrive();
    if (fault != RingFault::kEmptyPhase) line_of_fault = __LINE__ + 1;
    for (int i = lane; i < 128; i += 32) params.out[128 * tile + i] = ring.slots[slot][i];
    if (fault != RingFault::kEarlyRelease) ring.empty[slot].arrive();
  }
}

template <RingFault kFault>
__global__ void ring(const __grid_constant__ Params params) {
  Ring& ring = ptx::shared_memory<Ring>();
  init_ring(ring);
  const RingFault fault = params.faulty ? kFault : RingFault::kNone;
  if (ptx::warp_index() == 0) {
    fill_ring(ring, params, fault);
  } else {
    read_ring(ring, params, fault);
  }
}

struct OneSlot {
  alignas(128) float numbers[128];
  ptx::Barrier full;
};

void init_slot(OneSlot& slot) {
  if (thread() == 0) {
    slot.full.init(1);
    ptx::fence_barrier_init();
  }
  ptx::sync_block();
}

__global__ void too_few_bytes(const __grid_constant__ Params params) {
  OneSlot& shared = ptx::shared_memory<OneSlot>();
  init_slot(shared);
  if (thread() == 0) {
    FAULT_HERE shared.full.arrive_expect_bytes(params.faulty ? kSlotBytes - 16 : kSlotBytes);
    ptx::copy_bulk(shared.numbers, params.in, kSlotBytes, shared.full);
  }
  shared.full.wait(0);
  params.out[thread()] = shared.numbers[thread()];
}

__global__ void too_few_bytes_for_two_copies(const __grid_constant__ Params params) {
  OneSlot& shared = ptx::shared_memory<OneSlot>();
  init_slot(shared);
  if (thread() == 0) {
    shared.full.arrive_expect_bytes(params.faulty ? kSlotBytes / 2 : kSlotBytes);
    ptx::copy_bulk(shared.numbers, params.in, kSlotBytes / 2, shared.full);
    ptx::copy_bulk(shared.numbers + 64, params.in + 64, kSlotBytes / 2, shared.full);
  }
  shared.full.wait(0);
  FAULT_HERE params.out[thread()] = shared.numbers[thread()];
}

__global__ void too_many_bytes(const __grid_constant__ Params params) {
  OneSlot& shared = ptx::shared_memory<OneSlot>();
  init_slot(shared);
  if (thread() == 0) {
    shared.full.arrive_expect_bytes(params.faulty ? kSlotBytes + 16 : kSlotBytes);
    ptx::copy_bulk(shared.numbers, params.in, kSlotBytes, shared.full);
  }
  FAULT_HERE shared.full.wait(0);
  params.out[thread()] = shared.numbers[thread()];
}

__global__ void missing_init_fence(const __grid_constant__ Params params) {
  OneSlot& shared = ptx::shared_memory<OneSlot>();
  if (thread() == 0) {
    shared.full.init(1);
    if (!params.faulty) ptx::fence_barrier_init();
    FAULT_HERE ptx::copy_bulk(shared.numbers, params.in, kSlotBytes, shared.full);
    shared.full.arrive_expect_bytes(kSlotBytes);
  }
  ptx::sync_block();
  shared.full.wait(0);
  params.out[thread()] = shared.numbers[thread()];
}

__global__ void copies_counted_too_early(const __grid_constant__ Params params) {
  OneSlot& shared = ptx::shared_memory<OneSlot>();
  if (thread() == 0) shared.full.init(32);
  ptx::sync_block();
  if (thread() < 32) {
    ptx::copy_async_16(shared.numbers + 4 * thread(), params.in + 4 * thread(), 16);
    if (params.faulty) {
      shared.full.arrive();
    } else {
      shared.full.arrive_after_copies();
    }
  }
  shared.full.wait(0);
  FAULT_HERE params.out[thread()] = shared.numbers[thread()];
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
}

// --- asynchronous units ---

__global__ void missing_fence_before_store(const __grid_constant__ Params params) {
  OneSlot& shared = ptx::shared_memory<OneSlot>();
  shared.numbers[thread()] = params.in[thread()];
  if (!params.faulty) ptx::fence_async_proxy();
  ptx::sync_block();
  if (thread() == 0) {
    FAULT_HERE ptx::store_bulk(params.out, shared.numbers, kSlotBytes);
    ptx::store_bulk_commit();
    ptx::store_bulk_wait<0>();
  }
}

__global__ void overwrite_under_store(const __grid_constant__ Params params) {
  OneSlot& shared = ptx::shared_memory<OneSlot>();
  for (int round = 0; round < 2; ++round) {
    FAULT_HERE shared.numbers[thread()] = params.in[128 * round + thread()];
    ptx::fence_async_proxy();
    ptx::sync_block();
    if (thread() == 0) {
      ptx::store_bulk(params.out + 128 * round, shared.numbers, kSlotBytes);
      ptx::store_bulk_commit();
      if (!params.faulty || round == 1) ptx::store_bulk_wait_read<0>();
    }
    ptx::sync_block();
  }
}

__global__ void exit_under_store(const __grid_constant__ Params params) {
  OneSlot& shared = ptx::shared_memory<OneSlot>();
  shared.numbers[thread()] = params.in[thread()];
  ptx::fence_async_proxy();
  ptx::sync_block();
  if (thread() != 0) return;
  FAULT_HERE ptx::store_bulk(params.out, shared.numbers, kSlotBytes);
  ptx::store_bulk_commit();
  if (!params.faulty) ptx::store_bulk_wait_read<0>();
}

/// Operands of one product of 64 x 8 x 16: cores of 8 rows of 16 bytes, one behind the other.
struct Operands {
  alignas(1024) std::uint16_t a[2][8][8][8];  // k / 8, m / 8, m % 8, k % 8
  alignas(1024) std::uint16_t b[2][8][8];     // k / 8, n % 8, k % 8
};

std::uint16_t to_bf16(float x) {
  return static_cast<std::uint16_t>(__builtin_bit_cast(std::uint32_t, x) >> 16);
}

constexpr std::uint16_t kOne = 0x3f80;  // bf16

/// Row m of A has in[m] in each column, B is all ones: each element of the product is 16 in[m].
void write_operands(Operands& operands, const float* in) {
  for (int i = thread(); i < 64 * 16; i += 128) {
    const int m = i / 16;
    const int k = i % 16;
    operands.a[k / 8][m / 8][m % 8][k % 8] = to_bf16(in[m]);
  }
  for (int i = thread(); i < 8 * 16; i += 128) operands.b[i / 64][i / 8 % 8][i % 8] = kOne;
}

std::uint64_t describe_a(Operands& operands) {
  return ptx::matrix_descriptor(operands.a, sizeof(operands.a[0]), 128, ptx::Swizzle::kNone);
}
std::uint64_t describe_b(Operands& operands) {
  return ptx::matrix_descriptor(operands.b, sizeof(operands.b[0]), 128, ptx::Swizzle::kNone);
}

void write_product(const Params& params, const float (&d)[4]) {
  const int row = 16 * ptx::warp_index() + ptx::lane_index() / 4;
  const int column = 2 * (ptx::lane_index() % 4);
  for (int i = 0; i < 4; ++i) params.out[8 * (row + 8 * (i / 2)) + column + i % 2] = d[i];
}

float product(const float* in, int i) { return 16 * in[i / 8]; }

__global__ void missing_fence_before_product(const __grid_constant__ Params params) {
  Operands& operands = ptx::shared_memory<Operands>();
  write_operands(operands, params.in);
  if (!params.faulty) ptx::fence_async_proxy();
  ptx::sync_block();
  float d[4];
  ptx::wgmma_fence();
  FAULT_HERE ptx::wgmma<ptx::Bf16>(d, describe_a(operands), describe_b(operands), false);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  write_product(params, d);
}

__global__ void overwrite_under_product(const __grid_constant__ Params params) {
  Operands& operands = ptx::shared_memory<Operands>();
  write_operands(operands, params.in);
  ptx::fence_async_proxy();
  ptx::sync_block();
  float d[4];
  ptx::wgmma_fence();
  FAULT_HERE ptx::wgmma<ptx::Bf16>(d, describe_a(operands), describe_b(operands), false);
  ptx::wgmma_commit();
  if (!params.faulty) ptx::wgmma_wait<0>();
  ptx::sync_block();
  if (thread() == 0) operands.a[0][0][0][0] = kOne;
  ptx::wgmma_wait<0>();
  write_product(params, d);
}

__global__ void read_accumulators_too_early(const __grid_constant__ Params params) {
  Operands& operands = ptx::shared_memory<Operands>();
  write_operands(operands, params.in);
  ptx::fence_async_proxy();
  ptx::sync_block();
  float d[4];
  ptx::wgmma_fence();
  ptx::wgmma<ptx::Bf16>(d, describe_a(operands), describe_b(operands), false);
  ptx::wgmma_commit();
  if (!params.faulty) ptx::wgmma_wait<0>();
  FAULT_HERE const float first = d[0];
  ptx::wgmma_wait<0>();
  d[0] = first;
  write_product(params, d);
}

__global__ void missing_product_wait(const __grid_constant__ Params params) {
  Operands& operands = ptx::shared_memory<Operands>();
  write_operands(operands, params.in);
  ptx::fence_async_proxy();
  ptx::sync_block();
  float d[4] = {16, 16, 16, 16};
  ptx::wgmma_fence();
  FAULT_HERE ptx::wgmma<ptx::Bf16>(d, describe_a(operands), describe_b(operands), false);
  ptx::wgmma_commit();
  if (params.faulty) return;
  ptx::wgmma_wait<0>();
  write_product(params, d);
}

__global__ void change_operand_registers(const __grid_constant__ Params params) {
  Operands& operands = ptx::shared_memory<Operands>();
  write_operands(operands, params.in);
  ptx::fence_async_proxy();
  ptx::sync_block();
  const int row = 16 * ptx::warp_index() + ptx::lane_index() / 4;
  std::uint32_t a[4];
  for (int i = 0; i < 4; ++i) a[i] = to_bf16(params.in[row + 8 * (i % 2)]) * 0x10001u;
  float d[4];
  ptx::wgmma_fence();
  ptx::wgmma<ptx::Bf16>(d, a, describe_b(operands), false);
  ptx::wgmma_commit();
  if (!params.faulty) ptx::wgmma_wait<0>();
  FAULT_HERE a[0] = kOne;
  ptx::wgmma_wait<0>();
  write_product(params, d);
}

// --- clusters ---

__global__ void missing_cluster_wait(const __grid_constant__ Params params) {
  Rows& shared = ptx::shared_memory<Rows>();
  const std::uint32_t rank = ptx::cluster_rank();
  shared.numbers[0][thread()] = params.in[128 * rank + static_cast<std::uint32_t>(thread())];
  ptx::cluster_arrive();
  if (!params.faulty) ptx::cluster_wait();
  const float* const peer = ptx::peer_shared(shared.numbers[0], rank ^ 1);
  FAULT_HERE params.out[128 * rank + static_cast<std::uint32_t>(thread())] = peer[thread()];
  if (params.faulty) ptx::cluster_wait();
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

__global__ void exit_before_peer_reads(const __grid_constant__ Params params) {
  Rows& shared = ptx::shared_memory<Rows>();
  const std::uint32_t rank = ptx::cluster_rank();
  shared.numbers[0][thread()] = params.in[128 * rank + static_cast<std::uint32_t>(thread())];
  ptx::cluster_arrive();
  ptx::cluster_wait();
  if (rank == 0 || !params.faulty) {
    const float* const peer = ptx::peer_shared(shared.numbers[0], rank ^ 1);
    // Long enough for the other block to end.
    for (int i = 0; i < 100 && params.faulty; ++i)
      ptx::load_acquire(reinterpret_cast<const std::uint32_t*>(params.in));
    FAULT_HERE params.out[128 * rank + static_cast<std::uint32_t>(thread())] = peer[thread()];
  }
  if (params.faulty) return;
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

struct Box {
  alignas(1024) float numbers[16][32];
  ptx::Barrier full;
  ptx::Barrier empty;
};

// Block 0 copies each box into both blocks, when both have read the one before.
__global__ void empty_barrier_ignores_peer(const __grid_constant__ Params params) {
  Box& box = ptx::shared_memory<Box>();
  const std::uint32_t rank = ptx::cluster_rank();
  if (thread() == 0) {
    box.full.init(1);
    box.empty.init(params.faulty ? 32 : 64);
    ptx::fence_barrier_init();
  }
  ptx::cluster_arrive();
  ptx::cluster_wait();
  for (std::uint32_t tile = 0; tile < 3; ++tile) {
    if (thread() == 0) box.full.arrive_expect_bytes(sizeof(box.numbers));
    if (thread() == 0 && rank == 0) {
      box.empty.wait_cluster(tile % 2 ^ 1);
      const auto row = static_cast<std::int32_t>(16 * tile);
      FAULT_HERE ptx::copy_box_multicast(box.numbers, params.map, 0, row, box.full, 3);
    }
    ptx::sync_warp();
    box.full.wait(tile % 2);
    for (int i = 8 * static_cast<int>(rank); i < 8 * static_cast<int>(rank) + 8; ++i) {
      params.out[512 * static_cast<int>(tile) + 32 * i + thread()] = box.numbers[i][thread()];
    }
    if (rank == 0 || !params.faulty) box.empty.arrive_at(0);
  }
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

__global__ void barrier_not_visible_to_peer(const __grid_constant__ Params params) {
  OneSlot& shared = ptx::shared_memory<OneSlot>();
  const std::uint32_t rank = ptx::cluster_rank();
  if (thread() == 0) {
    shared.full.init(1);
    ptx::fence_barrier_init();
  }
  ptx::sync_block();
  if (!params.faulty) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
  if (thread() == 0) {
    FAULT_HERE shared.full.arrive_at(rank ^ 1);
  }
  shared.full.wait_cluster(0);
  params.out[128 * rank + static_cast<std::uint32_t>(thread())] =
      params.in[128 * rank + static_cast<std::uint32_t>(thread())];
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

// --- collectives and barriers of a block ---

__global__ void divergent_lanes(const __grid_constant__ Params params) {
  const float value = params.in[thread()];
  float other;
  if (params.faulty && ptx::lane_index() < 16) {
    other = ptx::shuffle_xor(value, 1);
  } else {
    FAULT_HERE other = ptx::shuffle_xor(value, 1);
  }
  params.out[thread()] = other;
}

__global__ void exit_under_collective(const __grid_constant__ Params params) {
  if (params.faulty && ptx::lane_index() == 5) return;
  FAULT_HERE params.out[thread()] = ptx::shuffle_xor(params.in[thread()], 1);
}

__global__ void exit_under_barrier(const __grid_constant__ Params params) {
  params.out[thread()] = params.in[thread()];
  if (params.faulty && ptx::warp_index() == 1) return;
  FAULT_HERE ptx::sync_block();
}

__global__ void barrier_count_mismatch(const __grid_constant__ Params params) {
  params.out[thread()] = params.in[thread()];
  const int threads = ptx::warp_index() == 1 && params.faulty ? 96 : 64;
  if (ptx::warp_index() < 2) {
    FAULT_HERE ptx::barrier_sync(1, threads);
  }
}

__global__ void barrier_without_partner(const __grid_constant__ Params params) {
  params.out[thread()] = params.in[thread()];
  if (ptx::warp_index() == 0 || !params.faulty) {
    FAULT_HERE ptx::barrier_sync(1, 128);
  }
}

// --- memory ---

__global__ void shared_out_of_range(const __grid_constant__ Params params) {
  Rows& shared = ptx::shared_memory<Rows>();
  const int at = thread() + (params.faulty ? 4 * 128 - 127 : 0);
  FAULT_HERE shared.numbers[0][at] = params.in[thread()];
  params.out[thread()] = shared.numbers[0][at];
}

__global__ void uninitialized_shared(const __grid_constant__ Params params) {
  Rows& shared = ptx::shared_memory<Rows>();
  if (!params.faulty || thread() != 77) shared.numbers[0][thread()] = params.in[thread()];
  FAULT_HERE params.out[thread()] = shared.numbers[0][thread()];
}

__global__ void global_read_behind_end(const __grid_constant__ Params params) {
  const int at = params.faulty ? kNumbers - 127 + thread() : thread();
  FAULT_HERE params.out[thread()] = params.in[at];
}

__global__ void copy_behind_end(const __grid_constant__ Params params) {
  Rows& shared = ptx::shared_memory<Rows>();
  float* const numbers = shared.numbers[0] + 4 * thread();
  const int at = params.faulty ? kNumbers - 127 * 4 + 4 * thread() : 4 * thread();
  FAULT_HERE ptx::copy_async_16(numbers, params.in + at, 16);
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  for (int i = 0; i < 4; ++i) params.out[4 * thread() + i] = numbers[i];
}

__global__ void bulk_copy_behind_end(const __grid_constant__ Params params) {
  OneSlot& shared = ptx::shared_memory<OneSlot>();
  init_slot(shared);
  if (thread() == 0) {
    shared.full.arrive_expect_bytes(kSlotBytes);
    const float* const from = params.faulty ? params.in + kNumbers - 124 : params.in;
    FAULT_HERE ptx::copy_bulk(shared.numbers, from, kSlotBytes, shared.full);
  }
  shared.full.wait(0);
  params.out[thread()] = shared.numbers[thread()];
}

__global__ void bulk_store_behind_end(const __grid_constant__ Params params) {
  OneSlot& shared = ptx::shared_memory<OneSlot>();
  shared.numbers[thread()] = params.in[thread()];
  ptx::fence_async_proxy();
  ptx::sync_block();
  if (thread() == 0) {
    float* const to = params.faulty ? params.out + kNumbers - 124 : params.out;
    FAULT_HERE ptx::store_bulk(to, shared.numbers, kSlotBytes);
    ptx::store_bulk_commit();
    ptx::store_bulk_wait<0>();
  }
}

float same(const float* in, int i) { return in[i]; }
float reversed(const float* in, int i) { return in[127 - i]; }
float neighbour(const float* in, int i) { return in[i ^ 1]; }
float of_peer(const float* in, int i) { return in[i ^ 128]; }

constexpr emulator::LaunchConfig block(std::uint32_t threads, std::size_t shared_bytes) {
  return {.block = {threads, 1, 1}, .shared_bytes = shared_bytes};
}

constexpr emulator::LaunchConfig pair(std::uint32_t threads, std::size_t shared_bytes) {
  return {.grid = {2, 1, 1}, .block = {threads, 1, 1}, .shared_bytes = shared_bytes, .cluster = 2};
}

#define FAULT(name, config, expected) {#name, name, config, expected}

constexpr Case kCases[] = {
    FAULT(missing_copy_wait, block(128, sizeof(Rows)), same),
    FAULT(wait_for_too_few_groups, block(32, sizeof(Rows)), same),
    FAULT(missing_sync_after_wait, block(128, sizeof(Rows)), same),
    FAULT(missing_sync_before_overwrite, block(128, sizeof(Rows)), same),
    FAULT(missing_sync_in_epilogue, block(128, sizeof(Rows)), reversed),
    FAULT(missing_sync_warp, block(32, sizeof(Rows)), neighbour),
    {"wrong_full_phase", ring<RingFault::kFullPhase>, block(64, sizeof(Ring)), same},
    {"wrong_empty_phase", ring<RingFault::kEmptyPhase>, block(64, sizeof(Ring)), same},
    {"early_release", ring<RingFault::kEarlyRelease>, block(64, sizeof(Ring)), same},
    {"wrong_stage", ring<RingFault::kWrongStage>, block(64, sizeof(Ring)), same},
    FAULT(too_few_bytes, block(128, sizeof(OneSlot)), same),
    FAULT(too_few_bytes_for_two_copies, block(128, sizeof(OneSlot)), same),
    FAULT(too_many_bytes, block(128, sizeof(OneSlot)), same),
    FAULT(missing_init_fence, block(128, sizeof(OneSlot)), same),
    FAULT(copies_counted_too_early, block(128, sizeof(OneSlot)), same),
    FAULT(missing_fence_before_store, block(128, sizeof(OneSlot)), same),
    FAULT(overwrite_under_store, block(128, sizeof(OneSlot)), same),
    FAULT(exit_under_store, block(128, sizeof(OneSlot)), same),
    FAULT(missing_fence_before_product, block(128, sizeof(Operands)), product),
    FAULT(overwrite_under_product, block(128, sizeof(Operands)), product),
    FAULT(read_accumulators_too_early, block(128, sizeof(Operands)), product),
    FAULT(missing_product_wait, block(128, sizeof(Operands)), product),
    FAULT(change_operand_registers, block(128, sizeof(Operands)), product),
    FAULT(missing_cluster_wait, pair(128, sizeof(Rows)), of_peer),
    FAULT(exit_before_peer_reads, pair(128, sizeof(Rows)), of_peer),
    FAULT(empty_barrier_ignores_peer, pair(32, sizeof(Box)), same),
    FAULT(barrier_not_visible_to_peer, pair(128, sizeof(OneSlot)), same),
    FAULT(divergent_lanes, block(32, 0), neighbour),
    FAULT(exit_under_collective, block(32, 0), neighbour),
    FAULT(exit_under_barrier, block(64, 0), same),
    FAULT(barrier_count_mismatch, block(96, 0), same),
    FAULT(barrier_without_partner, block(128, 0), same),
    FAULT(shared_out_of_range, block(128, sizeof(Rows)), same),
    FAULT(uninitialized_shared, block(128, sizeof(Rows)), same),
    FAULT(global_read_behind_end, block(128, 0), same),
    FAULT(copy_behind_end, block(128, sizeof(Rows)), same),
    FAULT(bulk_copy_behind_end, block(128, sizeof(OneSlot)), same),
    FAULT(bulk_store_behind_end, block(128, sizeof(OneSlot)), same),
};

}  // namespace

std::span<const Case> cases() { return kCases; }

}  // namespace flashmla::planted
