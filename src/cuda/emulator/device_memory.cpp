// Memory of the GPU that the emulator imitates: of the host, but kernels may touch it, and nothing else, to
// the byte.
#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "api/message.h"
#include "cuda/device.h"
#include "cuda/emulator/global_memory.h"
#include "cuda/memory.h"

namespace flashmla::cuda {
namespace {

constexpr std::align_val_t kAlignment{256};

}  // namespace

DeviceMemory::DeviceMemory(int ordinal, std::size_t bytes) : bytes_(bytes) {
  (void)device_properties(ordinal);
  try {
    data_ = static_cast<std::byte*>(::operator new(std::max<std::size_t>(bytes, 1), kAlignment));
  } catch (const std::bad_alloc&) {
    fail(ErrorKind::kDevice, text(bytes, " bytes on GPU ", ordinal), "out of memory");
  }
  emulator::register_memory({text("an allocation of ", bytes, " bytes"), data_, bytes});
}

DeviceMemory::~DeviceMemory() {
  if (data_ == nullptr) return;
  emulator::withdraw_memory(data_);
  ::operator delete(data_, kAlignment);
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void copy(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }

void fill(void* to, int value, std::size_t bytes) { std::memset(to, value, bytes); }

// A launch returns when the kernel has ended.
void synchronize(int) {}

}  // namespace flashmla::cuda
