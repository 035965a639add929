// Which GPUs run the portable kernels.
#include "cuda/device.h"
#include "cuda/portable/portable.h"

namespace flashmla::portable {

Support available(Device device) {
  // First of all: to count GPUs starts the driver, after which a forked process can no more use a GPU. Calls
  // on the CPU do not need it.
  if (device.type != DeviceType::kCuda) return {false, "needs tensors in CUDA memory"};
  if (cuda::device_count() == 0) return {false, "no device"};
  if (device.index < 0 || device.index >= cuda::device_count()) return {false, "no such device"};
  if (cuda::device_properties(device.index).architecture() < 80) return {false, "needs SM80 or later"};
  return {true, "SM80 and later"};
}

}  // namespace flashmla::portable
