// The shape flags of `make` and `bench`, and random cases of these shapes.
#include "cli/shape.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>
#include <variant>

#include "cases/random.h"
#include "cli/machine.h"
#include "flashmla/error.h"

namespace flashmla::cli {
namespace {

struct Flag {
  std::string_view name;
  std::string_view meaning;
  std::variant<std::int64_t Shape::*, double Shape::*, KvFormat Shape::*, bool Shape::*> member;
  std::int64_t least = 1;  ///< of whole numbers
};

constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();

FlagKind kind_of(std::int64_t Shape::*) { return FlagKind::kWhole; }
FlagKind kind_of(double Shape::*) { return FlagKind::kNumber; }
FlagKind kind_of(KvFormat Shape::*) { return FlagKind::kFormat; }
FlagKind kind_of(bool Shape::*) { return FlagKind::kSwitch; }

const std::vector<Flag>& flags() {
  static const std::vector<Flag> all = {
      {"batch", "sequences", &Shape::batch},
      {"s-q", "query tokens of a sequence (MHA: 0 takes seqlen)", &Shape::s_q, 0},
      {"heads", "query heads", &Shape::heads},
      {"kv-heads", "key/value heads (0 takes heads)", &Shape::kv_heads, 0},
      {"seqlen", "key/value tokens of a sequence", &Shape::seqlen},
      {"topk", "tokens that a query attends over (make_schedule: 0 is dense)", &Shape::topk, 0},
      {"extra-topk", "tokens out of a second cache (0: no such cache)", &Shape::extra_topk, 0},
      {"page", "tokens in a block of the cache", &Shape::page},
      {"format", "bf16, f16, e4m3, fp8_v32 or fp8_model1", &Shape::format},
      {"d-qk", "width of a key (0 takes the format's own)", &Shape::d_qk, 0},
      {"d-v", "width of a value", &Shape::d_v},
      {"causal", "causal mask", &Shape::causal},
      {"split-size", "keys after which a sequence is split (0 balances the work)", &Shape::split_size, 0},
      {"spread", "lengths lie in seqlen * [1 - spread, 1 + spread]", &Shape::spread},
      {"invalid", "part of the indices that name no token, 0 to 1", &Shape::invalid},
      {"sink", "attention sinks", &Shape::sink},
      {"states", "states to merge", &Shape::states, 2},
      {"parts", "parts of a schedule", &Shape::parts},
  };
  return all;
}

[[noreturn]] void fail(const std::string& message) { throw Error(ErrorKind::kValue, message); }

/// Lengths from `seqlen * (1 - spread)` to `seqlen * (1 + spread)`, at least 1, in equal steps.
std::vector<std::int64_t> lengths(const Shape& shape) {
  std::vector<std::int64_t> all;
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    const double place =
        shape.batch == 1 ? 0 : 2 * static_cast<double>(b) / static_cast<double>(shape.batch - 1) - 1;
    const double length = static_cast<double>(shape.seqlen) * (1 + shape.spread * place);
    all.push_back(std::max<std::int64_t>(1, std::llround(length)));
  }
  return all;
}

std::int64_t blocks_for(std::int64_t tokens, std::int64_t page) { return (tokens + page - 1) / page; }

/// Whether rows have a layout of their own.
bool is_fp8(KvFormat format) { return format == KvFormat::kFp8V32 || format == KvFormat::kFp8Model1; }

DataType type_of(KvFormat format) { return format == KvFormat::kF16 ? DataType::kF16 : DataType::kBf16; }

cases::Sinks sinks(const Shape& shape) { return shape.sink ? cases::Sinks::kFinite : cases::Sinks::kNone; }

cases::DenseDecodeKnobs dense_decode_knobs(const Shape& shape) {
  return {.batch = shape.batch,
          .s_q = shape.s_q,
          .h_q = shape.heads,
          .h_kv = shape.kv_heads,
          .d_qk = shape.d_qk,
          .d_v = shape.d_v,
          .page = shape.page,
          .seqlens = lengths(shape),
          .type = type_of(shape.format),
          .e4m3 = shape.format == KvFormat::kE4m3,
          .causal = shape.causal,
          .split_size = shape.split_size};
}

cases::SparseDecodeKnobs sparse_decode_knobs(const Shape& shape) {
  cases::SparseDecodeKnobs knobs;
  knobs.batch = shape.batch;
  knobs.s_q = shape.s_q;
  knobs.h_q = shape.heads;
  knobs.h_kv = shape.kv_heads;
  knobs.d_qk = shape.d_qk;
  knobs.d_v = shape.d_v;
  knobs.format = shape.format;
  knobs.type = type_of(shape.format);
  knobs.page = shape.page;
  knobs.blocks = shape.batch * blocks_for(shape.seqlen, shape.page);
  knobs.topk = shape.topk;
  knobs.extra_topk = shape.extra_topk;
  knobs.extra_blocks =
      std::max<std::int64_t>(1, shape.batch * blocks_for(shape.extra_topk, knobs.extra_page));
  knobs.sinks = sinks(shape);
  knobs.invalid = shape.invalid;
  knobs.split_size = shape.split_size;
  return knobs;
}

cases::SparsePrefillKnobs sparse_prefill_knobs(const Shape& shape) {
  cases::SparsePrefillKnobs knobs;
  knobs.s_q = shape.s_q;
  knobs.s_kv = shape.seqlen;
  knobs.h_q = shape.heads;
  knobs.h_kv = shape.kv_heads;
  knobs.d_qk = shape.d_qk;
  knobs.d_v = shape.d_v;
  knobs.topk = shape.topk;
  knobs.type = type_of(shape.format);
  knobs.sinks = sinks(shape);
  knobs.invalid = shape.invalid;
  return knobs;
}

cases::MhaKnobs mha_knobs(const Shape& shape, Purpose purpose) {
  cases::MhaKnobs knobs{.seqlens_q = lengths(shape),
                        .seqlens_k = lengths(shape),
                        .h_q = shape.heads,
                        .h_kv = shape.kv_heads,
                        .d_qk = shape.d_qk,
                        .d_v = shape.d_v,
                        .type = type_of(shape.format),
                        .causal = shape.causal};
  if (shape.s_q != shape.seqlen) knobs.seqlens_q.assign(knobs.seqlens_k.size(), shape.s_q);
  knobs.backend = purpose == Purpose::kMake ? "reference" : "";
  return knobs;
}

cases::QuantizeKnobs quantize_knobs(const Shape& shape) {
  return {.blocks = shape.batch * blocks_for(shape.seqlen, shape.page),
          .page = shape.page,
          .format = shape.format};
}

cases::AppendKvKnobs append_kv_knobs(const Shape& shape) {
  cases::AppendKvKnobs knobs{.tokens = shape.batch * shape.s_q,
                             .blocks = shape.batch * blocks_for(shape.seqlen, shape.page),
                             .page = shape.page,
                             .format = shape.format};
  knobs.invalid = shape.invalid;
  return knobs;
}

cases::MergeStatesKnobs merge_states_knobs(const Shape& shape) {
  cases::MergeStatesKnobs knobs{
      .states = shape.states, .batch = shape.batch, .s_q = shape.s_q, .h_q = shape.heads, .d_v = shape.d_v};
  knobs.type = knobs.out_type = type_of(shape.format);
  return knobs;
}

cases::MakeScheduleKnobs make_schedule_knobs(const Shape& shape) {
  const std::vector<std::int64_t> all = lengths(shape);
  cases::MakeScheduleKnobs knobs;
  knobs.batch = shape.batch;
  knobs.seqlens = shape.topk == 0 ? all : std::vector<std::int64_t>{};
  knobs.max_seqlen = *std::max_element(all.begin(), all.end());
  knobs.topk = shape.topk;
  knobs.extra_topk = shape.extra_topk;
  knobs.split_size = shape.split_size;
  knobs.parts = shape.parts;
  return knobs;
}

// Bytes of the tensors of a case and of its outputs. In floating point: nothing overflows before it is
// refused. A shape can be too large for any list, so nothing here goes through the sequences: their mean
// length is `seqlen`.

double number(std::int64_t value) { return static_cast<double>(value); }

constexpr double kHalf = 2;  ///< bytes of bf16 and f16
constexpr double kWord = 4;  ///< bytes of f32 and i32

/// A paged cache.
double cache_bytes(const Shape& shape, double blocks, std::int64_t page) {
  if (is_fp8(shape.format)) return blocks * number(cases::packed_block_stride(shape.format, page));
  const double element = shape.format == KvFormat::kE4m3 ? 1 : kHalf;
  return blocks * number(page) * number(shape.kv_heads) * number(shape.d_qk) * element;
}

double blocks_of_batch(const Shape& shape) {
  return number(shape.batch) * number(blocks_for(shape.seqlen, shape.page));
}

/// `q`, `out` and `lse` of attention over `rows` query tokens.
double attention_bytes(const Shape& shape, double rows) {
  return rows * number(shape.heads) * (number(shape.d_qk + shape.d_v) * kHalf + kWord);
}

double query_rows(const Shape& shape) { return number(shape.batch) * number(shape.s_q); }

double dense_decode_bytes(const Shape& shape) {
  constexpr double kMoreBlocks = 1;  // that no sequence uses
  constexpr double kMoreColumns = 1;
  const double longest = number(shape.seqlen) * (1 + shape.spread);
  const double columns = std::ceil(longest / number(shape.page)) + kMoreColumns;
  return cache_bytes(shape, blocks_of_batch(shape) + kMoreBlocks, shape.page) +
         attention_bytes(shape, query_rows(shape)) + number(shape.batch) * (columns + 1) * kWord;
}

double sparse_decode_bytes(const Shape& shape) {
  const std::int64_t extra_page = cases::SparseDecodeKnobs{}.extra_page;
  const double extra_blocks = number(shape.batch) * number(blocks_for(shape.extra_topk, extra_page));
  return cache_bytes(shape, blocks_of_batch(shape), shape.page) +
         cache_bytes(shape, extra_blocks, extra_page) + attention_bytes(shape, query_rows(shape)) +
         query_rows(shape) * number(shape.topk + shape.extra_topk) * kWord;
}

double sparse_prefill_bytes(const Shape& shape) {
  const auto s_q = number(shape.s_q);
  const auto kv_heads = number(shape.kv_heads);
  return number(shape.seqlen) * kv_heads * number(shape.d_qk) * kHalf + attention_bytes(shape, s_q) +
         s_q * number(shape.heads) * kWord + s_q * kv_heads * number(shape.topk) * kWord;
}

double key_value_bytes(const Shape& shape) {
  return number(shape.batch) * number(shape.seqlen) * number(shape.kv_heads) *
         number(shape.d_qk + shape.d_v) * kHalf;
}

double mha_forward_bytes(const Shape& shape) {
  return attention_bytes(shape, query_rows(shape)) + key_value_bytes(shape) + 2 * number(shape.batch) * kWord;
}

/// Gradients beside all of the forward pass.
double mha_backward_bytes(const Shape& shape) {
  const double query_gradients =
      query_rows(shape) * number(shape.heads) * number(shape.d_qk + shape.d_v) * kHalf;
  return mha_forward_bytes(shape) + query_gradients + key_value_bytes(shape);
}

double quantize_bytes(const Shape& shape) {
  const double tokens = blocks_of_batch(shape) * number(shape.page);
  return tokens * number(shape.d_qk) * kHalf + cache_bytes(shape, blocks_of_batch(shape), shape.page);
}

/// The cache before and after.
double append_kv_bytes(const Shape& shape) {
  constexpr double kSlot = 8;
  return 2 * cache_bytes(shape, blocks_of_batch(shape), shape.page) +
         query_rows(shape) * (number(shape.d_qk) * kHalf + kSlot);
}

double merge_states_bytes(const Shape& shape) {
  const double state = query_rows(shape) * number(shape.heads) * (number(shape.d_v) * kHalf + kWord);
  return (number(shape.states) + 1) * state;
}

double make_schedule_bytes(const Shape& shape) {
  constexpr double kColumns = 8;
  return (2 * number(shape.batch) + number(shape.parts) * kColumns) * kWord;
}

/// What an operation takes.
struct OperationShape {
  std::string_view operation;
  std::vector<std::string_view> flags;
  std::vector<KvFormat> formats;
  Shape make;
  Shape bench;
  double (*bytes)(const Shape& shape);
  cases::Case (*random)(const Shape& shape, Purpose purpose, std::uint64_t seed);
};

const std::vector<KvFormat> kPlain = {KvFormat::kBf16, KvFormat::kF16};
const std::vector<KvFormat> kOfOneType = {KvFormat::kBf16, KvFormat::kF16, KvFormat::kE4m3};
const std::vector<KvFormat> kFp8 = {KvFormat::kFp8V32, KvFormat::kFp8Model1};
const std::vector<KvFormat> kAnyFormat = {KvFormat::kBf16, KvFormat::kF16, KvFormat::kFp8V32,
                                          KvFormat::kFp8Model1};

const std::vector<std::string_view> kMhaFlags = {"batch",  "s-q",  "heads", "kv-heads", "seqlen",
                                                 "format", "d-qk", "d-v",   "causal",   "spread"};
const Shape kMhaMake = {
    .batch = 2, .s_q = 0, .heads = 2, .kv_heads = 0, .seqlen = 64, .d_qk = 192, .d_v = 128};
const Shape kMhaBench = {
    .batch = 1, .s_q = 0, .heads = 16, .kv_heads = 0, .seqlen = 2048, .d_qk = 192, .d_v = 128};
const std::vector<std::string_view> kQuantizeFlags = {"batch", "seqlen", "page", "format"};
const Shape kQuantizeMake = {.batch = 2, .seqlen = 128, .format = KvFormat::kFp8V32, .d_qk = 0};
const Shape kQuantizeBench = {.batch = 16, .seqlen = 4096, .format = KvFormat::kFp8V32, .d_qk = 0};

const std::vector<OperationShape>& operations() {
  static const std::vector<OperationShape> all = {
      {.operation = "dense_decode",
       .flags = {"batch", "s-q", "heads", "kv-heads", "seqlen", "page", "format", "d-qk", "d-v", "causal",
                 "split-size", "spread"},
       .formats = kOfOneType,
       .make = {.batch = 2, .heads = 16, .seqlen = 200, .d_qk = 576},
       .bench = {.heads = 128, .seqlen = 4096, .d_qk = 576},
       .bytes = dense_decode_bytes,
       .random =
           [](const Shape& shape, Purpose, std::uint64_t seed) {
             return cases::make_dense_decode(dense_decode_knobs(shape), seed);
           }},
      {.operation = "sparse_decode",
       .flags = {"batch", "s-q", "heads", "kv-heads", "seqlen", "topk", "extra-topk", "page", "format",
                 "d-qk", "d-v", "split-size", "invalid", "sink"},
       .formats = kAnyFormat,
       .make = {.batch = 2, .heads = 16, .seqlen = 256, .topk = 128, .format = KvFormat::kFp8V32, .d_qk = 0},
       .bench = {.heads = 128, .seqlen = 16384, .topk = 2048, .format = KvFormat::kFp8V32, .d_qk = 0},
       .bytes = sparse_decode_bytes,
       .random =
           [](const Shape& shape, Purpose, std::uint64_t seed) {
             return cases::make_sparse_decode(sparse_decode_knobs(shape), seed);
           }},
      {.operation = "sparse_prefill",
       .flags = {"s-q", "heads", "kv-heads", "seqlen", "topk", "format", "d-qk", "d-v", "invalid", "sink"},
       .formats = kPlain,
       .make = {.s_q = 4, .heads = 16, .seqlen = 256, .topk = 128, .d_qk = 576},
       .bench = {.s_q = 16, .heads = 128, .seqlen = 8192, .topk = 2048, .d_qk = 576},
       .bytes = sparse_prefill_bytes,
       .random =
           [](const Shape& shape, Purpose, std::uint64_t seed) {
             return cases::make_sparse_prefill(sparse_prefill_knobs(shape), seed);
           }},
      {.operation = "mha",
       .flags = kMhaFlags,
       .formats = kPlain,
       .make = kMhaMake,
       .bench = kMhaBench,
       .bytes = mha_backward_bytes,
       .random = [](const Shape& shape, Purpose purpose,
                    std::uint64_t seed) { return cases::make_mha(mha_knobs(shape, purpose), seed); }},
      {.operation = "mha_forward",
       .flags = kMhaFlags,
       .formats = kPlain,
       .make = kMhaMake,
       .bench = kMhaBench,
       .bytes = mha_forward_bytes,
       .random = [](const Shape& shape, Purpose purpose,
                    std::uint64_t seed) { return cases::make_mha_forward(mha_knobs(shape, purpose), seed); }},
      {.operation = "mha_backward",
       .flags = kMhaFlags,
       .formats = kPlain,
       .make = kMhaMake,
       .bench = kMhaBench,
       .bytes = mha_backward_bytes,
       .random =
           [](const Shape& shape, Purpose purpose, std::uint64_t seed) {
             return cases::make_mha_backward(mha_knobs(shape, purpose), seed);
           }},
      {.operation = "quantize_kv",
       .flags = kQuantizeFlags,
       .formats = kFp8,
       .make = kQuantizeMake,
       .bench = kQuantizeBench,
       .bytes = quantize_bytes,
       .random = [](const Shape& shape, Purpose,
                    std::uint64_t seed) { return cases::make_quantize_kv(quantize_knobs(shape), seed); }},
      {.operation = "dequantize_kv",
       .flags = kQuantizeFlags,
       .formats = kFp8,
       .make = kQuantizeMake,
       .bench = kQuantizeBench,
       .bytes = quantize_bytes,
       .random = [](const Shape& shape, Purpose,
                    std::uint64_t seed) { return cases::make_dequantize_kv(quantize_knobs(shape), seed); }},
      {.operation = "append_kv",
       .flags = {"batch", "s-q", "seqlen", "page", "format", "invalid"},
       .formats = kAnyFormat,
       .make = {.batch = 2, .s_q = 10, .seqlen = 64, .page = 16, .format = KvFormat::kFp8V32, .d_qk = 0},
       .bench = {.batch = 16, .s_q = 1024, .seqlen = 4096, .format = KvFormat::kFp8V32, .d_qk = 0},
       .bytes = append_kv_bytes,
       .random = [](const Shape& shape, Purpose,
                    std::uint64_t seed) { return cases::make_append_kv(append_kv_knobs(shape), seed); }},
      {.operation = "merge_states",
       .flags = {"batch", "s-q", "heads", "d-v", "format", "states"},
       .formats = kPlain,
       .make = {.batch = 2, .heads = 16},
       .bench = {.batch = 256, .heads = 128},
       .bytes = merge_states_bytes,
       .random =
           [](const Shape& shape, Purpose, std::uint64_t seed) {
             return cases::make_merge_states(merge_states_knobs(shape), seed);
           }},
      {.operation = "make_schedule",
       .flags = {"batch", "seqlen", "topk", "extra-topk", "split-size", "spread", "parts"},
       .formats = {},
       .make = {.batch = 4, .seqlen = 4096},
       .bench = {.batch = 256, .seqlen = 4096, .parts = 128},
       .bytes = make_schedule_bytes,
       .random =
           [](const Shape& shape, Purpose, std::uint64_t seed) {
             return cases::make_make_schedule(make_schedule_knobs(shape), seed);
           }},
  };
  return all;
}

/// mha is a pair of operations: a case may hold both, a measurement is of one.
bool serves(const OperationShape& operation, Purpose purpose) {
  return purpose == Purpose::kMake || operation.operation != "mha";
}

const OperationShape& operation_named(const std::string& name, Purpose purpose) {
  for (const OperationShape& operation : operations()) {
    if (serves(operation, purpose) && operation.operation == name) return operation;
  }
  fail(fmt::format("OP must be one of {}, got \"{}\"", fmt::join(operation_names(purpose), ", "), name));
}

bool takes(const OperationShape& operation, std::string_view flag) {
  return std::find(operation.flags.begin(), operation.flags.end(), flag) != operation.flags.end();
}

template <class Number>
Number parse_number(const Flag& flag, std::string_view text, Number least, Number most) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  // Written so that a NaN fails as well.
  const bool in_range = value >= least && value <= most;
  if (error != std::errc() || end != text.data() + text.size() || !in_range) {
    fail(fmt::format("--{} must be a {} from {} to {}, or several with commas between them, got \"{}\"",
                     flag.name, std::is_integral_v<Number> ? "whole number" : "number", least, most, text));
  }
  return value;
}

