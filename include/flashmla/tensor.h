// A tensor that somebody else owns: pointer, element type, device, shape and strides.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string_view>

namespace flashmla {

/// Device kinds, with DLPack's numbers.
enum class DeviceType : std::int32_t { kCpu = 1, kCuda = 2 };

struct Device {
  DeviceType type = DeviceType::kCpu;
  std::int32_t index = 0;  ///< ordinal among the devices of this type; 0 for the CPU

  friend bool operator==(const Device&, const Device&) = default;
};

/// Element types. FP8 caches are kU8: e4m3 codes, or rows that mix them with scales and bf16 (see
/// kv_format.h).
enum class DataType : std::uint8_t { kBf16, kF16, kF32, kU8, kI32, kI64 };

/// Bytes of one element.
std::size_t size_of(DataType type);

/// `bf16`, `f16`, `f32`, `u8`, `i32` or `i64`.
std::string_view name_of(DataType type);

inline constexpr int kMaxDims = 5;

/// A view of memory that the caller owns. Strides count elements, may be any value but on the last
/// dimension, which is contiguous in every operation. A default-constructed view is "not given".
///
/// Tensors of rows (last dimension `d_qk`, `d_v` or a cache's `row`) are aligned to 16 bytes, their rows too:
/// `data` and every stride but the last, in bytes, are multiples of 16. Others are aligned to an element.
/// `d_qk` and `d_v` of the attention operations are multiples of 8.
struct TensorView {
  void* data = nullptr;
  DataType type = DataType::kF32;
  Device device;
  std::int32_t ndim = 0;
  std::array<std::int64_t, kMaxDims> shape{};
  std::array<std::int64_t, kMaxDims> strides{};

  /// A row-major view without gaps. Inputs may be const: no operation writes to an input.
  /// Throws Error for more than kMaxDims dimensions, a negative one, or 2^63 elements.
  static TensorView contiguous(const void* data, DataType type, std::initializer_list<std::int64_t> shape,
                               Device device = {});

  /// False for a default-constructed view: an optional argument that was not given.
  bool given() const { return data != nullptr || ndim != 0; }

  /// Number of elements; the largest i64 if there are more.
  std::int64_t size() const;

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

}  // namespace flashmla
