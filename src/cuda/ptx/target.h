// Says for which world kernel code is being compiled: a GPU, or the emulator on the host.
//
// A kernel and all that it calls is one source for both. nvcc compiles it for a GPU: then FLASHMLA_ON_GPU is
// defined. A host compiler compiles it for the emulator, which has the same functions (see docs/gpu.md).
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#define FLASHMLA_ON_GPU 1
#define FLASHMLA_DEVICE __device__ __forceinline__
/// Last parameter of a wrapper that the emulator may complain about: where it was called.
#define FLASHMLA_PLACE
#define FLASHMLA_ONLY_PLACE
/// Before a loop that is unrolled, so that its arrays stay in registers.
#define FLASHMLA_UNROLL _Pragma("unroll")

#else

#include <source_location>

#define FLASHMLA_DEVICE inline
#define FLASHMLA_ONLY_PLACE std::source_location place = std::source_location::current()
#define FLASHMLA_PLACE , FLASHMLA_ONLY_PLACE
#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define FLASHMLA_UNROLL

#endif

namespace flashmla::ptx {

struct Index3 {
  std::uint32_t x = 1;
  std::uint32_t y = 1;
  std::uint32_t z = 1;

  friend constexpr bool operator==(const Index3&, const Index3&) = default;
};

/// What one thread moves at most with one instruction.
struct alignas(16) Bytes16 {
  std::uint32_t words[4];
};

/// Raw bits of a bf16 or f16 number, so that both worlds have the same type.
struct Bf16 {
  std::uint16_t bits;
};
struct F16 {
  std::uint16_t bits;
};

inline constexpr int kWarpSize = 32;
inline constexpr int kWarpgroupSize = 128;
inline constexpr std::uint32_t kAllLanes = 0xffffffffu;

}  // namespace flashmla::ptx
