// Each rule of the comparison passes just inside of its limit and fails just outside.
#include "cases/compare.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "expect_error.h"
#include "flashmla/operations.h"

namespace flashmla::cases {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Tensor floats(const std::vector<double>& values) {
  Tensor tensor(DataType::kF32, {static_cast<std::int64_t>(values.size())});
  for (std::size_t i = 0; i < values.size(); ++i) tensor.set({static_cast<std::int64_t>(i)}, values[i]);
  return tensor;
}

Comparison compare_values(const std::vector<double>& actual, const std::vector<double>& expected,
                          const Tolerance& tolerance) {
  return compare("test", "out", floats(actual).view(), floats(expected).view(), tolerance);
}

TEST(Compare, PassesWithinTheAbsoluteLimit) {
  const Tolerance tolerance{.abs = 0.25};
  EXPECT_TRUE(compare_values({1.25}, {1}, tolerance).passed);
  EXPECT_TRUE(compare_values({0.75}, {1}, tolerance).passed);
  EXPECT_FALSE(compare_values({1.2500001}, {1}, tolerance).passed);
  EXPECT_FALSE(compare_values({0.7499999}, {1}, tolerance).passed);
}

TEST(Compare, PassesWithinTheRelativeLimitOfTheExpectedValue) {
  const Tolerance tolerance{.rel = 0.25};
  EXPECT_TRUE(compare_values({-5}, {-4}, tolerance).passed);
  EXPECT_FALSE(compare_values({-5.000001}, {-4}, tolerance).passed);
  EXPECT_FALSE(compare_values({4}, {5.5}, tolerance).passed);
  EXPECT_FALSE(compare_values({4}, {3}, tolerance).passed);  // 1 is 0.25 of what came, 0.33 of what should
}

TEST(Compare, EitherLimitIsEnough) {
  const Tolerance tolerance{.abs = 0.1, .rel = 0.01};
  EXPECT_TRUE(compare_values({0.05, 100.9}, {0, 100}, tolerance).passed);
  EXPECT_FALSE(compare_values({0.2, 100.9}, {0, 100}, tolerance).passed);
  EXPECT_FALSE(compare_values({0.05, 101.1}, {0, 100}, tolerance).passed);
}

TEST(Compare, LimitsTheCosineDifferenceOfTheWholeTensor) {
  // a = (1, e), r = (1, 0): 1 - 2 / (2 + e^2), about e^2 / 2.
  const double e = 0.01;
  const double difference = 1 - 2 / (2 + e * e);
  const Comparison inside = compare_values({1, e}, {1, 0}, {.abs = 1, .cos = difference * 1.001});
  EXPECT_TRUE(inside.passed);
  EXPECT_NEAR(inside.cosine_difference, difference, 1e-10);
  const Comparison outside = compare_values({1, e}, {1, 0}, {.abs = 1, .cos = difference * 0.999});
  EXPECT_FALSE(outside.passed);
  EXPECT_EQ(outside.failed_elements, 0);
  EXPECT_TRUE(compare_values({1, e}, {1, 0}, {.abs = 1}).passed);
}

TEST(Compare, TensorsOfZerosAreEqual) {
  const Comparison result = compare_values({0, 0}, {0, 0}, {.cos = 0});
  EXPECT_TRUE(result.passed);
  EXPECT_EQ(result.cosine_difference, 0);
}

TEST(Compare, NonFiniteValuesMustBeTheSame) {
  const Tolerance tolerance{.abs = 1e30, .rel = 1e30};
  EXPECT_TRUE(compare_values({kInfinity, -kInfinity, kNan}, {kInfinity, -kInfinity, kNan}, tolerance).passed);
  EXPECT_FALSE(compare_values({kInfinity}, {-kInfinity}, tolerance).passed);
  EXPECT_FALSE(compare_values({kInfinity}, {kNan}, tolerance).passed);
  EXPECT_FALSE(compare_values({kNan}, {kInfinity}, tolerance).passed);
  EXPECT_FALSE(compare_values({1}, {kInfinity}, tolerance).passed);
  EXPECT_FALSE(compare_values({kNan}, {1}, tolerance).passed);
  EXPECT_EQ(compare_values({kNan, 1, 2}, {1, kNan, 2}, tolerance).non_finite_mismatches, 2);
}

TEST(Compare, ReportsTheWorstElement) {
  const Comparison result = compare_values({1, 2.5, 10.5}, {1, 2, 10}, {.abs = 0.1, .rel = 0.1});
  EXPECT_FALSE(result.passed);
  EXPECT_EQ(result.position, Index{1});  // the same error, but less is allowed
  EXPECT_EQ(result.got, 2.5);
  EXPECT_EQ(result.expected, 2);
  EXPECT_NEAR(result.max_ratio, 2.5, 1e-9);
  EXPECT_EQ(result.max_error, 0.5);
  EXPECT_EQ(result.failed_elements, 1);
}

TEST(Compare, ReportsANonFiniteMismatchBeforeAllElse) {
  const Comparison result = compare_values({100, kNan, 0}, {1, 2, 100}, {.abs = 0.1});
  EXPECT_EQ(result.position, Index{1});
  EXPECT_EQ(result.max_ratio, kInfinity);
  EXPECT_EQ(result.failed_elements, 3);
  EXPECT_EQ(result.max_error, 100);
}

TEST(Compare, DescribesTheResultOnOneLine) {
  const std::string text = compare_values({1, kNan}, {1, 2}, {.abs = 0.1, .cos = 1}).description;
  EXPECT_NE(text.find("test out: FAILED, 1 elements out of tolerance"), std::string::npos) << text;
  EXPECT_NE(text.find("at [1]: got nan, expected 2"), std::string::npos) << text;
  EXPECT_EQ(text.find('\n'), std::string::npos);
}

TEST(Compare, HonoursStrides) {
  Tensor wide(DataType::kF32, {2, 2}, {7, 1});
  Tensor packed(DataType::kF32, {2, 2});
  for (const auto* tensor : {&wide, &packed}) {
    for_each_index(tensor->view(), [&](auto index) {
      set_element(tensor->view(), index, static_cast<double>(index[0] + 5 * index[1]));
    });
  }
  EXPECT_TRUE(compare("test", "out", wide.view(), packed.view(), {.exact = true}).passed);
  wide.set({1, 1}, 0);
  EXPECT_FALSE(compare("test", "out", wide.view(), packed.view(), {.exact = true}).passed);
}

TEST(Compare, AnotherShapeOrTypeFails) {
  const Tensor a(DataType::kF32, {2, 3});
  const Tensor b(DataType::kF32, {3, 2});
  const Tensor integers(DataType::kI32, {2, 3});
  const Tensor narrow(DataType::kBf16, {2, 3});
  EXPECT_FALSE(compare("test", "out", a.view(), b.view(), {.abs = 1}).passed);
  EXPECT_FALSE(compare("test", "out", a.view(), integers.view(), {.abs = 1}).passed);
  EXPECT_TRUE(compare("test", "out", narrow.view(), a.view(), {.abs = 1}).passed);
  EXPECT_FALSE(compare("test", "out", narrow.view(), a.view(), {.exact = true}).passed);
  EXPECT_EQ(compare("test", "out", a.view(), b.view(), {.abs = 1}).description,
            "test out: FAILED, got f32 [2, 3], expected f32 [3, 2]");
}

TEST(Compare, NothingToCompareIsEqual) {
  const Tensor empty(DataType::kF32, {0, 3});
  EXPECT_TRUE(compare("dense_decode", "out", empty.view(), empty.view()).passed);
}

TEST(CompareExact, EveryBitCounts) {
  Tensor a(DataType::kU8, {3});
  Tensor b = a;
  EXPECT_TRUE(compare("quantize_kv", "kv_cache", a.view(), b.view()).passed);
  b.set({2}, 254);
  const Comparison result = compare("quantize_kv", "kv_cache", a.view(), b.view());
  EXPECT_FALSE(result.passed);
  EXPECT_EQ(result.failed_elements, 1);
  EXPECT_EQ(result.position, Index{2});
  EXPECT_EQ(result.max_ratio, kInfinity);
}

TEST(CompareExact, ZerosOfDifferentSignDiffer) {
  EXPECT_FALSE(compare_values({-0.0}, {0.0}, {.exact = true}).passed);
  EXPECT_TRUE(compare_values({-0.0}, {0.0}, {.abs = 0}).passed);
}

TEST(CompareExact, AnyNanIsTheSameNan) {
  Tensor a(DataType::kBf16, {1});
  Tensor b(DataType::kBf16, {1});
  *b.view().as<std::uint16_t>() = 0x7fc1;
  EXPECT_TRUE(compare("dequantize_kv", "kv", a.view(), b.view()).passed);
}

TEST(CompareExact, TheUnusedByteOfModel1IsNotCompared) {
  constexpr std::int64_t kPage = 3;
  Tensor a = fp8_cache(KvFormat::kFp8Model1, 2, kPage);
  const auto byte_differs = [&](std::int64_t byte) {
    Tensor b = a;
    b.set({1, byte / 584, 0, byte % 584}, 0);
    return !compare("quantize_kv", "kv_cache", a.view(), b.view()).passed;
  };
  for (std::int64_t token = 0; token < kPage; ++token) {
    const std::int64_t scales = kPage * 576 + token * 8;
    EXPECT_FALSE(byte_differs(scales + 7));
    for (std::int64_t i = 0; i < 7; ++i) EXPECT_TRUE(byte_differs(scales + i));
  }
  EXPECT_TRUE(byte_differs(7));
  EXPECT_TRUE(byte_differs(kPage * 576 - 1));
}

struct PromisedTolerance {
  const char* operation;
  const char* output;
  double abs;
  double rel;
  double cos;
};

TEST(ToleranceOf, IsWhatIsPromised) {
  const PromisedTolerance promised[] = {
      {"dense_decode", "out", 8e-4, 2.01 / 128, 5e-6},
      {"sparse_decode", "out", 1e-3, 2.01 / 128, 5e-6},
      {"dense_decode", "lse", 1e-6, 8.01 / 65536, -1},
      {"sparse_decode", "lse", 1e-6, 8.01 / 65536, -1},
      {"sparse_prefill", "out", 8e-4, 3.01 / 128, 7e-6},
      {"sparse_prefill", "lse", 1e-6, 2.01 / 65536, -1},
      {"sparse_prefill", "max_logits", 1e-6, 2.01 / 65536, -1},
      {"mha_forward", "out", 1e-3, 8.01 / 128, 7e-6},
      {"mha_backward", "d_q", 1e-3, 8.01 / 128, 7e-6},
      {"mha_backward", "d_k", 1e-3, 8.01 / 128, 7e-6},
      {"mha_backward", "d_v", 1e-3, 8.01 / 128, 7e-6},
      {"mha_forward", "lse", 1e-6, 2.01 / 65536, -1},
  };
  for (const PromisedTolerance& row : promised) {
    const Tolerance& tolerance = tolerance_of(row.operation, row.output);
    EXPECT_FALSE(tolerance.exact);
    EXPECT_EQ(tolerance.abs, row.abs) << row.operation << " " << row.output;
    EXPECT_EQ(tolerance.rel, row.rel) << row.operation << " " << row.output;
    EXPECT_EQ(tolerance.cos, row.cos) << row.operation << " " << row.output;
  }
  EXPECT_TRUE(tolerance_of("quantize_kv", "kv_cache").exact);
}

// The next number of a type is right, the one after it is not.
TEST(ToleranceOf, MergedStatesAreRoundedOnce) {
  for (const auto& [type, step] :
       {std::pair{DataType::kBf16, 0x1p-7}, {DataType::kF16, 0x1p-10}, {DataType::kF32, 0x1p-17}}) {
    Tensor expected(type, {1, 1, 1, 8});
    for (std::int64_t i = 0; i < 8; ++i) expected.set({0, 0, 0, i}, 1);
    for (const int steps : {1, 3}) {
      Tensor actual = expected;
      actual.set({0, 0, 0, 5}, 1 + steps * step);
      EXPECT_EQ(compare("merge_states", "out", actual.view(), expected.view()).passed, steps == 1)
          << name_of(type);
    }
  }
}

TEST(ToleranceOf, KnowsEveryOutput) {
  Operations::for_each([]<class Op>() {
    for (const auto& field : Op::fields().tensors) {
      if (field.role != Role::kOutput && field.role != Role::kUpdate) continue;
      EXPECT_NO_THROW(tolerance_of(Op::fields().operation, field.name))
          << Op::fields().operation << field.name;
    }
  });
  expect_error("no operation dense_decode has an output q", [] { tolerance_of("dense_decode", "q"); });
}

}  // namespace
}  // namespace flashmla::cases
