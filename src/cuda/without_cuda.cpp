// Stands for everything in this folder in a library that is built without CUDA.
#include "api/message.h"
#include "cuda/device.h"
#include "cuda/memory.h"

namespace flashmla::cuda {
namespace {

[[noreturn]] void fail_without_cuda() { fail(ErrorKind::kUnsupported, "flashmla", "built without CUDA"); }

}  // namespace

int device_count() { return 0; }

const DeviceProperties& device_properties(int) { fail_without_cuda(); }
int shared_memory_limit(int) { fail_without_cuda(); }

DeviceMemory::DeviceMemory(int, std::size_t) { fail_without_cuda(); }
DeviceMemory::~DeviceMemory() = default;
DeviceMemory::DeviceMemory(DeviceMemory&&) noexcept = default;
DeviceMemory& DeviceMemory::operator=(DeviceMemory&&) noexcept = default;

void copy(void*, const void*, std::size_t) { fail_without_cuda(); }
void fill(void*, int, std::size_t) { fail_without_cuda(); }
void synchronize(int) { fail_without_cuda(); }

}  // namespace flashmla::cuda
