// The functions of the shared library that the Python package loads: one for each operation, made from the
// declaration of its fields, and what the package asks about the library.
#include <dlpack/dlpack.h>
#include <flashmla/dlpack.h>
#include <flashmla/flashmla.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/string.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace flashmla::python {
namespace {

namespace ffi = tvm::ffi;

ffi::String text(std::string_view from) { return {from.data(), from.size()}; }

// --- errors ---

const char* python_type_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kType:
      return "TypeError";
    case ErrorKind::kUnsupported:
      return "NotImplementedError";
    case ErrorKind::kDevice:
      return "RuntimeError";
    case ErrorKind::kValue:
      break;
  }
  return "ValueError";
}

/// The library's text with the names that Python callers know: members of Execution are arguments.
std::string python_text(std::string text) {
  constexpr std::string_view kPrefix = "Execution.";
  for (auto at = text.find(kPrefix); at != std::string::npos; at = text.find(kPrefix)) {
    text.erase(at, kPrefix.size());
  }
  return text;
}

/// Calls `body`, and turns the library's errors into Python's.
template <class Body>
auto with_python_errors(Body&& body) {
  try {
    return body();
  } catch (const Error& error) {
    throw ffi::Error(python_type_of(error.kind()), python_text(error.what()), "");
  } catch (const std::bad_alloc&) {
    throw ffi::Error("MemoryError", "flash_mla: no memory for the workspace", "");
  }
}

// --- arguments ---

/// Where an argument stands, for errors.
struct Place {
  std::string_view operation;
  std::string_view name;
};

[[noreturn]] void fail(const Place& place, std::string_view expected, const ffi::AnyView& got) {
  throw Error(ErrorKind::kType, std::string(place.operation) + ": " + std::string(place.name) + " must be " +
                                    std::string(expected) + ", got " + got.GetTypeKey());
}

template <class T>
T argument(const Place& place, std::string_view expected, const ffi::AnyView& from) {
  if (std::optional<T> value = from.try_cast<T>()) return *std::move(value);
  fail(place, expected, from);
}

/// Numbers of one byte are e4m3 codes or the bytes of a row; other kinds of FP8 would be read as those.
bool is_byte(DLDataType type) {
  return type.code == kDLUInt || type.code == kDLInt || type.code == kDLFloat8_e4m3fn;
}

TensorView view_of(const Place& place, const DLTensor& tensor) {
  if (tensor.dtype.bits == 8 && !is_byte(tensor.dtype)) {
    throw Error(ErrorKind::kType, std::string(place.operation) + ": " + std::string(place.name) +
                                      " must be uint8, int8 or float8_e4m3fn, got " +
                                      std::string(ffi::DLDataTypeToString(tensor.dtype)));
  }
  try {
    return from_dlpack(tensor);
  } catch (const Error& error) {
    constexpr std::string_view kPrefix = "from_dlpack";
    throw Error(error.kind(), std::string(place.operation) + ": " + std::string(place.name) +
                                  std::string(error.what()).substr(kPrefix.size()));
  }
}

TensorView tensor_argument(const Place& place, const ffi::AnyView& from) {
  if (from == nullptr) return {};
  return view_of(place, *argument<DLTensor*>(place, "a tensor", from));
}

/// The arguments of one call, in the order of the declared fields: tensors, scalars, and then those of
/// Execution. Owns the lists that the operation has views of.
template <class Op>
class Call {
 public:
  explicit Call(ffi::PackedArgs args) {
    const Fields<Op>& fields = Op::fields();
    const auto expected = fields.tensors.size() + fields.scalars.size() + kExecutionArguments;
    if (static_cast<std::size_t>(args.size()) != expected) {
      throw Error(ErrorKind::kType, std::string(fields.operation) + ": expected " + std::to_string(expected) +
                                        " arguments, got " + std::to_string(args.size()));
    }
    lists_.reserve(fields.tensors.size());
    int at = 0;
    for (const TensorField<Op>& field : fields.tensors) set(field, args[at++]);
    for (const ScalarField<Op>& field : fields.scalars) set(field, args[at++]);
    set_execution(args, at);
  }

  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  const Op& op() const { return op_; }
  Execution& on() { return on_; }

 private:
  static constexpr std::size_t kExecutionArguments = 3;

