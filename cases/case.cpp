// Cases from and to files, and the operations that they stand for.
#include "cases/case.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "cases/case_fields.h"
#include "cases/on_device.h"
#include "cases/safetensors.h"
#include "flashmla/error.h"

namespace flashmla::cases {
namespace {

constexpr DataType kAllTypes[] = {DataType::kBf16, DataType::kF16, DataType::kF32,
                                  DataType::kU8,   DataType::kI32, DataType::kI64};
constexpr std::string_view kMha = "mha";
constexpr std::string_view kDequantized = "dequantized";
constexpr std::string_view kExpectedPrefix = "expected.";

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(ErrorKind::kValue, fmt::format(text, std::forward<Args>(args)...));
}

/// Calls `work`; every error that leaves it begins with the source of the case, and has it nowhere else.
template <class Work>
auto named(const std::string& source, const Work& work) {
  try {
    return work();
  } catch (const Error& error) {
    throw Error(error.kind(), fmt::format("{}: {}", source, error.what()));
  }
}

const std::string* metadata_of(const Case& what, std::string_view name) {
  const auto found = what.metadata.find(std::string(name));
  return found == what.metadata.end() ? nullptr : &found->second;
}

const Tensor* tensor_of(const Case& what, std::string_view name) {
  const auto found = what.tensors.find(std::string(name));
  return found == what.tensors.end() ? nullptr : &found->second;
}

/// A number that is the whole of the text.
template <class Number>
std::optional<Number> parse_number(std::string_view text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

[[noreturn]] void fail_metadata(const Case& what, std::string_view name, std::string_view expected) {
  fail("metadata {} must be {}, got '{}'", name, expected, printable(*metadata_of(what, name)));
}

/// A size or distance, 0 or more; nothing if the metadata does not have it.
std::optional<std::int64_t> metadata_size(const Case& what, std::string_view name) {
  const std::string* text = metadata_of(what, name);
  if (text == nullptr) return std::nullopt;
  const auto number = parse_number<std::int64_t>(*text);
  if (!number || *number < 0) fail_metadata(what, name, "a whole number, 0 or more");
  return number;
}

std::optional<KvFormat> metadata_format(const Case& what) {
  const std::string* text = metadata_of(what, "kv_format");
  if (text == nullptr) return std::nullopt;
  const auto format = kv_format_named(*text);
  if (!format) fail_metadata(what, "kv_format", "bf16, f16, e4m3, fp8_v32 or fp8_model1");
  return format;
}

// --- Names ----------------------------------------------------------------------------------------

/// The operations of the library that a case of this name may run.
std::vector<std::string_view> operations_of(const Case& what) {
  if (what.operation == kMha) return {"mha_forward", "mha_backward"};
  return {what.operation};
}

bool is_list_element(std::string_view name, std::string_view field) {
  return name.starts_with(field) && name.substr(field.size()).starts_with('.') &&
         parse_number<std::uint32_t>(name.substr(field.size() + 1)).has_value();
}

bool names_tensor(const DeclaredTensor& field, std::string_view name) {
  if (field.is_list) return is_list_element(name, field.name);
  if (field.role == Role::kUpdate && name.starts_with(kExpectedPrefix)) {
    return name.substr(kExpectedPrefix.size()) == field.name;
  }
  return name == field.name;
}

void check_operation(const Case& what) {
  const auto known = operation_names();
  if (std::ranges::find(known, what.operation) != known.end()) return;
  fail("unknown operation '{}', must be one of {}", printable(what.operation), fmt::join(known, ", "));
}

void check_name(const Case& what, std::string_view name) {
  bool found = what.operation == QuantizeKv::fields().operation && name == kDequantized;
  for (const std::string_view operation : operations_of(what)) {
    const auto fields = *declared_tensors(operation);
    found =
        found || std::ranges::any_of(fields, [&](const auto& field) { return names_tensor(field, name); });
  }
  if (!found) fail("{} has no tensor '{}'", what.operation, printable(name));
}

// --- FP8 caches in files --------------------------------------------------------------------------

/// The metadata that tells the distance between blocks of this tensor, if it is a cache.
std::string_view block_stride_name(std::string_view tensor) {
  if (tensor.starts_with(kExpectedPrefix)) tensor.remove_prefix(kExpectedPrefix.size());
  if (tensor == "kv_cache") return "block_stride_bytes";
  if (tensor == "extra_kv_cache") return "extra_block_stride_bytes";
  return {};
}

/// The format of a cache. Bytes of dense_decode are e4m3 codes, whatever their row looks like.
std::optional<KvFormat> cache_format(const Case& what, const TensorView& cache) {
  const bool codes = what.operation == DenseDecode::fields().operation && cache.type == DataType::kU8;
  return codes ? KvFormat::kE4m3 : kv_format_of(cache);
}

/// Whether the blocks of a cache may lie at a distance of their own, which the metadata tells.
bool has_block_stride(const Case& what, std::string_view name, const TensorView& cache) {
  return !block_stride_name(name).empty() && cache.type == DataType::kU8 && cache.ndim == 4 &&
         cache_format(what, cache) != KvFormat::kE4m3;
}

/// Distance between the blocks of a cache of bytes as the metadata tells it.
std::int64_t block_stride_of(const Case& what, std::string_view tensor, KvFormat format, std::int64_t page,
                             std::int64_t row) {
  /// Enough for any cache that is a slice of a larger one, and keeps a broken file from asking for all
  /// memory.
  constexpr std::int64_t kLargestFactor = 64;
  const std::string_view name = block_stride_name(tensor);
  const std::int64_t stride = metadata_size(what, name).value_or(0);
  if (stride == 0) return packed_block_stride(format, page);
  if (stride < page * row || stride / kLargestFactor > page * row) {
    fail("metadata {} must be between {} (a block of {}) and {} times that, got {}", name, page * row, tensor,
         kLargestFactor, stride);
  }
  return stride;
}

/// A copy in aligned memory; the blocks of an FP8 cache at their distance.
Tensor load_tensor(const Case& what, const std::string& name, const SafetensorsEntry& entry) {
  Tensor loaded(entry.type, entry.shape);
  TensorView packed = loaded.view();
  packed.data = const_cast<std::byte*>(entry.data.data());
  const auto format = cache_format(what, packed);
  const auto named = metadata_format(what);
  if (!block_stride_name(name).empty() && named && named != format) {
    fail("metadata kv_format is {}, but {} is {} {}", name_of(*named), name, name_of(entry.type),
         to_string(entry.shape));
  }
  if (has_block_stride(what, name, packed) && format && packed.shape[2] == 1) {
    const std::int64_t distance = block_stride_of(what, name, *format, packed.shape[1], packed.shape[3]);
    loaded = fp8_cache(*format, packed.shape[0], packed.shape[1], distance);
  }
  copy_elements(packed, loaded.view());
  return loaded;
}

Case case_of(const SafetensorsContent& content, const std::string& name) {
  Case result;
  result.source = name;
  result.metadata = content.metadata;
  const std::string* operation = metadata_of(result, "op");
  if (operation == nullptr) fail("metadata 'op', the operation, is missing");
  result.operation = *operation;
  result.metadata.erase("op");
  check_operation(result);
  for (const auto& item : content.tensors) check_name(result, item.first);
  for (const auto& [tensor, entry] : content.tensors) {
    result.tensors.emplace(tensor, load_tensor(result, tensor, entry));
  }
  return result;
}

// --- From a case to operations ----------------------------------------------------------------------

using Views = std::map<std::string, TensorView, std::less<>>;

/// What a step takes from elsewhere than the case's tensor of the same name.
struct Overrides {
  Views inputs;
  Views expected;
};

/// Finds inputs and allocates outputs of one operation from the declaration of its fields.
class StepBuilder {
 public:
  StepBuilder(const Case& what, std::string_view operation, std::vector<DeclaredTensor> fields,
              const Overrides& overrides)
      : case_(what), operation_(operation), fields_(std::move(fields)), overrides_(overrides) {}

  void build(Step& step) {
    for (const DeclaredTensor& field : fields_) find_input(field, step);
    for (const DeclaredTensor& field : fields_) find_expected(field, step);
    for (const DeclaredTensor& field : fields_) make_output(field, step);
  }

  /// The tensors of a field, outputs included; empty if it is optional and not given.
  const std::vector<TensorView>& views(std::string_view field) const { return views_.find(field)->second; }

 private:
  void find_input(const DeclaredTensor& field, Step& step) {
    std::vector<TensorView>& views = views_[std::string(field.name)];
    if (field.role == Role::kOutput) return;
    if (field.is_list) {
      for (const Tensor* part = first_part(field); part != nullptr;) {
        views.push_back(part->view());
        part = tensor_of(case_, fmt::format("{}.{}", field.name, views.size()));
      }
      check_list(field, views.size());
    } else if (const auto found = overrides_.inputs.find(field.name); found != overrides_.inputs.end()) {
      views.push_back(found->second);
    } else if (const Tensor* tensor = tensor_of(case_, field.name)) {
      views.push_back(field.role == Role::kUpdate
                          ? step.outputs.emplace(field.name, *tensor).first->second.view()
                          : tensor->view());
    }
    if (views.empty() && field.role != Role::kOptional) {
      fail("{} needs a tensor '{}{}'", operation_, field.name, field.is_list ? ".0" : "");
    }
    for (const TensorView& view : views) bind(field, view);
  }

  const Tensor* first_part(const DeclaredTensor& field) const {
    return tensor_of(case_, fmt::format("{}.0", field.name));
  }

  /// Every element of the list that the case has must be reached by counting up from 0.
  void check_list(const DeclaredTensor& field, std::size_t reached) const {
    for (const auto& item : case_.tensors) {
      if (!is_list_element(item.first, field.name)) continue;
      const auto number =
          parse_number<std::uint32_t>(std::string_view(item.first).substr(field.name.size() + 1));
      if (*number >= reached || item.first != fmt::format("{}.{}", field.name, *number)) {
        fail("{} has a tensor '{}', but no '{}.{}'", operation_, item.first, field.name, reached);
      }
    }
  }

  void find_expected(const DeclaredTensor& field, Step& step) const {
    if (field.role != Role::kOutput && field.role != Role::kUpdate) return;
    const std::string name(field.name);
    if (const auto found = overrides_.expected.find(name); found != overrides_.expected.end()) {
      if (found->second.given()) step.expected[name] = found->second;
      return;
    }
    const Tensor* tensor =
        tensor_of(case_, field.role == Role::kUpdate ? std::string(kExpectedPrefix) + name : name);
    if (tensor != nullptr) step.expected[name] = tensor->view();
  }

  void make_output(const DeclaredTensor& field, Step& step) {
    if (field.role != Role::kOutput) return;
    const auto found = step.expected.find(std::string(field.name));
    const TensorView* expected = found == step.expected.end() ? nullptr : &found->second;
    const DataType type = output_type(field, expected);
    std::vector<std::int64_t> shape;
    for (const DeclaredSize& size : declared_sizes(field.shape))
      shape.push_back(size_for(field, size, expected));
    check_memory(field, type, shape);
    Tensor tensor =
        type == DataType::kU8 ? make_cache(field, shape) : Tensor(type, shape, output_strides(shape));
    views_[std::string(field.name)].push_back(tensor.view());
    step.outputs.emplace(field.name, std::move(tensor));
  }

  Tensor make_cache(const DeclaredTensor& field, const std::vector<std::int64_t>& shape) const {
    TensorView row;
    row.type = DataType::kU8;
    row.ndim = 1;
    row.shape[0] = shape.back();
    const auto format = kv_format_of(row);
    if (!format) return Tensor(DataType::kU8, shape);
    const std::int64_t distance = block_stride_of(case_, field.name, *format, shape[1], shape[3]);
    return fp8_cache(*format, shape[0], shape[1], distance);
  }

  std::vector<std::int64_t> output_strides(const std::vector<std::int64_t>& shape) const {
    if (case_.output_gap == 0) return {};
    std::vector<std::int64_t> strides(shape.size(), 1);
    for (std::size_t dim = shape.size(); dim-- > 1;) {
      strides[dim - 1] = std::max<std::int64_t>(shape[dim], 1) * strides[dim] + case_.output_gap;
    }
    return strides;
  }

  /// A broken file, with a size in the metadata or with empty tensors of huge shapes, must not make us
  /// ask for all memory.
  void check_memory(const DeclaredTensor& field, DataType type,
                    const std::vector<std::int64_t>& shape) const {
    constexpr std::uint64_t kAlways = std::uint64_t{64} << 20;
    constexpr std::uint64_t kFactor = 1024;
    std::uint64_t limit = kAlways;
    for (const auto& item : case_.tensors) limit += kFactor * item.second.memory().size();
    std::uint64_t bytes = size_of(type);
    bool fits = true;
    for (const std::int64_t size : shape) {
      fits =
          fits && !__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(size), &bytes) && bytes <= limit;
    }
    if (!fits) {
      fail("{} would need {} {} of shape {}, out of proportion to its inputs", operation_, field.name,
           name_of(type), to_string(shape));
    }
  }

  /// The one declared type; of several the one that the metadata names (`out_type` for `out`), or the
  /// expected one, or that of the first input.
  DataType output_type(const DeclaredTensor& field, const TensorView* expected) const {
    std::vector<DataType> allowed;
    for (const std::string_view piece : split(field.types, '|')) {
      for (const DataType type : kAllTypes) {
        if (piece == name_of(type)) allowed.push_back(type);
      }
      const auto same = views_.find(piece);
      if (same != views_.end() && !same->second.empty()) allowed.push_back(same->second[0].type);
    }
    const auto is_allowed = [&](DataType type) { return std::ranges::find(allowed, type) != allowed.end(); };
    const std::string type_name = fmt::format("{}_type", field.name);
    if (const std::string* named = metadata_of(case_, type_name); named != nullptr && allowed.size() > 1) {
      const auto found =
          std::ranges::find(allowed, std::string_view(*named), [](DataType type) { return name_of(type); });
      if (found == allowed.end()) fail_metadata(case_, type_name, field.types);
      return *found;
    }
    if (expected != nullptr && is_allowed(expected->type)) return expected->type;
    const auto& first = views_.find(fields_[0].name)->second;
    if (!first.empty() && is_allowed(first[0].type)) return first[0].type;
    return allowed.at(0);
  }

  std::int64_t size_for(const DeclaredTensor& field, const DeclaredSize& size, const TensorView* expected) {
    if (size.symbol.empty()) return size.offset;
    auto value = bound(size.symbol);
    if (!value) value = size_from_format(size.symbol);
    if (!value) value = metadata_size(case_, size.symbol == "d_v" ? "head_dim_v" : size.symbol);
    if (!value && expected != nullptr) {
      bind(field, *expected);
      value = bound(size.symbol);
    }
    if (!value) {
      fail("{} cannot tell size {} of output {}: metadata '{}' is missing", operation_, size.symbol,
           field.name,
           size.symbol == "d_v"   ? "head_dim_v"
           : size.symbol == "row" ? "kv_format"
                                  : size.symbol);
    }
    symbols_[std::string(size.symbol)] = *value;
    std::int64_t sum = 0;
    if (__builtin_add_overflow(*value, size.offset, &sum)) {
      fail("{}: size {} of output {} is too large", operation_, size.symbol, field.name);
    }
    return sum;
  }

  /// Rows of a cache from the width of its values, and the other way round.
  std::optional<std::int64_t> size_from_format(std::string_view symbol) const {
    if (const auto format = metadata_format(case_); symbol == "row" && format && bound("d_qk")) {
      const auto row = kv_row_size(*format, *bound("d_qk"));
      if (!row) {
        fail("kv_format {} has no rows of {} values (d_qk)", name_of(*format), *bound("d_qk"));
      }
      return row;
    }
    const auto cache = views_.find(std::string_view("kv_cache"));
    if (symbol != "d_qk" || !bound("row") || cache == views_.end() || cache->second.empty())
      return std::nullopt;
    const auto format = kv_format_of(cache->second[0]);
    if (!format) return std::nullopt;
    return kv_row_width(*format, *bound("row"));
  }

  std::optional<std::int64_t> bound(std::string_view symbol) const {
    const auto found = symbols_.find(symbol);
    if (found == symbols_.end()) return std::nullopt;
    return found->second;
  }

  /// Symbols take the first value they meet; contradictions are left to the library's own checks.
  void bind(const DeclaredTensor& field, const TensorView& view) {
    const auto sizes = declared_sizes(field.shape);
    if (static_cast<std::size_t>(view.ndim) != sizes.size()) return;
    for (std::size_t dim = 0; dim < sizes.size(); ++dim) {
      const std::int64_t value = view.shape[dim] - sizes[dim].offset;
      if (!sizes[dim].symbol.empty() && value >= 0) symbols_.emplace(sizes[dim].symbol, value);
    }
  }

  const Case& case_;
  std::string_view operation_;
  std::vector<DeclaredTensor> fields_;
  const Overrides& overrides_;
  std::map<std::string, std::vector<TensorView>, std::less<>> views_;
  std::map<std::string, std::int64_t, std::less<>> symbols_;
};

void set_scalar(const Case& what, std::string_view name, bool& value) {
  const std::string* text = metadata_of(what, name);
  if (text == nullptr) return;
  const bool yes = *text == "1" || *text == "true";
  if (!yes && *text != "0" && *text != "false") fail_metadata(what, name, "0 or 1");
  value = yes;
}

void set_scalar(const Case& what, std::string_view name, std::int64_t& value) {
  const std::string* text = metadata_of(what, name);
  if (text == nullptr) return;
  const auto number = parse_number<std::int64_t>(*text);
  if (!number) fail_metadata(what, name, "a whole number");
  value = *number;
}

void set_scalar(const Case& what, std::string_view name, std::optional<float>& value) {
  const std::string* text = metadata_of(what, name);
  if (text == nullptr) return;
  const auto number = parse_number<double>(*text);
  if (!number) fail_metadata(what, name, "a number");
  value = static_cast<float>(*number);
}

template <class Op>
Step make_step(const Case& what, const Overrides& overrides) {
  Step step;
  StepBuilder builder(what, Op::fields().operation, declared_tensors<Op>(), overrides);
  builder.build(step);
  Op op;
  for (const TensorField<Op>& field : Op::fields().tensors) {
    const std::vector<TensorView>& views = builder.views(field.name);
    if (const auto* member = std::get_if<TensorView Op::*>(&field.member)) {
      if (!views.empty()) op.** member = views[0];
    } else {
      step.lists.push_back(views);
      op.*std::get<std::span<const TensorView> Op::*>(field.member) = step.lists.back();
    }
  }
  for (const ScalarField<Op>& field : Op::fields().scalars) {
    std::visit([&](auto member) { set_scalar(what, field.name, op.*member); }, field.member);
  }
  step.operation = op;
  return step;
}

std::vector<Step> prepare_mha(const Case& what) {
  std::vector<Step> steps;
  steps.push_back(make_step<MhaForward>(what, {}));
  const bool backward =
      std::ranges::any_of(std::initializer_list<const char*>{"d_out", "d_q", "d_k", "d_v"},
                          [&](const char* name) { return tensor_of(what, name) != nullptr; });
  if (!backward) return steps;
  Overrides overrides;
  for (const char* name : {"out", "lse"}) overrides.inputs[name] = steps[0].outputs.at(name).view();
  steps.push_back(make_step<MhaBackward>(what, overrides));
  return steps;
}

std::vector<Step> prepare_quantize(const Case& what) {
  std::vector<Step> steps;
  steps.push_back(make_step<QuantizeKv>(what, {}));
  const Tensor* dequantized = tensor_of(what, kDequantized);
  if (dequantized == nullptr) return steps;
  const Tensor* expected = tensor_of(what, "kv_cache");
  Overrides overrides;
  overrides.inputs["kv_cache"] =
      expected != nullptr ? expected->view() : steps[0].outputs.at("kv_cache").view();
  overrides.expected["kv"] = dequantized->view();
  steps.push_back(make_step<DequantizeKv>(what, overrides));
  return steps;
}

std::vector<Step> prepare_steps(const Case& what) {
  check_operation(what);
  for (const auto& item : what.tensors) check_name(what, item.first);
  if (what.operation == kMha) return prepare_mha(what);
  if (what.operation == QuantizeKv::fields().operation) return prepare_quantize(what);
  std::vector<Step> steps;
  Operations::for_each([&]<class Op>() {
    if (Op::fields().operation == what.operation) steps.push_back(make_step<Op>(what, {}));
  });
  return steps;
}

}  // namespace

