// Memory of a GPU for tools and tests.
#include "cuda/memory.h"

#include <algorithm>
#include <utility>

#include "cuda/current_device.h"

namespace flashmla::cuda {

DeviceMemory::DeviceMemory(int ordinal, std::size_t bytes) : bytes_(bytes) {
  const CurrentDevice current(ordinal);
  void* address = nullptr;
  check(cudaMalloc(&address, std::max<std::size_t>(bytes, 1)), text(bytes, " bytes on GPU ", ordinal));
  data_ = static_cast<std::byte*>(address);
}

DeviceMemory::~DeviceMemory() { (void)cudaFree(data_); }

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void copy(void* to, const void* from, std::size_t bytes) {
  // The call may return while the last bytes are under way, and other streams would not wait for them.
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "copying from or to a GPU");
  check(cudaStreamSynchronize(nullptr), "copying from or to a GPU");
}

void fill(void* to, int value, std::size_t bytes) {
  check(cudaMemset(to, value, bytes), "filling memory of a GPU");
  check(cudaStreamSynchronize(nullptr), "filling memory of a GPU");
}

void synchronize(int ordinal) {
  const CurrentDevice current(ordinal);
  check(cudaDeviceSynchronize(), text("GPU ", ordinal));
}

}  // namespace flashmla::cuda
