// A case: one operation with its inputs and, if known, the outputs to expect; read from a file, written
// to one, or made at random, and run through the library.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "cases/tensor.h"
#include "flashmla/execution.h"
#include "flashmla/operations.h"

namespace flashmla::cases {

/// An operation as values. Tensors are named as the operation's fields; elements of list fields are
/// `outs.0`, `outs.1` and so on. A tensor under the name of an output is the expected output; the
/// expected state of a field that is updated in place is `expected.<field>`. The cache of quantize_kv counts
/// as an output: all of it but the padding is written.
///
/// Two names stand for more than one operation:
/// - `mha` is mha_forward and, if `d_out` is there, mha_backward fed with our own `out` and `lse`;
/// - `quantize_kv` with a tensor `dequantized` also runs dequantize_kv, on the expected `kv_cache` if
///   there is one, and expects `dequantized` as its `kv`.
struct Case {
  /// File name, or a few words that say where the case comes from. For messages.
  std::string source;
  std::string operation;
  /// The metadata of the file but for `op`. Scalar fields by name (`softmax_scale`, `causal` as 0 or 1);
  /// `kv_format`; sizes that no input tells, by symbol (`parts`; `head_dim_v` for `d_v`); the type of an
  /// output that may have several (`out_type`). Other entries are kept and mean nothing.
  std::map<std::string, std::string> metadata;
  std::map<std::string, Tensor> tensors;
  /// Elements between the rows of outputs, and of outer dimensions, that no view covers; not written
  /// to files. In bytes a multiple of 16 for every type that is so used: take a multiple of 8.
  std::int64_t output_gap = 0;
};

/// Reads a case, copying its tensors to aligned memory. An FP8 cache `kv_cache` is spread out to
/// `block_stride_bytes`, `extra_kv_cache` to `extra_block_stride_bytes` (metadata; 0 or absent: see
/// packed_block_stride), with NaN bytes in the gaps. Throws Error (kValue) naming file and thing for
/// a broken file, an unknown operation or tensor name, and a malformed metadata value.
Case read_case(const std::string& path);

/// The same for a whole file in memory; `name` stands in messages.
Case parse_case(std::span<const std::byte> bytes, const std::string& name);

/// Writes a case as read_case reads it; strides of FP8 caches go to the metadata, other strides are
/// lost. Throws Error (kValue).
void write_case(const std::string& path, const Case& what);

namespace detail {
template <class... Ops>
std::variant<Ops...> variant_of(OperationList<Ops...>);
}

/// Any operation of the library.
using AnyOperation = decltype(detail::variant_of(Operations{}));

/// One operation of a case, ready to run as often as one likes. Views memory of the case (and of the
/// steps before it), which must outlive the step.
class Step {
 public:
  Step() = default;
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;
  Step(Step&&) = default;
  Step& operator=(Step&&) = default;

  /// `dense_decode`.
  std::string_view name() const;

  /// Scratch that `run` needs on `on.device`.
  std::size_t workspace_bytes(const Execution& on) const;

  /// Runs the operation; if `on` has no workspace, with one that is allocated for this call. If `on.device`
  /// is a GPU, on copies of all tensors and with a workspace of its own.
  void run(const Execution& on) const;

  AnyOperation operation;
  /// The tensors that the operation writes, by field name; NaN until it ran. A field that is updated
  /// in place starts as a copy of the case's tensor.
  std::map<std::string, Tensor> outputs;
  /// Expected outputs by field name, where the case has them. May have another float type.
  std::map<std::string, TensorView> expected;
  /// The storage behind list fields such as `outs`.
  std::vector<std::vector<TensorView>> lists;
};

/// Turns a case into the operations it stands for, in order, with outputs allocated as declared: sizes
/// from the inputs, then from the metadata, then from the expected outputs. Throws Error (kValue) for
/// a missing input, an unknown name, a malformed value, or a size that nothing tells; whether shapes
/// fit each other is checked by the library when the step runs.
std::vector<Step> prepare(const Case& what);

/// One output of a case that ran.
struct Result {
  std::string operation;
  std::string output;
  Tensor got;
  /// Not given if the case expects nothing. Memory of the case.
  TensorView expected;
};

/// Prepares and runs every step, each with a workspace of its own; `on.workspace` is ignored. Every error,
/// also one of the library, begins with `what.source`.
std::vector<Result> run_case(const Case& what, const Execution& on);

/// The names that a case's operation may have: those of the library, and `mha`.
std::vector<std::string> operation_names();

}  // namespace flashmla::cases
