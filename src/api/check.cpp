// Checks of an operation's tensors against the declaration of its fields.
#include "api/check.h"

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <optional>
#include <string>

#include "flashmla/kv_format.h"

namespace flashmla {
namespace {

constexpr std::int64_t kRowAlignment = 16;  // bytes: one vector load of every backend

/// Cuts the next piece off `rest`, up to `separator`.
std::string_view next_piece(std::string_view& rest, char separator) {
  const std::size_t end = rest.find(separator);
  const std::string_view piece = rest.substr(0, end);
  rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
  return piece;
}

std::string_view without_brackets(std::string_view shape) { return shape.substr(1, shape.size() - 2); }

/// One dimension of a declared shape: a number, or a symbol plus 0 or 1.
struct Dimension {
  std::string_view symbol;  // empty for a number
  std::int64_t offset = 0;  // the number, or what is added to the symbol
};

Dimension parse_dimension(std::string_view piece) {
  if (piece.front() >= '0' && piece.front() <= '9') {
    std::int64_t number = 0;
    for (const char digit : piece) number = number * 10 + (digit - '0');
    return {{}, number};
  }
  if (piece.ends_with("+1")) return {piece.substr(0, piece.size() - 2), 1};
  return {piece, 0};
}

/// Values of the symbols that have been met.
class Symbols {
 public:
  std::optional<std::int64_t> value(std::string_view symbol) const {
    for (std::size_t i = 0; i < count_; ++i) {
      if (names_[i] == symbol) return values_[i];
    }
    return std::nullopt;
  }

  void bind(std::string_view symbol, std::int64_t value) {
    names_.at(count_) = symbol;
    values_.at(count_++) = value;
  }

 private:
  std::array<std::string_view, 16> names_;
  std::array<std::int64_t, 16> values_{};
  std::size_t count_ = 0;
};

class FieldChecker {
 public:
  FieldChecker(std::string_view operation, std::span<const BoundField> fields, Device device, Checked what)
      : operation_(operation),
        fields_(fields),
        device_(device),
        with_memory_(what == Checked::kShapesAndMemory) {}

  void check_all() {
    for (const BoundField& field : fields_) {
      for (std::size_t i = 0; i < field.tensors.size(); ++i) check(field, i);
    }
  }

 private:
  void check(const BoundField& field, std::size_t i) {
    const TensorView& tensor = field.tensors[i];
    if (!tensor.given()) {
      if (field.role == Role::kOptional) return;
      fail_field(ErrorKind::kValue, field, i, " must be ", expected(field), ", but is missing");
    }
    if (!type_matches(field, tensor.type)) fail_got(ErrorKind::kType, field, i);
    if (!bind_shape(field, tensor)) fail_got(ErrorKind::kValue, field, i);
    if (tensor.device != device_) {
      fail_field(ErrorKind::kValue, field, i, " must be on ", device_text(device_), ", got ",
                 device_text(tensor.device));
    }
    if (tensor.size() == 0) return;
    if (tensor.data == nullptr && with_memory_) {
      fail_field(ErrorKind::kValue, field, i, " must be ", expected(field), ", got a null pointer");
    }
    check_layout(field, i, tensor);
  }

  bool type_matches(const BoundField& field, DataType type) const {
    std::string_view rest = field.types;
    while (!rest.empty()) {
      const std::string_view piece = next_piece(rest, '|');
      const BoundField* same = find(piece);
      if (same != nullptr ? same->tensors[0].type == type : piece == name_of(type)) return true;
    }
    return false;
  }

  /// False where a dimension disagrees; symbols that are met for the first time are bound.
  bool bind_shape(const BoundField& field, const TensorView& tensor) {
    std::string_view rest = without_brackets(field.shape);
    int dim = 0;
    while (!rest.empty()) {
      const Dimension declared = parse_dimension(next_piece(rest, ' '));
      if (dim >= tensor.ndim || dim >= kMaxDims) return false;
      if (tensor.shape[dim] < declared.offset) return false;
      const std::int64_t extent = tensor.shape[dim++] - declared.offset;
      const auto bound =
          declared.symbol.empty() ? std::optional<std::int64_t>(0) : symbols_.value(declared.symbol);
      if (bound && *bound != extent) return false;
      if (!bound) symbols_.bind(declared.symbol, extent);
    }
    return dim == tensor.ndim;
  }

  void check_layout(const BoundField& field, std::size_t i, const TensorView& tensor) const {
    const int last = tensor.ndim - 1;
    if (tensor.shape[last] > 1 && tensor.strides[last] != 1) {
      fail_field(ErrorKind::kValue, field, i, " must have a contiguous last dimension, got strides ",
                 numbers(tensor.strides, tensor.ndim));
    }
    if (holds_rows(field)) {
      check_rows(field, i, tensor);
    } else if (reinterpret_cast<std::uintptr_t>(tensor.data) % size_of(tensor.type) != 0) {
      fail_field(ErrorKind::kValue, field, i, " must be aligned to its elements of ", size_of(tensor.type),
                 " bytes, got address ", tensor.data);
    }
    if ((field.role == Role::kOutput || field.role == Role::kUpdate) && overlaps_itself(tensor)) {
      fail_field(ErrorKind::kValue, field, i, " is written, so its elements must not overlap, got shape ",
                 numbers(tensor.shape, tensor.ndim), " with strides ", numbers(tensor.strides, tensor.ndim));
    }
  }

