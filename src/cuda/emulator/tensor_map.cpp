// Finds the rows of a box in its tensor.
#include "cuda/emulator/tensor_map.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda/emulator/failure.h"
#include "cuda/ptx/bulk_copy.h"

namespace flashmla::emulator {

static_assert(sizeof(TensorLayout) <= sizeof(ptx::TensorMap));

/// In bytes: what tensors, their rows, and the rows of boxes begin at a multiple of.
constexpr std::int64_t kAlignment = 16;

std::uint32_t TensorLayout::box_bytes() const {
  std::uint32_t bytes = element_bytes;
  for (std::uint32_t i = 0; i < dimensions; ++i) bytes *= box[i];
  return bytes;
}

ptx::TensorMap encode_tensor_map(const TensorLayout& layout) {
  bool good = layout.dimensions >= 1 && layout.dimensions <= TensorLayout::kMaxDimensions &&
              reinterpret_cast<std::uintptr_t>(layout.data) % kAlignment == 0 &&
              layout.row_bytes() % kAlignment == 0 && layout.box_bytes() > 0;
  for (std::uint32_t i = 0; good && i < layout.dimensions; ++i) {
    good =
        layout.box[i] <= 256 && layout.sizes[i] > 0 && (i == 0 || layout.stride_bytes[i] % kAlignment == 0);
  }
  const std::uint32_t pattern = 16u << static_cast<int>(layout.swizzle);
  if (layout.swizzle != Swizzle::kNone) good = good && layout.row_bytes() == pattern;
  if (!good) throw std::invalid_argument("a tensor map can't describe this tensor and box");
  ptx::TensorMap map = {};
  std::memcpy(&map, &layout, sizeof(layout));
  return map;
}

TensorLayout decode_tensor_map(const ptx::TensorMap& map) {
  TensorLayout layout;
  std::memcpy(static_cast<void*>(&layout), &map, sizeof(layout));
  return layout;
}

Box box_of(const Thread& thread, const ptx::TensorMap& map, const std::int32_t* corner, int dimensions,
           const Location& place) {
  Box box{.layout = decode_tensor_map(map)};
  if (box.layout.dimensions != static_cast<std::uint32_t>(dimensions)) {
    fail(thread, place,
         "a copy with " + std::to_string(dimensions) + " coordinates, and a tensor map with " +
             std::to_string(box.layout.dimensions) + " dimensions");
  }
  if (std::int64_t{corner[0]} * box.layout.element_bytes % kAlignment != 0) {
    fail(thread, place,
         "a box that begins at column " + std::to_string(corner[0]) + " of " +
             std::to_string(box.layout.element_bytes) + " bytes each, which is no multiple of 16 bytes");
  }
  std::copy_n(corner, dimensions, box.corner.begin());
  return box;
}

Box stored_box_of(const Thread& thread, const ptx::TensorMap& map, const std::int32_t* corner, int dimensions,
                  const Location& place) {
  Box box = box_of(thread, map, corner, dimensions, place);
  if (std::ranges::any_of(box.corner, [](std::int32_t at) { return at < 0; })) {
    fail(thread, place, "a store of a box that begins in front of its tensor");
  }
  const auto elements = static_cast<std::uint64_t>(kAlignment) / box.layout.element_bytes;
  box.layout.sizes[0] = (box.layout.sizes[0] + elements - 1) / elements * elements;
  return box;
}

Box::Row Box::row(std::uint32_t row) const {
  std::byte* global = layout.data;
  for (std::uint32_t i = 1; i < layout.dimensions; ++i) {
    const std::int64_t index = std::int64_t{corner[i]} + row % layout.box[i];
    row /= layout.box[i];
    if (index < 0 || index >= static_cast<std::int64_t>(layout.sizes[i])) return {nullptr, 0, 0};
    global += index * static_cast<std::int64_t>(layout.stride_bytes[i]);
  }
  const auto first = std::max<std::int64_t>(corner[0], 0);
  const auto last = std::min<std::int64_t>(std::int64_t{corner[0]} + layout.box[0],
                                           static_cast<std::int64_t>(layout.sizes[0]));
  if (first >= last) return {nullptr, 0, 0};
  return {global + first * layout.element_bytes,
          static_cast<std::uint32_t>(first - corner[0]) * layout.element_bytes,
          static_cast<std::uint32_t>(last - first) * layout.element_bytes};
}

}  // namespace flashmla::emulator
