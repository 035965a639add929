// Checks of an operation's tensors against the declaration of its fields.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string_view>
#include <variant>

#include "api/message.h"
#include "flashmla/execution.h"
#include "flashmla/fields.h"

namespace flashmla {

/// A declared field and the tensors that an operation has there: one, or a list.
struct BoundField {
  std::string_view name;
  Role role;
  std::string_view types;
  std::string_view shape;
  bool is_list;
  std::span<const TensorView> tensors;
};

/// Before there is memory, shapes can be checked alone.
enum class Checked { kShapes, kShapesAndMemory };

/// Binds the symbols of the shapes in order of the fields, and checks that every tensor has a declared
/// type and the declared shape, lives on `device`, has a contiguous last dimension and aligned rows, and
/// that no output overlaps itself. Throws Error; allocates only then.
void check_fields(std::string_view operation, std::span<const BoundField> fields, Device device,
                  Checked what);

/// The fields of one operation. `kCapacity` is the largest number of tensors an operation declares.
template <class Op>
class BoundFields {
 public:
  explicit BoundFields(const Op& op) {
    for (const TensorField<Op>& field : Op::fields().tensors) {
      BoundField& bound = fields_.at(count_++);
      bound = {field.name, field.role, field.types, field.shape, false, {}};
      if (const auto* one = std::get_if<TensorView Op::*>(&field.member)) {
        bound.tensors = {&(op.**one), 1};
      } else {
        bound.tensors = op.*std::get<std::span<const TensorView> Op::*>(field.member);
        bound.is_list = true;
      }
    }
  }

  std::span<const BoundField> view() const { return {fields_.data(), count_}; }

 private:
  static constexpr std::size_t kCapacity = 16;
  std::array<BoundField, kCapacity> fields_{};
  std::size_t count_ = 0;
};

}  // namespace flashmla
