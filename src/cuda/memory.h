// Memory of a GPU for tools and tests; kernels take memory that the caller has. Includes no CUDA header.
#pragma once

#include <cstddef>

namespace flashmla::cuda {

/// Memory that is freed with the object. Contents are whatever was there.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  /// Throws Error if the GPU does not have so much. Aligned to 256 bytes.
  DeviceMemory(int ordinal, std::size_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  std::byte* data() const { return data_; }
  std::size_t size() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Copies between the memory of the host and that of a GPU, either way; returns when the copy is done. Throws
/// Error, also for a kernel that failed before.
void copy(void* to, const void* from, std::size_t bytes);

/// Sets bytes of a GPU's memory; returns when it is done.
void fill(void* to, int value, std::size_t bytes);

/// Waits for all work of a GPU. Throws Error for a kernel that failed.
void synchronize(int ordinal);

}  // namespace flashmla::cuda
