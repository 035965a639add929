// Stands for everything in this folder in a library that is built without CUDA.
#include "api/message.h"
#include "cuda/device.h"
#include "cuda/memory.h"
#include "cuda/portable/portable.h"
#include "cuda/timing.h"

namespace flashmla {
namespace {

constexpr Support kWithoutCuda = {false, "built without CUDA"};

[[noreturn]] void fail_without_cuda() { fail(ErrorKind::kUnsupported, "flashmla", kWithoutCuda.reason); }

}  // namespace

namespace cuda {

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

Stream::Stream(int) { fail_without_cuda(); }
Stream::~Stream() = default;
void Stream::synchronize() const { fail_without_cuda(); }
Graph::Graph(const Stream& stream, const std::function<void()>&) : stream_(stream) { fail_without_cuda(); }
Graph::~Graph() = default;
void Graph::launch() const { fail_without_cuda(); }
std::vector<double> time_each(const Stream&, const std::function<void()>&, int) { fail_without_cuda(); }
void copy_on(const Stream&, void*, const void*, std::size_t) { fail_without_cuda(); }

}  // namespace cuda

namespace portable {

Support available(Device) { return kWithoutCuda; }

Support supports(const DenseDecode&, const Execution&) { return kWithoutCuda; }
std::size_t workspace_bytes(const DenseDecode&, const Execution&) { fail_without_cuda(); }
void run(const DenseDecode&, const Execution&) { fail_without_cuda(); }
std::int64_t schedule_parts(const DenseDecode&, const Execution&) { fail_without_cuda(); }

Support supports(const MakeSchedule&, const Execution&) { return kWithoutCuda; }
std::size_t workspace_bytes(const MakeSchedule&, const Execution&) { fail_without_cuda(); }
void run(const MakeSchedule&, const Execution&) { fail_without_cuda(); }

}  // namespace portable
}  // namespace flashmla