struct SetValue {
  Shape& shape;
  const Flag& flag;
  std::string_view text;

  void operator()(std::int64_t Shape::* member) const {
    shape.*member = parse_number<std::int64_t>(flag, text, flag.least, kMost);
  }
  void operator()(double Shape::* member) const { shape.*member = parse_number<double>(flag, text, 0, 1); }
  void operator()(KvFormat Shape::* member) const {
    const std::optional<KvFormat> format = kv_format_named(text);
    if (!format) fail(fmt::format("--{} must be {}, got \"{}\"", flag.name, flag.meaning, text));
    shape.*member = *format;
  }
  void operator()(bool Shape::* member) const { shape.*member = true; }
};

std::vector<std::string_view> split(std::string_view list) {
  std::vector<std::string_view> items;
  while (true) {
    const std::size_t comma = list.find(',');
    items.push_back(list.substr(0, comma));
    if (comma == std::string_view::npos) return items;
    list.remove_prefix(comma + 1);
  }
}

/// Width of a row where no --d-qk is given.
std::int64_t own_width(KvFormat format) {
  if (!is_fp8(format)) return 576;
  for (const std::int64_t width : {576, 512}) {
    if (kv_row_size(format, width)) return width;
  }
  fail(fmt::format("{} has no known row width", name_of(format)));
}