std::vector<std::string> operation_names() {
  std::vector<std::string> names;
  Operations::for_each([&]<class Op>() { names.emplace_back(Op::fields().operation); });
  names.emplace_back(kMha);
  return names;
}

Case parse_case(std::span<const std::byte> bytes, const std::string& name) {
  const SafetensorsContent content = parse_safetensors(bytes, name);
  return named(name, [&] { return case_of(content, name); });
}

Case read_case(const std::string& path) {
  const SafetensorsFile file(path);
  return named(path, [&] { return case_of(file.content(), path); });
}

void write_case(const std::string& path, const Case& what) {
  auto metadata = what.metadata;
  metadata["op"] = what.operation;
  std::map<std::string, TensorView> views;
  for (const auto& [name, tensor] : what.tensors) {
    views[name] = tensor.view();
    if (!has_block_stride(what, name, tensor.view())) continue;
    metadata[std::string(block_stride_name(name))] = std::to_string(tensor.view().strides[0]);
  }
  write_safetensors(path, metadata, views);
}

std::vector<Step> prepare(const Case& what) {
  return named(what.source, [&] { return prepare_steps(what); });
}

std::string_view Step::name() const {
  return std::visit([](const auto& op) { return op.fields().operation; }, operation);
}

std::size_t Step::workspace_bytes(const Execution& on) const {
  const ShapesOn there(operation, on.device);
  return std::visit([&](const auto& op) { return flashmla::workspace_bytes(op, on); }, there.operation());
}

void Step::run(const Execution& on) const {
  if (on.device.type == DeviceType::kCuda) return run_on(operation, on);
  Execution here = on;
  Tensor scratch;
  if (on.workspace == nullptr) {
    scratch = Tensor(DataType::kU8, {static_cast<std::int64_t>(workspace_bytes(on))});
    here.workspace = scratch.view().data;
    here.workspace_size = scratch.memory().size();
  }
  std::visit([&](const auto& op) { flashmla::run(op, here); }, operation);
}

std::vector<Result> run_case(const Case& what, const Execution& on) {
  Execution own_workspace = on;
  own_workspace.workspace = nullptr;
  own_workspace.workspace_size = 0;
  std::vector<Step> steps = named(what.source, [&] {
    std::vector<Step> prepared = prepare_steps(what);
    for (const Step& step : prepared) step.run(own_workspace);
    return prepared;
  });
  std::vector<Result> results;
  for (Step& step : steps) {
    for (auto& [name, tensor] : step.outputs) {
      const auto expected = step.expected.find(name);
      results.push_back({std::string(step.name()), name, std::move(tensor),
                         expected == step.expected.end() ? TensorView{} : expected->second});
    }
  }
  return results;
}

}  // namespace flashmla::cases
