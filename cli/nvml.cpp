// What the management library of NVIDIA's driver says of a GPU.
#include "cli/nvml.h"

#include <dlfcn.h>

#include <array>
#include <memory>

namespace flashmla::cli {
namespace {

// Interface of the library, from NVIDIA's "NVML API Reference": every function returns 0 for success.
using Device = void*;
constexpr unsigned kClockOfSms = 1;
constexpr unsigned kClockOfMemory = 2;
constexpr unsigned kTemperatureOfGpu = 0;

struct Close {
  void operator()(void* library) const { dlclose(library); }
};

class Library {
 public:
  Library() : handle_(dlopen("libnvidia-ml.so.1", RTLD_NOW)) {
    if (handle_ != nullptr) ready_ = call("nvmlInit_v2");
  }
  ~Library() {
    if (ready_) (void)call("nvmlShutdown");
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  bool ready() const { return ready_; }

  /// False if the function is not there, or fails.
  template <class... Arguments>
  bool call(const char* name, Arguments... arguments) const {
    const auto function = reinterpret_cast<int (*)(Arguments...)>(dlsym(handle_.get(), name));
    return function != nullptr && function(arguments...) == 0;
  }

  /// A number that a function of the GPU writes, 0 if it fails.
  template <class... Arguments>
  int number(const char* name, Arguments... arguments) const {
    unsigned value = 0;
    return call(name, arguments..., &value) ? static_cast<int>(value) : 0;
  }

 private:
  std::unique_ptr<void, Close> handle_;
  bool ready_ = false;
};

}  // namespace

GpuState gpu_state(const std::string& pci_bus_id) {
  GpuState state;
  const Library library;
  if (!library.ready()) return state;
  std::array<char, 96> driver{};
  if (library.call("nvmlSystemGetDriverVersion", driver.data(), unsigned{driver.size() - 1})) {
    state.driver = driver.data();
  }
  Device gpu = nullptr;
  if (!library.call("nvmlDeviceGetHandleByPciBusId_v2", pci_bus_id.c_str(), &gpu)) return state;
  state.clock_mhz = library.number("nvmlDeviceGetClockInfo", gpu, kClockOfSms);
  state.memory_clock_mhz = library.number("nvmlDeviceGetClockInfo", gpu, kClockOfMemory);
  state.temperature = library.number("nvmlDeviceGetTemperature", gpu, kTemperatureOfGpu);
  state.watts = library.number("nvmlDeviceGetPowerUsage", gpu) * 1e-3;
  return state;
}

}  // namespace flashmla::cli