/// Rows that begin at multiples of 16 bytes.
void require_aligned_rows(const OperationShape& operation, std::string_view flag, std::int64_t width,
                          std::int64_t multiple) {
  if (takes(operation, flag) && width % multiple != 0) {
    fail(fmt::format("--{} must be a multiple of {}, got {}", flag, multiple, width));
  }
}

/// Replaces the zeros that stand for another dimension.
void resolve(const OperationShape& operation, Shape& shape) {
  if (std::find(operation.formats.begin(), operation.formats.end(), shape.format) ==
          operation.formats.end() &&
      takes(operation, "format")) {
    std::vector<std::string_view> names;
    for (const KvFormat format : operation.formats) names.push_back(name_of(format));
    fail(fmt::format("{} takes --format {}, got {}", operation.operation, fmt::join(names, " or "),
                     name_of(shape.format)));
  }
  // Where zero stands for seqlen it is the default.
  if (shape.s_q == 0 && operation.make.s_q != 0)
    fail(fmt::format("{} needs --s-q of at least 1", operation.operation));
  if (shape.s_q == 0) shape.s_q = shape.seqlen;
  if (shape.kv_heads == 0) shape.kv_heads = shape.heads;
  if (shape.d_qk == 0) shape.d_qk = own_width(shape.format);
  if (!kv_row_size(shape.format, shape.d_qk)) {
    fail(fmt::format("{} rows are {} wide, got --d-qk {}", name_of(shape.format), own_width(shape.format),
                     shape.d_qk));
  }
  require_aligned_rows(operation, "d-qk", shape.d_qk, shape.format == KvFormat::kE4m3 ? 16 : 8);
  require_aligned_rows(operation, "d-v", shape.d_v, 8);
  if (takes(operation, "kv-heads") && is_fp8(shape.format) && shape.kv_heads != 1) {
    fail(fmt::format("{} caches have one kv head, got --kv-heads {}", name_of(shape.format), shape.kv_heads));
  }
  if (takes(operation, "d-qk") && shape.d_v > shape.d_qk &&
      operation.operation.find("mha") == std::string::npos) {
    fail(fmt::format("--d-v must be at most --d-qk, {}, got {}", shape.d_qk, shape.d_v));
  }
  const bool topk_needed = operation.operation == "sparse_decode" || operation.operation == "sparse_prefill";
  if (topk_needed && shape.topk == 0) fail(fmt::format("{} needs --topk of at least 1", operation.operation));
}