  void set(const TensorField<Op>& field, const ffi::AnyView& from) {
    const Place place{Op::fields().operation, field.name};
    if (const auto* one = std::get_if<TensorView Op::*>(&field.member)) {
      op_.** one = tensor_argument(place, from);
      take_device_of(op_.**one);
      return;
    }
    std::vector<TensorView>& list = lists_.emplace_back();
    for (const ffi::Tensor& tensor : argument<ffi::Array<ffi::Tensor>>(place, "a list of tensors", from)) {
      list.push_back(view_of(place, *tensor.GetDLTensorPtr()));
      take_device_of(list.back());
    }
    op_.*std::get<std::span<const TensorView> Op::*>(field.member) = list;
  }

  /// The first tensor says where to run.
  void take_device_of(const TensorView& tensor) {
    if (!device_.has_value() && tensor.given()) device_ = tensor.device;
  }

  void set(const ScalarField<Op>& field, const ffi::AnyView& from) {
    const Place place{Op::fields().operation, field.name};
    if (const auto* number = std::get_if<std::int64_t Op::*>(&field.member)) {
      op_.** number = argument<std::int64_t>(place, "an integer", from);
    } else if (const auto* flag = std::get_if<bool Op::*>(&field.member)) {
      op_.** flag = argument<bool>(place, "a bool", from);
    } else if (from != nullptr) {
      op_.*std::get<std::optional<float> Op::*>(field.member) =
          static_cast<float>(argument<double>(place, "a number", from));
    }
  }

  void set_execution(ffi::PackedArgs args, int at) {
    const std::string_view operation = Op::fields().operation;
    if (args[at] != nullptr) {
      backend_ = argument<std::string>({operation, "backend"}, "a string", args[at]);
    }
    on_.device = device_.value_or(Device{});
    on_.backend = backend_;
    on_.threads = threads_of(argument<std::int64_t>({operation, "threads"}, "an integer", args[at + 1]));
    on_.check_indices = argument<bool>({operation, "check_indices"}, "a bool", args[at + 2]);
    if (on_.device.type == DeviceType::kCuda) {
      on_.stream = TVMFFIEnvGetStream(kDLCUDA, on_.device.index);
    }
  }

  /// A number that does not fit an int is as wrong as the next one that does.
  static int threads_of(std::int64_t asked_for) {
    constexpr std::int64_t kLargest = std::numeric_limits<int>::max();
    return static_cast<int>(std::clamp(asked_for, -kLargest, kLargest));
  }

  Op op_ = {};
  Execution on_ = {};
  std::optional<Device> device_;
  std::string backend_;
  std::vector<std::vector<TensorView>> lists_;
};

// --- workspace ---

/// Scratch memory of a call. On the CPU each thread keeps what it has needed, up to a limit: fresh memory
/// costs a page fault for every 4 KiB. On a GPU the caller's framework gives it for its current stream, on
/// which the kernels run, and takes it back in the order of that stream: it may go back before they have
/// ended. While a graph is captured it comes from the graph's own pool.
class Scratch {
 public:
  void give(Execution& on, std::size_t bytes) {
    on.workspace_size = bytes;
    if (bytes == 0) return;
    if (on.device.type == DeviceType::kCpu) {
      on.workspace = on_cpu(bytes);
      return;
    }
    if (TVMFFIEnvGetDLPackManagedTensorAllocator() == nullptr) {
      throw Error(ErrorKind::kDevice,
                  "flash_mla: scratch memory on a GPU comes from the framework of the tensors, and this one "
                  "offers none (DLPack's exchange API); PyTorch does");
    }
    const std::int64_t shape[] = {static_cast<std::int64_t>(bytes)};
    on_gpu_ =
        ffi::Tensor::FromEnvAlloc(TVMFFIEnvTensorAlloc, ffi::ShapeView(shape, 1), DLDataType{kDLUInt, 8, 1},
                                  DLDevice{static_cast<DLDeviceType>(on.device.type), on.device.index});
    on.workspace = on_gpu_->data_ptr();
  }

 private:
  using Memory = std::unique_ptr<std::byte[]>;
  static Memory fresh(std::size_t bytes) { return std::make_unique_for_overwrite<std::byte[]>(bytes); }

  void* on_cpu(std::size_t bytes) {
    constexpr std::size_t kMostKept = std::size_t{256} << 20;
    if (bytes > kMostKept) {
      large_ = fresh(bytes);
      return large_.get();
    }
    thread_local Memory kept;
    thread_local std::size_t size = 0;
    if (size < bytes) {
      size = 0;
      kept = nullptr;
      kept = fresh(bytes);
      size = bytes;
    }
    return kept.get();
  }

  Memory large_;
  std::optional<ffi::Tensor> on_gpu_;
};

