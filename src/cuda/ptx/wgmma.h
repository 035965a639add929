// wgmma: asynchronous matrix products of a warpgroup (four neighbouring warps, the first divisible by 4) from
// shared memory. SM90a alone.
// PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
//
// D is 64 x N, f32: with `w = warp % 4`, `g = lane / 4`, `t = lane % 4`, register `4 i + j` of a thread is at
// row `16 w + g + 8 (j / 2)` and column `8 i + 2 t + j % 2`. A from registers has the fragment of mma_16x8x16
// with rows `16 w + ...`.
#pragma once

#include "cuda/ptx/target.h"
#ifndef FLASHMLA_ON_GPU
#include "cuda/emulator/instructions.h"
#endif

namespace flashmla::ptx {

/// How 16-byte chunks are permuted in shared memory: bits 4 to 6 of an address (4 to 5, 4) are xored with
/// bits 7 to 9 (7 to 8, 7). Chunk `c` of row `r` of 128 bytes lies at `c ^ (r % 8)`; of 64 bytes at `c ^ (r /
/// 2 % 4)`; of 32 bytes at `c ^ (r / 4 % 2)`.
enum class Swizzle : std::uint64_t { kNone = 0, k128 = 1, k64 = 2, k32 = 3 };

/// Which of a matrix's dimensions is contiguous in shared memory: that of the sum, or the other.
enum class Major : int { kK = 0, kOther = 1 };

/// Describes an operand in shared memory. `leading_bytes` and `stride_bytes` are the distances between its
/// 8-row (or 8-column) core matrices; PTX ISA, "Matrix descriptor format".
FLASHMLA_DEVICE std::uint64_t matrix_descriptor(const void* shared, std::uint32_t leading_bytes,
                                                std::uint32_t stride_bytes, Swizzle swizzle) {
#ifdef FLASHMLA_ON_GPU
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
#else
  const std::uint32_t address = emulator::shared_address(shared);
#endif
  return std::uint64_t{(address & 0x3ffffu) >> 4} | std::uint64_t{(leading_bytes & 0x3ffffu) >> 4} << 16 |
         std::uint64_t{(stride_bytes & 0x3ffffu) >> 4} << 32 | static_cast<std::uint64_t>(swizzle) << 62;
}

/// `wgmma.fence`: orders registers and shared memory that threads wrote before products that follow. First of
/// all, and whenever accumulators were touched.
FLASHMLA_DEVICE void wgmma_fence(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  emulator::wgmma_fence(place);
#endif
}

/// `wgmma.commit_group`: products since the last group form a group.
FLASHMLA_DEVICE void wgmma_commit(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  emulator::wgmma_commit(place);
#endif
}

/// `wgmma.wait_group`: waits until at most `kPending` groups are under way.
template <int kPending>
FLASHMLA_DEVICE void wgmma_wait(FLASHMLA_ONLY_PLACE) {
#ifdef FLASHMLA_ON_GPU
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#else
  emulator::wgmma_wait(kPending, place);
#endif
}

/// Keeps the compiler from moving accesses of accumulators across this point.
template <int kRegisters>
FLASHMLA_DEVICE void pin_registers(float (&d)[kRegisters]) {
#ifdef FLASHMLA_ON_GPU
  FLASHMLA_UNROLL
  for (int i = 0; i < kRegisters; ++i) asm volatile("" : "+f"(d[i])::"memory");
#else
  static_cast<void>(d);
#endif
}

/// `wgmma.mma_async.m64nNk16` with `N = 2 * kRegisters`: `d = a * b`, plus `d` if `accumulate`. Operands are
/// described; `T` is Bf16 or F16. The registers of `d` belong to the product until wgmma_wait().
template <class T, Major kA = Major::kK, Major kB = Major::kK, int kRegisters>
FLASHMLA_DEVICE void wgmma(float (&d)[kRegisters], std::uint64_t a, std::uint64_t b,
                           bool accumulate FLASHMLA_PLACE);

/// The same with `a` from registers; they too belong to the product until wgmma_wait().
template <class T, Major kB = Major::kK, int kRegisters>
FLASHMLA_DEVICE void wgmma(float (&d)[kRegisters], const std::uint32_t (&a)[4], std::uint64_t b,
                           bool accumulate FLASHMLA_PLACE);

#ifdef FLASHMLA_ON_GPU

// The lists of registers that one instruction names.
#define FLASHMLA_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FLASHMLA_D8(i) FLASHMLA_D4(i), FLASHMLA_D4(i + 4)
#define FLASHMLA_D16(i) FLASHMLA_D8(i), FLASHMLA_D8(i + 8)
#define FLASHMLA_D32(i) FLASHMLA_D16(i), FLASHMLA_D16(i + 16)
#define FLASHMLA_D64(i) FLASHMLA_D32(i), FLASHMLA_D32(i + 32)
#define FLASHMLA_D128(i) FLASHMLA_D64(i), FLASHMLA_D64(i + 64)
#define FLASHMLA_NAMES4 \
  "{"                   \
  "%0, %1, %2, %3"      \
  "}"
#define FLASHMLA_NAMES8            \
  "{"                              \
  "%0, %1, %2, %3, %4, %5, %6, %7" \
  "}"
#define FLASHMLA_NAMES16                                                 \
  "{"                                                                    \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
  "}"
#define FLASHMLA_NAMES32                                                           \
  "{"                                                                              \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "         \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
  "}"
#define FLASHMLA_NAMES64                                                             \
  "{"                                                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"   \
  "}"
