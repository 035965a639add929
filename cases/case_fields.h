// The declared fields of any operation as plain values, for code that treats all operations alike.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>
#include <vector>

#include "flashmla/fields.h"
#include "flashmla/operations.h"

namespace flashmla::cases {

/// A TensorField without the type of its operation.
struct DeclaredTensor {
  std::string_view name;
  Role role;
  std::string_view types;
  std::string_view shape;
  bool is_list;
};

/// One dimension of a declared shape: `batch+1` is symbol `batch` and offset 1, `8` only offset 8.
struct DeclaredSize {
  std::string_view symbol;
  std::int64_t offset = 0;
};

/// The tensors of an operation. What is updated in place but written completely is an output here:
/// quantize_kv leaves nothing of its cache but the padding.
template <class Op>
std::vector<DeclaredTensor> declared_tensors() {
  constexpr bool kWritesAll = std::is_same_v<Op, QuantizeKv>;
  std::vector<DeclaredTensor> declared;
  for (const TensorField<Op>& field : Op::fields().tensors) {
    const Role role = field.role == Role::kUpdate && kWritesAll ? Role::kOutput : field.role;
    declared.push_back({field.name, role, field.types, field.shape, field.member.index() == 1});
  }
  return declared;
}

/// The same for an operation by name; nothing for an unknown name.
std::optional<std::vector<DeclaredTensor>> declared_tensors(std::string_view operation);

/// The pieces of `bf16|f16`, or of `batch s_q`, at the separator.
std::vector<std::string_view> split(std::string_view text, char separator);

/// The dimensions of a declared shape `[batch s_q h_q d_v]`.
std::vector<DeclaredSize> declared_sizes(std::string_view shape);

}  // namespace flashmla::cases
