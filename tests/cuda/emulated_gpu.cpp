// Gives a test program the emulator's GPU with as much shared memory as FLASHMLA_CUDA_SHARED_MEMORY says: a
// kernel that asks for more fails.
#include <gtest/gtest.h>

#include <cstddef>
#include <optional>

#include "cuda/device.h"
#include "cuda/emulator/settings.h"

namespace flashmla {
namespace {

class EmulatedGpu : public testing::Environment {
 public:
  void SetUp() override {
    emulator::Settings settings{.seed = 1, .threads = 1};
    settings.device.sm_count = 48;  // of a GeForce RTX 5070
    settings.device.shared_bytes_per_block = static_cast<std::size_t>(cuda::shared_memory_limit(0));
    settings_.emplace(settings);
  }
  void TearDown() override { settings_.reset(); }

 private:
  std::optional<emulator::ScopedSettings> settings_;
};

// GoogleTest owns it.
[[maybe_unused]] const auto* const kEmulatedGpu = testing::AddGlobalTestEnvironment(new EmulatedGpu);

}  // namespace
}  // namespace flashmla