void require_memory(const OperationShape& operation, const Shape& shape) {
  const double needed = operation.bytes(shape);
  const auto had = static_cast<double>(this_machine().memory_bytes);
  if (had > 0 && needed > had) {
    fail(fmt::format("this shape needs about {:.3g} GiB of memory, the machine has {:.3g}",
                     needed / (1 << 30), had / (1 << 30)));
  }
}

}  // namespace

std::vector<std::string> operation_names(Purpose purpose) {
  std::vector<std::string> names;
  for (const OperationShape& operation : operations()) {
    if (serves(operation, purpose)) names.emplace_back(operation.operation);
  }
  return names;
}

std::vector<FlagDescription> shape_flags() {
  std::vector<FlagDescription> all;
  for (const Flag& flag : flags()) {
    all.push_back({.name = std::string(flag.name),
                   .meaning = std::string(flag.meaning),
                   .kind = std::visit([](auto member) { return kind_of(member); }, flag.member)});
  }
  return all;
}

std::string shape_help(Purpose purpose) {
  std::string help = "Shape flags of each OP, with their defaults:\n";
  for (const OperationShape& operation : operations()) {
    if (!serves(operation, purpose)) continue;
    const Shape& defaults = purpose == Purpose::kMake ? operation.make : operation.bench;
    help +=
        fmt::format("  {}: {}\n", operation.operation, to_string(std::string(operation.operation), defaults));
  }
  return help;
}

