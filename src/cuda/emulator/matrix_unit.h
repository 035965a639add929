// The matrix unit's arithmetic, bit for bit: products of 16-bit operands added to f32 accumulators.
//
// One step adds K products to an accumulator, as one mma.sync m16n8k16 (K = 16), m16n8k8 (K = 8) or wgmma k16
// does, and rounds like this:
// - A product is exact and has the exponent `ea + eb`; it is not normalized. A subnormal operand has the
//   exponent of the smallest normal number and no hidden bit.
// - `emax` is the largest exponent of the products and the accumulator, zeros left out.
// - Each term is truncated toward zero to a multiple of 2^(emax - 25); the sum of these is exact.
// - The sum is truncated toward zero to f32. Zero is +0. NaN is 0x7fffffff.
//
// Found on an H200 with bf16 operands: no difference in 2,097,152 outputs. test_wrappers compares both types,
// sums that overflow too, with recorded outputs of an H200. Other architectures were not measured.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace flashmla::emulator {

enum class OperandType : std::uint8_t { kBf16, kF16 };

/// The last bit that a term keeps is 2^(emax - kAlignmentBits).
inline constexpr int kAlignmentBits = 25;

/// One step, term by term. `a` and `b` are codes of `type`, as many of each as the step has products.
float product_step(OperandType type, std::span<const std::uint16_t> a, std::span<const std::uint16_t> b,
                   float accumulator);

struct ProductShape {
  int rows = 0;     ///< at most 64
  int columns = 0;  ///< a multiple of 8
  int depth = 0;    ///< products of the step, at most 16
};

/// One step for each of `rows` x `columns` accumulators, with the bits of product_step():
/// `accumulators[row][column]` takes `a[row][k] * b[k][column]`; all three are row-major without gaps.
void multiply_step(OperandType type, ProductShape shape, const std::uint16_t* a, const std::uint16_t* b,
                   float* accumulators);

/// mma.sync.aligned.m16n8k16, or m16n8k8 if `depth` is 8: registers of 32 lanes to accumulators of 32 lanes.
/// A uses 4 registers a lane and B 2; with depth 8 the first 2 and the first.
void warp_mma(OperandType type, int depth, std::span<const std::array<std::uint32_t, 4>, 32> a,
              std::span<const std::array<std::uint32_t, 2>, 32> b,
              std::span<std::array<float, 4>, 32> accumulators);

}  // namespace flashmla::emulator
