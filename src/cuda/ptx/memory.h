// Loads, stores and atomic operations that plain C++ does not say.
#pragma once

#include "cuda/ptx/target.h"
#ifndef FLASHMLA_ON_GPU
#include "cuda/emulator/instructions.h"
#endif

namespace flashmla::ptx {

/// `ld.global.nc.L1::no_allocate.v4`: 16 bytes that no kernel writes meanwhile and nobody reads again soon.
FLASHMLA_DEVICE Bytes16 load_once(const void* global FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  Bytes16 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.words[0]), "=r"(value.words[1]), "=r"(value.words[2]), "=r"(value.words[3])
               : "l"(global));
  return value;
#else
  Bytes16 value;
  emulator::load_global(&value, global, sizeof(value), place);
  return value;
#endif
}

/// `st.global.L1::no_allocate.v4`: 16 bytes that this block does not read again.
FLASHMLA_DEVICE void store_once(void* global, const Bytes16& value FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(value.words[0]),
               "r"(value.words[1]), "r"(value.words[2]), "r"(value.words[3])
               : "memory");
#else
  emulator::store_global(global, &value, sizeof(value), place);
#endif
}

/// `prefetch.global.L2`.
FLASHMLA_DEVICE void prefetch_l2(const void* global) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
#else
  static_cast<void>(global);
#endif
}

/// `atom.add.u32`, relaxed, on global or shared memory; returns the old value.
FLASHMLA_DEVICE std::uint32_t atomic_add(std::uint32_t* at, std::uint32_t value FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  return atomicAdd(at, value);
#else
  return emulator::atomic_add(at, value, place);
#endif
}

/// `atom.add.f32`, relaxed, on global or shared memory; returns the old value.
FLASHMLA_DEVICE float atomic_add(float* at, float value FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  return atomicAdd(at, value);
#else
  return emulator::atomic_add(at, value, place);
#endif
}

/// `atom.max.s32`, relaxed, on global or shared memory; returns the old value.
FLASHMLA_DEVICE std::int32_t atomic_max(std::int32_t* at, std::int32_t value FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  return atomicMax(at, value);
#else
  return emulator::atomic_max(at, value, place);
#endif
}

/// `atom.cas.b32`, relaxed, on global or shared memory; returns the old value.
FLASHMLA_DEVICE std::uint32_t atomic_compare_exchange(std::uint32_t* at, std::uint32_t expected,
                                                      std::uint32_t desired FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  return atomicCAS(at, expected, desired);
#else
  return emulator::atomic_compare_exchange(at, expected, desired, place);
#endif
}

/// `red.relaxed.gpu.global.add.f32`: adds without returning the old value.
FLASHMLA_DEVICE void reduce_add(float* global, float value FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(global), "f"(value) : "memory");
#else
  emulator::atomic_add(global, value, place);
#endif
}

/// `red.relaxed.gpu.global.v4.f32.add`: adds 4 neighbours, aligned to 16 bytes. From SM90 on; before, four
/// single ones.
FLASHMLA_DEVICE void reduce_add(float* global, const float (&values)[4] FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
#if __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.v4.f32.add [%0], {%1, %2, %3, %4};" ::"l"(global), "f"(values[0]),
               "f"(values[1]), "f"(values[2]), "f"(values[3])
               : "memory");
#else
  for (int i = 0; i < 4; ++i) reduce_add(global + i, values[i]);
#endif
#else
  for (int i = 0; i < 4; ++i) emulator::atomic_add(global + i, values[i], place);
#endif
}

/// `ld.acquire.gpu.u32`: what other blocks wrote before their store_release() is visible afterwards.
FLASHMLA_DEVICE std::uint32_t load_acquire(const std::uint32_t* global FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  std::uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(global) : "memory");
  return value;
#else
  return emulator::load_acquire(global, place);
#endif
}

/// `st.release.gpu.u32`.
FLASHMLA_DEVICE void store_release(std::uint32_t* global, std::uint32_t value FLASHMLA_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(global), "r"(value) : "memory");
#else
  emulator::store_release(global, value, place);
#endif
}

}  // namespace flashmla::ptx
