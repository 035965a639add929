// cp.async.bulk: one thread copies a contiguous piece between memories; and its tensor form, which copies a
// box of a tensor that a map describes (TMA). From SM90 on.
// PTX ISA, "Data Movement and Conversion Instructions: Bulk copy" and "Tensor copy".
#pragma once

#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/target.h"
#ifndef FLASHMLA_ON_GPU
#include "cuda/emulator/instructions.h"
#endif

namespace flashmla::ptx {

/// How a tensor lies in global memory and in which boxes it is copied; made on the host by
/// cuda::make_tensor_map(). On a GPU these are the bytes of a CUtensorMap. Kernels get it in their
/// parameters.
struct alignas(64) TensorMap {
  std::uint64_t words[16];
};

/// `cp.async.bulk.shared::cluster.global`: `bytes` (a multiple of 16) from global to shared memory, both
/// aligned to 16 bytes. The bytes are counted at `barrier` when they are there.
FLASHMLA_DEVICE void copy_bulk(void* shared, const void* global, std::uint32_t bytes,
                               Barrier& barrier FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
      "l"(global), "r"(bytes), "r"(barrier.address())
      : "memory");
#else
  emulator::copy_bulk(shared, global, bytes, &barrier, place);
#endif
}

/// `cp.async.bulk.shared::cluster.shared::cta`: from this block's shared memory to the same or another place
/// in that of block `rank`. The bytes are counted at that block's `barrier`.
FLASHMLA_DEVICE void copy_bulk_to_peer(void* shared_of_peer, const void* shared, std::uint32_t bytes,
                                       Barrier& barrier, std::uint32_t rank FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_of_peer));
  const auto from = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile(
      "{\n"
      ".reg .b32 remote, remote_barrier;\n"
      "mapa.shared::cluster.u32 remote, %0, %4;\n"
      "mapa.shared::cluster.u32 remote_barrier, %3, %4;\n"
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [remote], [%1], %2, "
      "[remote_barrier];\n"
      "}\n" ::"r"(to),
      "r"(from), "r"(bytes), "r"(barrier.address()), "r"(rank)
      : "memory");
#else
  emulator::copy_bulk_to_peer(shared_of_peer, shared, bytes, &barrier, rank, place);
#endif
}

/// `cp.async.bulk.global.shared::cta.bulk_group`: from shared to global memory. Part of this thread's next
/// group; fence_async_proxy() first in the threads that wrote the bytes.
FLASHMLA_DEVICE void store_bulk(void* global, const void* shared, std::uint32_t bytes FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  const auto from = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(from),
               "r"(bytes)
               : "memory");
#else
  emulator::store_bulk(global, shared, bytes, place);
#endif
}

/// `cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32`: adds f32 numbers to global memory.
FLASHMLA_DEVICE void reduce_add_bulk(float* global, const float* shared, std::uint32_t bytes FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  const auto from = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(global),
               "r"(from), "r"(bytes)
               : "memory");
#else
  emulator::reduce_add_bulk(global, shared, bytes, place);
#endif
}

/// `cp.async.bulk.commit_group`: this thread's stores since its last group form a group.
FLASHMLA_DEVICE void store_bulk_commit(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  emulator::store_bulk_commit(place);
#endif
}

/// `cp.async.bulk.wait_group.read`: until at most `kPending` groups still read shared memory.
template <int kPending>
FLASHMLA_DEVICE void store_bulk_wait_read(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
#else
  emulator::store_bulk_wait(kPending, true, place);
#endif
}

/// `cp.async.bulk.wait_group`: until at most `kPending` groups are not written yet.
template <int kPending>
FLASHMLA_DEVICE void store_bulk_wait(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emulator::store_bulk_wait(kPending, false, place);
#endif
}

/// `prefetch.tensormap`: so that the first copy does not wait for the map. `map` is a kernel parameter.
FLASHMLA_DEVICE void prefetch_tensor_map(const TensorMap& map) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#else
  static_cast<void>(map);
#endif
}

/// `cp.async.bulk.tensor.2d`: the box that begins at column `x` and row `y`; what lies outside of the tensor
/// is zero and counts as bytes too. Column `x` is a multiple of 16 bytes, else the instruction is illegal
/// (seen on an H200). `shared` is aligned to 128 bytes, to 1024 with 128-byte swizzling.
FLASHMLA_DEVICE void copy_box(void* shared, const TensorMap& map, std::int32_t x, std::int32_t y,
                              Barrier& barrier FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
      "[%4];" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier.address())
      : "memory");
#else
  const std::int32_t corner[] = {x, y};
  emulator::copy_box(shared, map, corner, 2, &barrier, 0, place);
#endif
}

/// `cp.async.bulk.tensor.3d`: the same with a third coordinate.
FLASHMLA_DEVICE void copy_box(void* shared, const TensorMap& map, std::int32_t x, std::int32_t y,
                              std::int32_t z, Barrier& barrier FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier.address())
      : "memory");
#else
  const std::int32_t corner[] = {x, y, z};
  emulator::copy_box(shared, map, corner, 3, &barrier, 0, place);
#endif
}

/// `cp.async.bulk.tensor.4d`: the same with four coordinates.
FLASHMLA_DEVICE void copy_box(void* shared, const TensorMap& map, std::int32_t x, std::int32_t y,
                              std::int32_t z, std::int32_t w, Barrier& barrier FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, "
      "%5}], [%6];" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier.address())
      : "memory");
#else
  const std::int32_t corner[] = {x, y, z, w};
  emulator::copy_box(shared, map, corner, 4, &barrier, 0, place);
#endif
}

/// The 2d copy with `.multicast::cluster`: each block whose bit is set in `ranks` gets the box at the same
/// place of its shared memory, and the bytes counted at its own `barrier`. Made for SM90a and later
/// a-targets; ptxas warns elsewhere.
FLASHMLA_DEVICE void copy_box_multicast(void* shared, const TensorMap& map, std::int32_t x, std::int32_t y,
                                        Barrier& barrier, std::uint16_t ranks FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier.address()), "h"(ranks)
      : "memory");
#else
  const std::int32_t corner[] = {x, y};
  emulator::copy_box(shared, map, corner, 2, &barrier, ranks, place);
#endif
}

/// `cp.async.bulk.tensor.2d.global.shared::cta.bulk_group`: stores a box; what lies outside is left out, in
/// pieces of 16 bytes: rows that end inside of one are overwritten up to its end. `x` and `y` are not
/// negative, and `x` is a multiple of 16 bytes (all seen on an H200).
FLASHMLA_DEVICE void store_box(const TensorMap& map, std::int32_t x, std::int32_t y,
                               const void* shared FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  const auto from = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
               "r"(x), "r"(y), "r"(from)
               : "memory");
#else
  const std::int32_t corner[] = {x, y};
  emulator::store_box(map, corner, 2, shared, place);
#endif
}

}  // namespace flashmla::ptx
