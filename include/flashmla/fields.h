// The declaration of an operation's fields: one table from which come the checks, the file reader of
// the command line, language bindings and the reference tables in the documentation.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <variant>

#include "flashmla/tensor.h"

namespace flashmla {

enum class Role {
  kInput,     ///< read; must be given
  kOptional,  ///< read if given
  kOutput,    ///< written; must be given
  kUpdate,    ///< partly overwritten; must be given
};

/// One tensor, or one list of tensors of the same type and shape.
///
/// `types` lists the element types, separated by `|`; the name of an earlier field stands for "the
/// same type as that field". `shape` names each dimension: a symbol has one value within an
/// operation, a number is itself, and `batch+1` is one more than the symbol.
template <class Op>
struct TensorField {
  std::string_view name;
  Role role;
  std::string_view types;
  std::string_view shape;
  std::variant<TensorView Op::*, std::span<const TensorView> Op::*> member;
  std::string_view meaning;
};

template <class Op>
struct ScalarField {
  std::string_view name;
  std::variant<bool Op::*, std::int64_t Op::*, std::optional<float> Op::*> member;
  std::string_view meaning;
};

/// What `Op::fields()` returns.
template <class Op>
struct Fields {
  std::string_view operation;  ///< the operation's name everywhere: `dense_decode`
  std::string_view summary;
  std::span<const TensorField<Op>> tensors;
  std::span<const ScalarField<Op>> scalars;
};

}  // namespace flashmla
