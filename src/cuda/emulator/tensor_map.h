// Tensor maps of the emulator: a tensor in global memory, and the boxes that are copied of it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "cuda/emulator/origin.h"
#include "cuda/emulator/wgmma_operand.h"

namespace flashmla::ptx {
struct TensorMap;
}

namespace flashmla::emulator {

/// Dimension 0 is contiguous.
struct TensorLayout {
  static constexpr int kMaxDimensions = 4;

  std::byte* data = nullptr;
  std::uint32_t element_bytes = 0;
  std::uint32_t dimensions = 0;
  std::array<std::uint64_t, kMaxDimensions> sizes = {};         // in elements
  std::array<std::uint64_t, kMaxDimensions> stride_bytes = {};  // that of dimension 0 is not used
  std::array<std::uint16_t, kMaxDimensions> box = {};           // in elements
  Swizzle swizzle = Swizzle::kNone;

  std::uint32_t row_bytes() const { return box[0] * element_bytes; }
  std::uint32_t box_bytes() const;
};

/// Stands for a CUtensorMap. Throws std::invalid_argument where its alignment rules are broken.
ptx::TensorMap encode_tensor_map(const TensorLayout& layout);
TensorLayout decode_tensor_map(const ptx::TensorMap& map);

/// One box of a tensor.
struct Box {
  TensorLayout layout;
  std::array<std::int32_t, TensorLayout::kMaxDimensions> corner = {};

  /// Bytes of row `row` that lie inside of the tensor: they begin `skipped` bytes behind the row's begin.
  struct Row {
    std::byte* global;  // of the first byte inside
    std::uint32_t skipped;
    std::uint32_t bytes;  // 0 if the row is outside
  };

  std::uint32_t rows() const { return layout.box_bytes() / layout.row_bytes(); }
  Row row(std::uint32_t row) const;
};

/// The box that a thread names to load it; fails if the map has another number of dimensions, or if the box
/// does not begin at a multiple of 16 bytes: an H200 calls that an illegal instruction.
Box box_of(const Thread& thread, const ptx::TensorMap& map, const std::int32_t* corner, int dimensions,
           const Location& place);

/// The box that a thread names to store it. As on an H200, no coordinate may be negative, and rows of the
/// tensor end at the next multiple of 16 bytes.
Box stored_box_of(const Thread& thread, const ptx::TensorMap& map, const std::int32_t* corner, int dimensions,
                  const Location& place);

}  // namespace flashmla::emulator