#define FLASHMLA_NAMES128                                                                          \
  "{"                                                                                              \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                         \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "               \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "               \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "               \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "               \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "   \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127" \
  "}"

/// One instruction: `sum` registers, element type, and the numbers of the operands behind the registers.
#define FLASHMLA_WGMMA_SHARED(sum, type, at_a, at_b, at_p, at_ta, at_tb)                                    \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #at_p                                                   \
               ", 0;\n"                                                                                     \
               "wgmma.mma_async.sync.aligned.m64n" FLASHMLA_WIDTH##sum                                      \
               "k16.f32." type "." type " " FLASHMLA_NAMES##sum ", %" #at_a ", %" #at_b                     \
                                                                ", p, 1, 1, %" #at_ta ", %" #at_tb ";\n}\n" \
               : FLASHMLA_D##sum(0)                                                                         \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(kA)),              \
                 "n"(static_cast<int>(kB)))
#define FLASHMLA_WGMMA_REGISTERS(sum, type, at_a0, at_a1, at_a2, at_a3, at_b, at_p, at_tb)              \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #at_p                                               \
               ", 0;\n"                                                                                 \
               "wgmma.mma_async.sync.aligned.m64n" FLASHMLA_WIDTH##sum "k16.f32." type "." type         \
                                                                       " " FLASHMLA_NAMES##sum          \
               ", {%" #at_a0 ", %" #at_a1 ", %" #at_a2 ", %" #at_a3 "}, %" #at_b ", p, 1, 1, %" #at_tb  \
               ";\n}\n"                                                                                 \
               : FLASHMLA_D##sum(0)                                                                     \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)), \
                 "n"(static_cast<int>(kB)))
#define FLASHMLA_WIDTH4 "8"
#define FLASHMLA_WIDTH8 "16"
#define FLASHMLA_WIDTH16 "32"
#define FLASHMLA_WIDTH32 "64"
#define FLASHMLA_WIDTH64 "128"
#define FLASHMLA_WIDTH128 "256"

template <class T, Major kA, Major kB, int kRegisters>
FLASHMLA_DEVICE void wgmma(float (&d)[kRegisters], std::uint64_t a, std::uint64_t b, bool accumulate) {
  constexpr bool kBf16 = __is_same(T, Bf16);
  static_assert(kBf16 || __is_same(T, F16));
  if constexpr (kRegisters == 4 && kBf16) {
    FLASHMLA_WGMMA_SHARED(4, "bf16", 4, 5, 6, 7, 8);
  } else if constexpr (kRegisters == 4 && !kBf16) {
    FLASHMLA_WGMMA_SHARED(4, "f16", 4, 5, 6, 7, 8);
  } else if constexpr (kRegisters == 8 && kBf16) {
    FLASHMLA_WGMMA_SHARED(8, "bf16", 8, 9, 10, 11, 12);
  } else if constexpr (kRegisters == 8 && !kBf16) {
    FLASHMLA_WGMMA_SHARED(8, "f16", 8, 9, 10, 11, 12);
  } else if constexpr (kRegisters == 16 && kBf16) {
    FLASHMLA_WGMMA_SHARED(16, "bf16", 16, 17, 18, 19, 20);
  } else if constexpr (kRegisters == 16 && !kBf16) {
    FLASHMLA_WGMMA_SHARED(16, "f16", 16, 17, 18, 19, 20);
  } else if constexpr (kRegisters == 32 && kBf16) {
    FLASHMLA_WGMMA_SHARED(32, "bf16", 32, 33, 34, 35, 36);
  } else if constexpr (kRegisters == 32 && !kBf16) {
    FLASHMLA_WGMMA_SHARED(32, "f16", 32, 33, 34, 35, 36);
  } else if constexpr (kRegisters == 64 && kBf16) {
    FLASHMLA_WGMMA_SHARED(64, "bf16", 64, 65, 66, 67, 68);
  } else if constexpr (kRegisters == 64 && !kBf16) {
    FLASHMLA_WGMMA_SHARED(64, "f16", 64, 65, 66, 67, 68);
  } else if constexpr (kRegisters == 128 && kBf16) {
    FLASHMLA_WGMMA_SHARED(128, "bf16", 128, 129, 130, 131, 132);
  } else if constexpr (kRegisters == 128 && !kBf16) {
    FLASHMLA_WGMMA_SHARED(128, "f16", 128, 129, 130, 131, 132);
  } else {
    static_assert(kRegisters == 4, "N is 8, 16, 32, 64, 128 or 256");
  }
}

