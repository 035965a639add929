// Makes tensor maps, which tell bulk copies of boxes how a tensor lies in memory; for launchers of kernels.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "cuda/ptx/bulk_copy.h"
#include "cuda/ptx/wgmma.h"
#ifdef FLASHMLA_ON_GPU
#include <cuda.h>
#include <cuda_runtime.h>

#include "api/message.h"
#include "cuda/error.h"
#else
#include "cuda/emulator/tensor_map.h"
#endif

namespace flashmla::cuda {

/// A tensor in global memory and the box that one instruction copies of it. Dimension 0 is contiguous; the
/// pointer and the strides are multiples of 16 bytes.
struct BoxedTensor {
  static constexpr std::size_t kMaxDimensions = 4;

  void* data = nullptr;
  std::uint32_t element_bytes = 2;  ///< 1, 2 or 4
  std::uint32_t dimensions = 2;     ///< 2 to 4
  std::array<std::uint64_t, kMaxDimensions> sizes = {};
  /// Of dimensions 1, 2, 3; each is a multiple of the one before.
  std::array<std::uint64_t, kMaxDimensions - 1> stride_bytes = {};
  /// At most 256 each. A row of the box has a multiple of 16 bytes; with a swizzle, as many as its pattern:
  /// shorter rows leave gaps in shared memory.
  std::array<std::uint32_t, kMaxDimensions> box = {};
  ptx::Swizzle swizzle = ptx::Swizzle::kNone;
};

#ifdef FLASHMLA_ON_GPU

/// The driver's function, found at run time: nothing links against the driver.
inline auto tensor_map_encoder() {
  using Encoder = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                               const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                               CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  constexpr unsigned kSince = 12000;
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kSince, cudaEnableDefault,
                                         &found),
        "the driver's function for tensor maps");
  if (found != cudaDriverEntryPointSuccess) {
    fail(ErrorKind::kDevice, "tensor map", "the driver is older than CUDA 12.0");
  }
  return reinterpret_cast<Encoder>(function);
}

inline CUtensorMapSwizzle driver_swizzle(ptx::Swizzle swizzle) {
  switch (swizzle) {
    case ptx::Swizzle::k32:
      return CU_TENSOR_MAP_SWIZZLE_32B;
    case ptx::Swizzle::k64:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    case ptx::Swizzle::k128:
      return CU_TENSOR_MAP_SWIZZLE_128B;
    default:
      return CU_TENSOR_MAP_SWIZZLE_NONE;
  }
}

/// Throws Error where the tensor breaks a rule of alignment.
inline ptx::TensorMap make_tensor_map(const BoxedTensor& tensor) {
  static_assert(sizeof(ptx::TensorMap) == sizeof(CUtensorMap));
  static const auto encode = tensor_map_encoder();
  const CUtensorMapDataType type = tensor.element_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                   : tensor.element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16
                                                               : CU_TENSOR_MAP_DATA_TYPE_UINT32;
  const std::array<std::uint32_t, BoxedTensor::kMaxDimensions> every = {1, 1, 1, 1};
  std::array<cuuint64_t, BoxedTensor::kMaxDimensions> sizes;
  std::array<cuuint64_t, BoxedTensor::kMaxDimensions - 1> strides;
  for (std::size_t i = 0; i < sizes.size(); ++i) sizes[i] = tensor.sizes[i];
  for (std::size_t i = 0; i < strides.size(); ++i) strides[i] = tensor.stride_bytes[i];
  alignas(64) CUtensorMap map;
  const CUresult result =
      encode(&map, type, tensor.dimensions, tensor.data, sizes.data(), strides.data(), tensor.box.data(),
             every.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, driver_swizzle(tensor.swizzle),
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    fail(ErrorKind::kDevice, "tensor map", "the driver refuses this tensor and box, error ",
         static_cast<int>(result));
  }
  return __builtin_bit_cast(ptx::TensorMap, map);
}

#else

inline ptx::TensorMap make_tensor_map(const BoxedTensor& tensor) {
  emulator::TensorLayout layout{.data = static_cast<std::byte*>(tensor.data),
                                .element_bytes = tensor.element_bytes,
                                .dimensions = tensor.dimensions,
                                .sizes = tensor.sizes};
  switch (tensor.swizzle) {
    case ptx::Swizzle::kNone:
      layout.swizzle = emulator::Swizzle::kNone;
      break;
    case ptx::Swizzle::k32:
      layout.swizzle = emulator::Swizzle::k32;
      break;
    case ptx::Swizzle::k64:
      layout.swizzle = emulator::Swizzle::k64;
      break;
    case ptx::Swizzle::k128:
      layout.swizzle = emulator::Swizzle::k128;
      break;
  }
  for (std::size_t i = 0; i < tensor.dimensions; ++i) {
    layout.box[i] = static_cast<std::uint16_t>(tensor.box[i]);
    if (i > 0) layout.stride_bytes[i] = tensor.stride_bytes[i - 1];
  }
  return emulator::encode_tensor_map(layout);
}

#endif

}  // namespace flashmla::cuda
