// Memory that kernels reach: that of the current GPU, or the host's on the emulator.
#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

#include "cuda/ptx/target.h"
#ifdef FLASHMLA_ON_GPU
#include "cuda/memory.h"
#else
#include <memory>
#include <new>
#endif

namespace flashmla::wrappers {

#ifndef FLASHMLA_ON_GPU
/// The host's memory with the interface of cuda::DeviceMemory.
class HostMemory {
 public:
  HostMemory(int, std::size_t bytes) : data_(static_cast<std::byte*>(::operator new(bytes, kAlignment))) {}
  std::byte* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{256};
  struct Delete {
    void operator()(std::byte* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<std::byte, Delete> data_;
};
#endif

/// An array of `T`, which is trivially copyable.
template <class T>
class Buffer {
 public:
  /// All bits set: NaN, as far as these are numbers.
  explicit Buffer(std::size_t count) : Buffer(std::vector<T>(count), true) {}
  explicit Buffer(const std::vector<T>& contents) : Buffer(contents, false) {}

  T* data() const { return reinterpret_cast<T*>(memory_.data()); }

  /// Waits for the kernels that were launched before.
  std::vector<T> contents() const {
    std::vector<T> values(count_);
    copy(values.data(), data());
    return values;
  }

 private:
  Buffer(std::vector<T> contents, bool fill) : count_(contents.size()), memory_(0, count_ * sizeof(T)) {
    if (fill) std::memset(static_cast<void*>(contents.data()), 0xff, count_ * sizeof(T));
    copy(data(), contents.data());
  }

  void copy(void* to, const void* from) const {
#ifdef FLASHMLA_ON_GPU
    cuda::copy(to, from, count_ * sizeof(T));
#else
    std::memcpy(to, from, count_ * sizeof(T));
#endif
  }

  std::size_t count_;
#ifdef FLASHMLA_ON_GPU
  cuda::DeviceMemory memory_;
#else
  HostMemory memory_;
#endif
};

}  // namespace flashmla::wrappers
