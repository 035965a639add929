// The GPUs of the machine that a test runs on.
#pragma once

#include <vector>

#include "cuda/device.h"

namespace flashmla {

/// Numbers of all GPUs; tests with these as parameters do not exist on a machine without any.
inline std::vector<int> gpus() {
  std::vector<int> all;
  for (int i = 0; i < cuda::device_count(); ++i) all.push_back(i);
  return all;
}

}  // namespace flashmla
