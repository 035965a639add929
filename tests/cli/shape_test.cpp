// The shapes of the command line: how much memory they need, and which are refused.
#include "cli/shape.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "cases/case.h"
#include "command.h"
#include "flashmla/error.h"

namespace flashmla::test {
namespace {

struct Sized {
  std::string operation;
  cli::ShapeFlags flags;
};

/// What dominates differs: the cache, the queries, the indices.
const std::vector<Sized>& sized() {
  static const std::vector<Sized> all = {
      {"dense_decode", {{"batch", "5"}, {"seqlen", "1000"}, {"kv-heads", "4"}, {"spread", "0.5"}}},
      {"dense_decode", {{"batch", "3"}, {"s-q", "40"}, {"heads", "64"}, {"seqlen", "40"}}},
      {"dense_decode", {{"batch", "5"}, {"seqlen", "1000"}, {"format", "e4m3"}, {"kv-heads", "4"}}},
      {"sparse_decode", {{"seqlen", "3000"}}},
      {"sparse_decode", {{"seqlen", "300"}, {"page", "1"}, {"format", "fp8_model1"}}},
      {"sparse_decode", {{"seqlen", "300"}, {"format", "bf16"}, {"kv-heads", "8"}}},
      {"sparse_decode", {{"s-q", "50"}, {"heads", "1"}, {"topk", "6000"}}},
      {"sparse_decode", {{"extra-topk", "3000"}}},
      {"sparse_prefill", {{"seqlen", "3000"}, {"kv-heads", "2"}}},
      {"sparse_prefill", {{"s-q", "100"}, {"topk", "4000"}, {"heads", "4"}, {"kv-heads", "4"}}},
      {"mha", {{"seqlen", "300"}, {"kv-heads", "1"}}},
      {"mha_forward", {{"seqlen", "300"}, {"s-q", "20"}, {"spread", "0.5"}}},
      {"mha_backward", {{"seqlen", "100"}, {"heads", "6"}}},
      {"quantize_kv", {{"seqlen", "700"}, {"format", "fp8_model1"}}},
      {"dequantize_kv", {{"seqlen", "700"}}},
      {"append_kv", {{"seqlen", "700"}, {"s-q", "3"}}},
      {"append_kv", {{"s-q", "3000"}, {"format", "bf16"}, {"seqlen", "4000"}}},
      {"merge_states", {{"batch", "9"}, {"states", "7"}}},
      {"make_schedule", {{"batch", "1000"}, {"parts", "3000"}}},
  };
  return all;
}

/// Bytes of all tensors of a case that is ready to run.
double allocated(const std::string& operation, const cli::Shape& shape) {
  cases::Case what = cli::random_case(operation, shape, cli::Purpose::kMake, 1);
  double bytes = 0;
  for (const auto& [name, tensor] : what.tensors) bytes += static_cast<double>(tensor.memory().size());
  for (const cases::Step& step : cases::prepare(what)) {
    for (const auto& [name, tensor] : step.outputs) bytes += static_cast<double>(tensor.memory().size());
  }
  return bytes;
}

TEST(Memory, TheEstimateIsWhatACaseAllocates) {
  for (const Sized& problem : sized()) {
    const cli::Shape shape = cli::sweep(problem.operation, problem.flags, cli::Purpose::kMake).front();
    const double bytes = allocated(problem.operation, shape);
    EXPECT_NEAR(cli::memory_needed(problem.operation, shape) / bytes, 1, 0.08)
        << cli::to_string(problem.operation, shape);
  }
}

TEST(Memory, EveryOperationIsEstimated) {
  for (const std::string& operation : operations()) {
    EXPECT_TRUE(std::any_of(sized().begin(), sized().end(), [&](const Sized& problem) {
      return problem.operation == operation;
    })) << operation;
  }
}

// One dimension of each operation at its limit.
TEST(Memory, AShapeBeyondTheMemoryIsRefusedAtOnce) {
  for (const auto& [operation, flag] : {std::pair{"dense_decode", "batch"},
                                        {"sparse_decode", "seqlen"},
                                        {"sparse_prefill", "seqlen"},
                                        {"mha_forward", "seqlen"},
                                        {"mha_backward", "seqlen"},
                                        {"quantize_kv", "batch"},
                                        {"append_kv", "seqlen"},
                                        {"merge_states", "batch"}}) {
    EXPECT_THROW(cli::sweep(operation, {{flag, "2147483647"}}, cli::Purpose::kBench), Error) << operation;
  }
}

}  // namespace
}  // namespace flashmla::test
