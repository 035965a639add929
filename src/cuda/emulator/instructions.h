// The instructions of a GPU as kernels call them on the host, from inside the functions of cuda/ptx/.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/emulator/origin.h"
#include "cuda/ptx/target.h"

namespace flashmla::ptx {
struct TensorMap;
}

namespace flashmla::emulator {

// Who a thread is.
ptx::Index3 thread_index();
ptx::Index3 block_index();
ptx::Index3 block_size();
ptx::Index3 grid_size();
std::uint32_t cluster_rank();
std::uint32_t cluster_blocks();

// Shared memory. Addresses are offsets in the block's window.
void* shared_memory();
std::uint32_t shared_address(const void* shared);
void* peer_shared(const void* shared, std::uint32_t rank);

// Collectives of a warp.
void sync_warp(Location place);
std::uint32_t shuffle(std::uint32_t value, int lane, Location place);
std::uint32_t ballot(bool predicate, Location place);
bool elect_one(Location place);
void load_matrix(std::uint32_t* fragment, int matrices, bool transposed, const void* shared_row,
                 Location place);
void store_matrix(void* shared_row, const std::uint32_t* fragment, int matrices, bool transposed,
                  Location place);
/// For ptx::Bf16 and ptx::F16.
template <class T>
void mma_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                 Location place);
template <class T>
void mma_16x8x8(float (&c)[4], const std::uint32_t (&a)[2], std::uint32_t b, Location place);

// Barriers of a block and a cluster.
void sync_block(Location place);
bool sync_block_or(bool predicate, Location place);
void barrier_sync(int id, int threads, Location place);
void barrier_arrive(int id, int threads, Location place);
void cluster_arrive(Location place);
void cluster_wait(Location place);

// Barriers in shared memory.
void barrier_init(void* barrier, std::uint32_t count, Location place);
void barrier_invalidate(void* barrier, Location place);
void barrier_arrive(void* barrier, Location place);
void barrier_arrive_at(void* barrier, std::uint32_t rank, Location place);
void barrier_arrive_after_copies(void* barrier, Location place);
void barrier_expect_bytes(void* barrier, std::uint32_t bytes, Location place);
bool barrier_try_wait(void* barrier, std::uint32_t parity, Location place);

// Fences.
void fence_async_proxy(Location place);
void fence_barrier_init(Location place);
void fence_gpu(Location place);

// Copies that a thread waits for.
void copy_async(void* shared, const void* global, int size, int bytes, Location place);
void copy_async_commit(Location place);
void copy_async_wait(int pending, Location place);

// Bulk copies. The bytes are counted at a barrier, or the copy is part of a group of stores.
void copy_bulk(void* shared, const void* global, std::uint32_t bytes, void* barrier, Location place);
void copy_bulk_to_peer(void* shared_of_peer, const void* shared, std::uint32_t bytes, void* barrier,
                       std::uint32_t rank, Location place);
void store_bulk(void* global, const void* shared, std::uint32_t bytes, Location place);
void reduce_add_bulk(float* global, const float* shared, std::uint32_t bytes, Location place);
void store_bulk_commit(Location place);
void store_bulk_wait(int pending, bool read_only, Location place);
/// A bit in `ranks` for each block of the cluster that gets the box; 0 for this block alone.
void copy_box(void* shared, const ptx::TensorMap& map, const std::int32_t* corner, int dimensions,
              void* barrier, std::uint16_t ranks, Location place);
void store_box(const ptx::TensorMap& map, const std::int32_t* corner, int dimensions, const void* shared,
               Location place);

// Matrix products of a warpgroup, for ptx::Bf16 and ptx::F16; `d` has `registers` numbers. The flags say
// whether an operand is transposed in memory.
void wgmma_fence(Location place);
void wgmma_commit(Location place);
void wgmma_wait(int pending, Location place);
template <class T>
void wgmma(float* d, int registers, std::uint64_t a, bool a_transposed, std::uint64_t b, bool b_transposed,
           bool accumulate, Location place);
template <class T>
void wgmma(float* d, int registers, const std::uint32_t (&a)[4], std::uint64_t b, bool b_transposed,
           bool accumulate, Location place);

/// Registers are not counted.
void set_max_registers(int registers, Location place);

// Memory.
void load_global(void* to, const void* global, std::size_t bytes, Location place);
void store_global(void* global, const void* from, std::size_t bytes, Location place);
std::uint32_t load_acquire(const std::uint32_t* global, Location place);
void store_release(std::uint32_t* global, std::uint32_t value, Location place);
std::uint32_t atomic_add(std::uint32_t* at, std::uint32_t value, Location place);
float atomic_add(float* at, float value, Location place);
std::int32_t atomic_max(std::int32_t* at, std::int32_t value, Location place);
std::uint32_t atomic_compare_exchange(std::uint32_t* at, std::uint32_t expected, std::uint32_t desired,
                                      Location place);

// Arithmetic.
float exp2_approx(float x);
float log2_approx(float x);
float reciprocal_approx(float x);
std::uint32_t pack_bf16(float low, float high);
std::uint32_t pack_f16(float low, float high);
float f16_to_float(std::uint16_t bits);
std::uint32_t e4m3_to_f16(std::uint32_t codes);
std::uint32_t pack_e4m3(float low, float high);
std::uint32_t multiply_f16(std::uint32_t a, std::uint32_t b);
std::uint32_t multiply_bf16(std::uint32_t a, std::uint32_t b);

}  // namespace flashmla::emulator