template <class T, Major kB, int kRegisters>
FLASHMLA_DEVICE void wgmma(float (&d)[kRegisters], const std::uint32_t (&a)[4], std::uint64_t b,
                           bool accumulate) {
  constexpr bool kBf16 = __is_same(T, Bf16);
  static_assert(kBf16 || __is_same(T, F16));
  if constexpr (kRegisters == 4 && kBf16) {
    FLASHMLA_WGMMA_REGISTERS(4, "bf16", 4, 5, 6, 7, 8, 9, 10);
  } else if constexpr (kRegisters == 4 && !kBf16) {
    FLASHMLA_WGMMA_REGISTERS(4, "f16", 4, 5, 6, 7, 8, 9, 10);
  } else if constexpr (kRegisters == 8 && kBf16) {
    FLASHMLA_WGMMA_REGISTERS(8, "bf16", 8, 9, 10, 11, 12, 13, 14);
  } else if constexpr (kRegisters == 8 && !kBf16) {
    FLASHMLA_WGMMA_REGISTERS(8, "f16", 8, 9, 10, 11, 12, 13, 14);
  } else if constexpr (kRegisters == 16 && kBf16) {
    FLASHMLA_WGMMA_REGISTERS(16, "bf16", 16, 17, 18, 19, 20, 21, 22);
  } else if constexpr (kRegisters == 16 && !kBf16) {
    FLASHMLA_WGMMA_REGISTERS(16, "f16", 16, 17, 18, 19, 20, 21, 22);
  } else if constexpr (kRegisters == 32 && kBf16) {
    FLASHMLA_WGMMA_REGISTERS(32, "bf16", 32, 33, 34, 35, 36, 37, 38);
  } else if constexpr (kRegisters == 32 && !kBf16) {
    FLASHMLA_WGMMA_REGISTERS(32, "f16", 32, 33, 34, 35, 36, 37, 38);
  } else if constexpr (kRegisters == 64 && kBf16) {
    FLASHMLA_WGMMA_REGISTERS(64, "bf16", 64, 65, 66, 67, 68, 69, 70);
  } else if constexpr (kRegisters == 64 && !kBf16) {
    FLASHMLA_WGMMA_REGISTERS(64, "f16", 64, 65, 66, 67, 68, 69, 70);
  } else if constexpr (kRegisters == 128 && kBf16) {
    FLASHMLA_WGMMA_REGISTERS(128, "bf16", 128, 129, 130, 131, 132, 133, 134);
  } else if constexpr (kRegisters == 128 && !kBf16) {
    FLASHMLA_WGMMA_REGISTERS(128, "f16", 128, 129, 130, 131, 132, 133, 134);
  } else {
    static_assert(kRegisters == 4, "N is 8, 16, 32, 64, 128 or 256");
  }
}

#undef FLASHMLA_D4
#undef FLASHMLA_D8
#undef FLASHMLA_D16
#undef FLASHMLA_D32
#undef FLASHMLA_D64
#undef FLASHMLA_D128
#undef FLASHMLA_NAMES4
#undef FLASHMLA_NAMES8
#undef FLASHMLA_NAMES16
#undef FLASHMLA_NAMES32
#undef FLASHMLA_NAMES64
#undef FLASHMLA_NAMES128
#undef FLASHMLA_WIDTH4
#undef FLASHMLA_WIDTH8
#undef FLASHMLA_WIDTH16
#undef FLASHMLA_WIDTH32
#undef FLASHMLA_WIDTH64
#undef FLASHMLA_WIDTH128
#undef FLASHMLA_WGMMA_SHARED
#undef FLASHMLA_WGMMA_REGISTERS

#else

template <class T, Major kA, Major kB, int kRegisters>
inline void wgmma(float (&d)[kRegisters], std::uint64_t a, std::uint64_t b, bool accumulate,
                  std::source_location place) {
  emulator::wgmma<T>(d, kRegisters, a, kA == Major::kOther, b, kB == Major::kOther, accumulate, place);
}

template <class T, Major kB, int kRegisters>
inline void wgmma(float (&d)[kRegisters], const std::uint32_t (&a)[4], std::uint64_t b, bool accumulate,
                  std::source_location place) {
  emulator::wgmma<T>(d, kRegisters, a, b, kB == Major::kOther, accumulate, place);
}

#endif

}  // namespace flashmla::ptx