std::vector<Shape> sweep(const std::string& name, const ShapeFlags& given, Purpose purpose) {
  const OperationShape& operation = operation_named(name, purpose);
  std::vector<Shape> shapes = {purpose == Purpose::kMake ? operation.make : operation.bench};
  for (const Flag& flag : flags()) {
    const auto found = given.find(std::string(flag.name));
    if (found == given.end()) continue;
    if (!takes(operation, flag.name)) {
      fail(fmt::format("{} has no --{}; it has --{}", name, flag.name, fmt::join(operation.flags, ", --")));
    }
    std::vector<Shape> wider;
    for (const Shape& shape : shapes) {
      for (const std::string_view value : split(found->second)) {
        wider.push_back(shape);
        std::visit(SetValue{wider.back(), flag, value}, flag.member);
      }
    }
    shapes = std::move(wider);
  }
  for (Shape& shape : shapes) {
    resolve(operation, shape);
    require_memory(operation, shape);
  }
  return shapes;
}

std::vector<std::pair<std::string, nlohmann::ordered_json>> values_of(const std::string& name,
                                                                      const Shape& shape) {
  const OperationShape& operation = operation_named(name, Purpose::kMake);
  std::vector<std::pair<std::string, nlohmann::ordered_json>> values;
  for (const Flag& flag : flags()) {
    if (!takes(operation, flag.name)) continue;
    std::string key(flag.name);
    std::replace(key.begin(), key.end(), '-', '_');
    std::visit(
        [&]<class T>(T Shape::* member) {
          if constexpr (std::is_same_v<T, KvFormat>) {
            values.emplace_back(key, name_of(shape.*member));
          } else {
            values.emplace_back(key, shape.*member);
          }
        },
        flag.member);
  }
  return values;
}

std::string to_string(const std::string& operation, const Shape& shape) {
  std::string text;
  for (const auto& [name, value] : values_of(operation, shape)) {
    text += fmt::format("{}{}={}", text.empty() ? "" : " ", name,
                        value.is_string() ? value.get<std::string>() : value.dump());
  }
  return text;
}

Shape smallest_like(Shape shape) {
  shape.batch = shape.s_q = shape.seqlen = 1;
  shape.page = std::min<std::int64_t>(shape.page, 64);
  shape.topk = std::min<std::int64_t>(shape.topk, 1);
  shape.extra_topk = std::min<std::int64_t>(shape.extra_topk, 1);
  return shape;
}

double memory_needed(const std::string& operation, const Shape& shape) {
  return operation_named(operation, Purpose::kMake).bytes(shape);
}

cases::Case random_case(const std::string& operation, const Shape& shape, Purpose purpose,
                        std::uint64_t seed) {
  return operation_named(operation, purpose).random(shape, purpose, seed);
}

}  // namespace flashmla::cli
