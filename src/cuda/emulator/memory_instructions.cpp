// Loads, stores and atomic operations that have a name of their own.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "cuda/emulator/failure.h"
#include "cuda/emulator/instructions.h"
#include "cuda/emulator/scheduler.h"
#include "cuda/emulator/shared_memory.h"

namespace flashmla::emulator {
namespace {

/// The object behind `at` in global or shared memory, ready for an atomic operation. Clusters run in
/// parallel.
template <class T>
std::atomic_ref<T> atomic_object(T* at, const Location& place) {
  const Thread& thread = current_thread();
  check_aligned(thread, at, sizeof(T), place);
  if (thread.cluster->block_at(at) != nullptr) {
    check_access(thread, at, sizeof(T), Access::kAtomic, place);
  } else {
    check_global(thread, at, sizeof(T), place);
  }
  return std::atomic_ref<T>(*at);
}

}  // namespace

void load_global(void* to, const void* global, std::size_t bytes, Location place) {
  const Thread& thread = current_thread();
  check_aligned(thread, global, bytes, place);
  check_global(thread, global, bytes, place);
  std::memcpy(to, global, bytes);
}

void store_global(void* global, const void* from, std::size_t bytes, Location place) {
  const Thread& thread = current_thread();
  check_aligned(thread, global, bytes, place);
  check_global(thread, global, bytes, place);
  std::memcpy(global, from, bytes);
}

// Kernels spin on it, so others get a chance each time.
std::uint32_t load_acquire(const std::uint32_t* global, Location place) {
  current_thread().cluster->yield("another value in global memory", place);
  return atomic_object(const_cast<std::uint32_t*>(global), place).load(std::memory_order_acquire);
}

void store_release(std::uint32_t* global, std::uint32_t value, Location place) {
  atomic_object(global, place).store(value, std::memory_order_release);
}

std::uint32_t atomic_add(std::uint32_t* at, std::uint32_t value, Location place) {
  return atomic_object(at, place).fetch_add(value);
}

float atomic_add(float* at, float value, Location place) { return atomic_object(at, place).fetch_add(value); }

std::int32_t atomic_max(std::int32_t* at, std::int32_t value, Location place) {
  const auto object = atomic_object(at, place);
  std::int32_t old = object.load();
  while (!object.compare_exchange_weak(old, std::max(old, value))) {
  }
  return old;
}

std::uint32_t atomic_compare_exchange(std::uint32_t* at, std::uint32_t expected, std::uint32_t desired,
                                      Location place) {
  atomic_object(at, place).compare_exchange_strong(expected, desired);
  return expected;
}

}  // namespace flashmla::emulator
