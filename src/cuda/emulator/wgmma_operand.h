// Where wgmma finds the elements of an operand in shared memory: the 64-bit matrix descriptor.
#pragma once

#include <cstdint>

namespace flashmla::emulator {

/// The direction in which an operand's elements are neighbours in memory. K-major is an instruction's normal
/// form, MN-major its transposed one.
enum class Major : std::uint8_t { kK, kMn };

/// Bytes of the pattern in which 16-byte chunks are exchanged: 1 << (4 + value); kNone exchanges nothing.
enum class Swizzle : std::uint8_t { kNone = 0, k32 = 1, k64 = 2, k128 = 3 };

/// Source: PTX ISA, "Matrix Descriptor Format" of wgmma.
struct OperandDescriptor {
  std::uint32_t start = 0;           ///< bytes from the begin of the shared window
  std::uint32_t leading_offset = 0;  ///< bytes, see operand_offset()
  std::uint32_t stride_offset = 0;   ///< bytes, see operand_offset()
  std::uint32_t base_offset = 0;     ///< 0 where patterns are aligned to their size
  Swizzle swizzle = Swizzle::kNone;
};

constexpr OperandDescriptor decode_descriptor(std::uint64_t bits) {
  const auto field = [bits](int lowest, int count) {
    return static_cast<std::uint32_t>((bits >> lowest) & ((std::uint64_t{1} << count) - 1));
  };
  // The field counts from the widest pattern down: 1 is 128 bytes, 3 is 32 bytes.
  constexpr Swizzle kSwizzles[] = {Swizzle::kNone, Swizzle::k128, Swizzle::k64, Swizzle::k32};
  return {.start = field(0, 14) << 4,
          .leading_offset = field(16, 14) << 4,
          .stride_offset = field(32, 14) << 4,
          .base_offset = field(49, 3),
          .swizzle = kSwizzles[field(62, 2)]};
}

/// Exchanges 16-byte chunks: address bits 4, 5 and 6, as many as the pattern has, are xored with bits 7, 8
/// and 9. Addresses count from a multiple of 1024 bytes.
constexpr std::uint32_t swizzled(std::uint32_t address, Swizzle swizzle) {
  const std::uint32_t chunk_mask = ((1u << static_cast<int>(swizzle)) - 1) << 4;
  return address ^ ((address >> 3) & chunk_mask);
}

/// Bytes from the begin of the shared window to element (`row`, `k`) of an operand of 2-byte elements; `row`
/// is m of operand A and n of operand B. Memory is made of cores of 8 rows of 16 bytes (8 elements), and the
/// offsets say where the next core is. With W = 1, 2, 4, 8 chunks of 16 bytes in a row of the pattern:
/// - K-major: a core's rows are rows of the operand, W * 16 bytes apart; 8 more rows are at the stride
/// offset;
///   8 more k are the next chunk, or at the leading offset without a swizzle.
/// - MN-major: a core's rows are k, W * 16 bytes apart; without a swizzle, 8 more rows are at the stride
/// offset
///   and 8 more k at the leading one; with a swizzle, 8 more rows are the next chunk, 8 * W more rows are at
///   the leading offset, and 8 more k at the stride one.
/// `base_offset` must be 0.
/// Source: PTX ISA, "Canonical Layouts" of wgmma.
constexpr std::uint32_t operand_offset(const OperandDescriptor& descriptor, Major major, std::uint32_t row,
                                       std::uint32_t k) {
  const std::uint32_t chunks = 1u << static_cast<int>(descriptor.swizzle);
  const std::uint32_t along = major == Major::kK ? k : row;
  const std::uint32_t across = major == Major::kK ? row : k;
  const bool plain = descriptor.swizzle == Swizzle::kNone;
  // Without a swizzle the two directions of MN-major have exchanged names.
  const bool exchanged = plain && major == Major::kMn;
  const std::uint32_t along_offset = exchanged ? descriptor.stride_offset : descriptor.leading_offset;
  const std::uint32_t across_offset = exchanged ? descriptor.leading_offset : descriptor.stride_offset;

  const std::uint32_t chunk = along / 8;
  // A K-major pattern goes on in one row: an instruction never leaves it.
  const std::uint32_t along_bytes =
      major == Major::kK && !plain ? chunk * 16 : chunk % chunks * 16 + chunk / chunks * along_offset;
  const std::uint32_t across_bytes = across % 8 * chunks * 16 + across / 8 * across_offset;
  return swizzled(descriptor.start + along_bytes + across_bytes, descriptor.swizzle) + along % 8 * 2;
}

/// Calls `visit(offset, row, k)` for each chunk of 8 elements of the operand (`rows` x `depth`, multiples of
/// 8): 16 contiguous bytes at `offset`, whose first element is (`row`, `k`); the next ones follow along
/// `major`.
template <class Visit>
void for_each_chunk(const OperandDescriptor& descriptor, Major major, std::uint32_t rows, std::uint32_t depth,
                    Visit&& visit) {
  const std::uint32_t row_step = major == Major::kMn ? 8 : 1;
  const std::uint32_t k_step = major == Major::kK ? 8 : 1;
  for (std::uint32_t row = 0; row < rows; row += row_step) {
    for (std::uint32_t k = 0; k < depth; k += k_step) {
      visit(operand_offset(descriptor, major, row, k), row, k);
    }
  }
}

}  // namespace flashmla::emulator