  static std::string_view last_dimension(const BoundField& field) {
    const std::string_view shape = without_brackets(field.shape);
    return shape.substr(shape.rfind(' ') + 1);
  }

  /// Whether the last dimension is a vector of values (`d_v`), or bytes in a format of a cache.
  static bool holds_rows(const BoundField& field) {
    return last_dimension(field).starts_with("d_") || holds_formats(field);
  }
  static bool holds_formats(const BoundField& field) { return last_dimension(field) == "row"; }

  void check_rows(const BoundField& field, std::size_t i, const TensorView& tensor) const {
    // The token stride of fp8_model1 is a name only: a token lies in two places of its block.
    const bool split_rows = holds_formats(field) && kv_format_of(tensor) == KvFormat::kFp8Model1;
    if (split_rows && tensor.shape[1] > 1 && tensor.strides[1] != tensor.shape[3]) {
      fail_field(ErrorKind::kValue, field, i, " in format fp8_model1 must have token stride ",
                 tensor.shape[3], ", got strides ", numbers(tensor.strides, tensor.ndim));
    }
    const auto bytes = static_cast<std::int64_t>(size_of(tensor.type));
    bool aligned = reinterpret_cast<std::uintptr_t>(tensor.data) % kRowAlignment == 0;
    for (int dim = 0; dim + 1 < (split_rows ? 2 : tensor.ndim); ++dim) {
      if (tensor.shape[dim] > 1) aligned &= tensor.strides[dim] % (kRowAlignment / bytes) == 0;
    }
    if (!aligned) {
      fail_field(ErrorKind::kValue, field, i, " must be aligned to ", kRowAlignment,
                 " bytes, its rows too, got address ", tensor.data, " and strides of ",
                 numbers(tensor.strides, tensor.ndim), " elements of ", bytes, " bytes");
    }
  }

  static std::int64_t distance(std::int64_t stride) {
    return stride == std::numeric_limits<std::int64_t>::min() ? std::numeric_limits<std::int64_t>::max()
                                                              : std::abs(stride);
  }

  /// Whether two index positions may name the same element. Exact for every layout that slicing,
  /// padding and permuting a packed tensor can make.
  static bool overlaps_itself(const TensorView& tensor) {
    std::array<int, kMaxDims> order{};
    for (int dim = 0; dim < tensor.ndim; ++dim) {
      int at = dim;
      for (; at > 0 && distance(tensor.strides[order[at - 1]]) > distance(tensor.strides[dim]); --at) {
        order[at] = order[at - 1];
      }
      order[at] = dim;
    }
    std::int64_t reach = 0;  // distance from the first to the last element of the dimensions so far
    for (int i = 0; i < tensor.ndim; ++i) {
      const int dim = order[i];
      if (tensor.shape[dim] <= 1) continue;
      const std::int64_t stride = distance(tensor.strides[dim]);
      std::int64_t extent = 0;
      if (stride <= reach) return true;
      if (__builtin_mul_overflow(tensor.shape[dim] - 1, stride, &extent)) return true;
      if (__builtin_add_overflow(reach, extent, &reach)) return true;
    }
    return false;
  }

  /// The given field of this name, for types that refer to it.
  const BoundField* find(std::string_view name) const {
    for (const BoundField& field : fields_) {
      if (field.name == name && !field.tensors.empty()) return &field;
    }
    return nullptr;
  }

  std::string expected(const BoundField& field) const {
    std::string result;
    std::string_view types = field.types;
    while (!types.empty()) {
      const std::string_view piece = next_piece(types, '|');
      const BoundField* same = find(piece);
      result += text(result.empty() ? "" : "|", same != nullptr ? name_of(same->tensors[0].type) : piece);
    }
    result += " [";
    std::string_view shape = without_brackets(field.shape);
    bool first = true;
    while (!shape.empty()) {
      const std::string_view piece = next_piece(shape, ' ');
      const Dimension declared = parse_dimension(piece);
      result += text(first ? "" : ", ", piece);
      if (const auto bound = symbols_.value(declared.symbol)) result += text("=", *bound + declared.offset);
      first = false;
    }
    return result + "]";
  }

  static std::string numbers(const std::array<std::int64_t, kMaxDims>& values, int count) {
    std::string result = "[";
    for (int i = 0; i < count && i < kMaxDims; ++i) result += text(i == 0 ? "" : ", ", values[i]);
    return result + "]";
  }

  static std::string device_text(Device device) {
    if (device == Device{}) return "cpu";
    return text(device.type == DeviceType::kCpu ? "cpu:" : "cuda:", device.index);
  }

  [[noreturn]] void fail_got(ErrorKind kind, const BoundField& field, std::size_t i) const {
    const TensorView& tensor = field.tensors[i];
    fail_field(kind, field, i, " must be ", expected(field), ", got ", name_of(tensor.type), " ",
               numbers(tensor.shape, tensor.ndim));
  }

  template <class... Parts>
  [[noreturn]] void fail_field(ErrorKind kind, const BoundField& field, std::size_t i,
                               const Parts&... parts) const {
    const std::string position = field.is_list ? text("[", i, "]") : std::string();
    fail(kind, operation_, field.name, position, parts...);
  }

  std::string_view operation_;
  std::span<const BoundField> fields_;
  Device device_;
  bool with_memory_;
  Symbols symbols_;
};

}  // namespace

void check_fields(std::string_view operation, std::span<const BoundField> fields, Device device,
                  Checked what) {
  FieldChecker(operation, fields, device, what).check_all();
}

}  // namespace flashmla
