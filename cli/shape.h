// The shape flags of `make` and `bench`, and random cases of these shapes.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "cases/case.h"
#include "flashmla/kv_format.h"

namespace flashmla::cli {

/// One number a flag. Which of them an operation has, and their defaults, stands in shape.cpp; a
/// dimension that an operation does not have keeps the value here and means nothing.
struct Shape {
  std::int64_t batch = 1;
  std::int64_t s_q = 1;
  std::int64_t heads = 1;
  std::int64_t kv_heads = 1;
  std::int64_t seqlen = 1;
  std::int64_t topk = 0;
  std::int64_t extra_topk = 0;
  std::int64_t page = 64;
  KvFormat format = KvFormat::kBf16;
  std::int64_t d_qk = 576;
  std::int64_t d_v = 512;
  bool causal = false;
  std::int64_t split_size = 0;
  /// Lengths lie evenly in `seqlen * [1 - spread, 1 + spread]`.
  double spread = 0;
  /// Part of the indices that name no token.
  double invalid = 0;
  bool sink = false;
  std::int64_t states = 2;
  std::int64_t parts = 8;
};

/// What a case is for; `make` writes small ones, `bench` measures realistic ones.
enum class Purpose { kMake, kBench };

/// A flag as given on the command line: `--seqlen` and `1024,4096`; `true` for a switch.
using ShapeFlags = std::map<std::string, std::string>;

enum class FlagKind { kWhole, kNumber, kFormat, kSwitch };

struct FlagDescription {
  std::string name;  ///< without dashes: `s-q`
  std::string meaning;
  FlagKind kind = FlagKind::kWhole;
};

/// Every OP there is for that purpose.
std::vector<std::string> operation_names(Purpose purpose);

/// Every shape flag.
std::vector<FlagDescription> shape_flags();

/// `OP` and its flags with their defaults, a line for each operation.
std::string shape_help(Purpose purpose);

/// The shapes that the flags ask for, one for each combination of their values; the last flag in
/// declaration order varies fastest. Throws Error for an unknown operation, a flag that the operation
/// does not have, a value that is no number or outside its range, and a shape that memory cannot hold.
std::vector<Shape> sweep(const std::string& operation, const ShapeFlags& flags, Purpose purpose);

/// Values of the operation's flags by name, in declaration order.
std::vector<std::pair<std::string, nlohmann::ordered_json>> values_of(const std::string& operation,
                                                                      const Shape& shape);

/// `batch=1 heads=128 seqlen=4096`.
std::string to_string(const std::string& operation, const Shape& shape);

/// Bytes of the tensors of a case of this shape and of its outputs, within a few percent.
double memory_needed(const std::string& operation, const Shape& shape);

/// A shape with as little data as can be that the same kernels take: one token of one sequence.
Shape smallest_like(Shape shape);

/// A random case of this shape. The forward pass of mha_backward comes from the reference for `make` and
/// from the fastest kernel for `bench`.
cases::Case random_case(const std::string& operation, const Shape& shape, Purpose purpose,
                        std::uint64_t seed);

}  // namespace flashmla::cli