template <class Op>
void call(ffi::PackedArgs args, ffi::Any*) {
  with_python_errors([&] {
    Call<Op> made(args);
    Scratch scratch;
    scratch.give(made.on(), workspace_bytes(made.op(), made.on()));
    run(made.op(), made.on());
  });
}

// --- declarations ---

using Record = ffi::Map<ffi::String, ffi::Any>;

const char* name_of(Role role) {
  switch (role) {
    case Role::kInput:
      return "input";
    case Role::kOptional:
      return "optional";
    case Role::kOutput:
      return "output";
    case Role::kUpdate:
      break;
  }
  return "update";
}

template <class Op>
Record declaration(const TensorField<Op>& field) {
  return {{"name", text(field.name)},
          {"role", ffi::String(name_of(field.role))},
          {"types", text(field.types)},
          {"shape", text(field.shape)},
          {"is_list", std::holds_alternative<std::span<const TensorView> Op::*>(field.member)},
          {"meaning", text(field.meaning)}};
}

template <class Op>
Record declaration(const ScalarField<Op>& field) {
  const Op defaults = {};
  ffi::String type = "float";
  ffi::Any value = nullptr;
  if (const auto* number = std::get_if<std::int64_t Op::*>(&field.member)) {
    type = "int";
    value = defaults.**number;
  } else if (const auto* flag = std::get_if<bool Op::*>(&field.member)) {
    type = "bool";
    value = defaults.**flag;
  }
  return {{"name", text(field.name)}, {"type", type}, {"default", value}, {"meaning", text(field.meaning)}};
}

template <class List>
ffi::Array<Record> declarations(const List& fields) {
  ffi::Array<Record> all;
  for (const auto& field : fields) all.push_back(declaration(field));
  return all;
}

ffi::Array<Record> operations() {
  ffi::Array<Record> all;
  Operations::for_each([&]<class Op>() {
    const Fields<Op>& fields = Op::fields();
    all.push_back({{"name", text(fields.operation)},
                   {"summary", text(fields.summary)},
                   {"tensors", declarations(fields.tensors)},
                   {"scalars", declarations(fields.scalars)},
                   {"run", ffi::Function::FromPacked(call<Op>)}});
  });
  return all;
}

// --- questions ---

ffi::Array<Record> kernel_table(int device_type, int device_index) {
  ffi::Array<Record> all;
  for (const KernelInfo& kernel : kernels({static_cast<DeviceType>(device_type), device_index})) {
    all.push_back({{"operation", text(kernel.operation)},
                   {"backend", text(kernel.backend)},
                   {"name", text(kernel.name)},
                   {"available", kernel.available},
                   {"reason", ffi::String(kernel.reason)}});
  }
  return all;
}

/// Parts of a schedule of `batch` sequences, each with `rows` query rows (query tokens times heads) for each
/// kv head; the most that any batch has if `batch` is 0. `topk` is -1 for dense decode.
std::int64_t decode_schedule_parts(int device_type, int device_index, std::int64_t batch, std::int64_t rows,
                                   std::int64_t heads_kv, std::int64_t topk) {
  constexpr std::int64_t kWidth = 576;
  return with_python_errors([&] {
    const Execution on{.device = {static_cast<DeviceType>(device_type), device_index}};
    const TensorView q =
        TensorView::contiguous(nullptr, DataType::kBf16, {batch, 1, rows * heads_kv, kWidth}, on.device);
    const TensorView cache =
        TensorView::contiguous(nullptr, DataType::kBf16, {1, 1, heads_kv, kWidth}, on.device);
    if (topk < 0) return schedule_parts(DenseDecode{.q = q, .kv_cache = cache}, on);
    const TensorView indices = TensorView::contiguous(nullptr, DataType::kI32, {batch, 1, topk}, on.device);
    return schedule_parts(SparseDecode{.q = q, .indices = indices}, on);
  });
}

/// A tensor over the same memory whose 16-bit elements are bf16: NumPy has no such type of its own.
ffi::Tensor as_bf16(const ffi::Tensor& tensor) {
  struct Alias {
    ffi::Tensor owner;
    void AllocData(DLTensor* alias) {
      alias->data = static_cast<char*>(owner.data_ptr()) + owner.GetDLTensorPtr()->byte_offset;
    }
    void FreeData(DLTensor*) {}
  };
  return ffi::Tensor::FromNDAllocStrided(Alias{tensor}, tensor.shape(), tensor.strides(),
                                         DLDataType{kDLBfloat, 16, 1}, tensor.device());
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(operations, operations);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(kernels, kernel_table);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(decode_schedule_parts, decode_schedule_parts);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(as_bf16, as_bf16);

}  // namespace flashmla::python
