// The emulator's matrix unit: its rounding, its two forms, and the layouts of its operands.
#include "cuda/emulator/matrix_unit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "cuda/emulator/fragments.h"
#include "cuda/emulator/wgmma_operand.h"
#include "kv/float_types.h"

namespace flashmla::emulator {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr OperandType kTypes[] = {OperandType::kBf16, OperandType::kF16};

std::uint32_t bits(float value) { return std::bit_cast<std::uint32_t>(value); }

std::uint16_t code_of(OperandType type, float value) {
  return type == OperandType::kBf16 ? float_to_bf16(value) : float_to_f16(value);
}

float value_of(OperandType type, std::uint16_t code) {
  return type == OperandType::kBf16 ? bf16_to_float(code) : f16_to_float(code);
}

using Codes = std::vector<std::uint16_t>;

Codes codes(OperandType type, const std::vector<float>& values) {
  Codes result;
  for (const float value : values) result.push_back(code_of(type, value));
  return result;
}

/// A step with bf16 operands.
float step_of(const std::vector<float>& a, const std::vector<float>& b, float accumulator) {
  return product_step(OperandType::kBf16, codes(OperandType::kBf16, a), codes(OperandType::kBf16, b),
                      accumulator);
}

TEST(MatrixUnitStep, IsExactWhereNothingIsLost) {
  EXPECT_EQ(step_of({1, 2, 3}, {4, -5, 6}, 0.5f), 12.5f);
  EXPECT_EQ(step_of({0, 0}, {1, 2}, -3.0f), -3.0f);
}

TEST(MatrixUnitStep, TermsKeep25BitsBelowTheLargestExponent) {
  const std::vector<float> ones(16, 1.0f);
  EXPECT_EQ(step_of(std::vector<float>(16, 0x1p-25f), ones, 1.0f), 1.0f + 0x1p-21f);
  EXPECT_EQ(step_of(std::vector<float>(16, 0x1p-26f), ones, 1.0f), 1.0f)
      << "each term is cut off before the sum";
  EXPECT_EQ(step_of(std::vector<float>(16, -0x1p-26f), ones, 1.0f), 1.0f) << "toward zero";
}

TEST(MatrixUnitStep, ExponentsOfProductsAreNotNormalized) {
  // 1.5 * 1.5 = 2.25 counts with exponent 0, so that 2^-25 is kept.
  EXPECT_EQ(step_of({1.5f, -1.5f, 0x1p-25f}, {1.5f, 1.5f, 1.0f}, 0.0f), 0x1p-25f);
  // The same value as an accumulator has exponent 1.
  EXPECT_EQ(step_of({-1.5f, 0x1p-25f}, {1.5f, 1.0f}, 2.25f), 0.0f);
}

TEST(MatrixUnitStep, TheSumIsTruncatedTowardZero) {
  EXPECT_EQ(step_of({0x1.8p-24f}, {1.0f}, 1.0f), 1.0f);
  EXPECT_EQ(step_of({-0x1p-25f}, {1.0f}, 1.0f), 1.0f - 0x1p-24f);
  EXPECT_EQ(step_of({-0x1.8p-24f}, {1.0f}, -1.0f), -1.0f);
}

TEST(MatrixUnitStep, ZerosDoNotRaiseTheLargestExponent) {
  EXPECT_EQ(step_of({0.0f, 0x1p-60f}, {0x1p100f, 1.0f}, 0.0f), 0x1p-60f);
}

TEST(MatrixUnitStep, ZeroIsPositive) {
  EXPECT_EQ(bits(step_of({-0.0f}, {1.0f}, -0.0f)), 0u);
  EXPECT_EQ(bits(step_of({-1.0f}, {1.0f}, 1.0f)), 0u);
}

TEST(MatrixUnitStep, SubnormalOperandsAndResultsCount) {
  EXPECT_EQ(step_of({0x1p-130f}, {0x1p100f}, 0.0f), 0x1p-30f);
  EXPECT_EQ(step_of({0x1p-100f}, {0x1p-40f}, 0.0f), 0x1p-140f);
  EXPECT_EQ(bits(step_of({0x1p-100f}, {-0x1p-60f}, 0.0f)), 0u);
  const Codes smallest_f16{1};
  EXPECT_EQ(product_step(OperandType::kF16, smallest_f16, smallest_f16, 0.0f), 0x1p-48f);
}

TEST(MatrixUnitStep, InfinitiesAndNan) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(step_of({kInfinity, 1}, {-2, 1}, 5), -kInfinity);
  EXPECT_EQ(step_of({1}, {1}, kInfinity), kInfinity);
  EXPECT_EQ(step_of({0x1p127f}, {0x1p127f}, 0), kInfinity);
  EXPECT_EQ(step_of({0x1p127f, -kInfinity}, {0x1p127f, 1}, 0), -kInfinity);
  EXPECT_EQ(bits(step_of({kInfinity}, {0}, 1)), 0x7fffffffu);
  EXPECT_EQ(bits(step_of({kInfinity, -kInfinity}, {1, 1}, 1)), 0x7fffffffu);
  EXPECT_EQ(bits(step_of({kInfinity}, {1}, -kInfinity)), 0x7fffffffu);
  EXPECT_EQ(bits(step_of({nan}, {0}, 1)), 0x7fffffffu);
  EXPECT_EQ(bits(step_of({1}, {1}, -nan)), 0x7fffffffu);
}

/// Random operands of one kind: any bits, any finite bits, near one, sparse, or very small.
class RandomOperands {
 public:
  RandomOperands(OperandType type, std::uint64_t seed) : type_(type), random_(seed) {}

  void choose_kind() { kind_ = static_cast<int>(random_() % 5); }

  std::uint16_t operand() {
    const auto any = static_cast<std::uint16_t>(random_());
    switch (kind_) {
      case 0:
        return any;
      case 1:
        return finite(any);
      case 2:
        return code_of(type_, normal_(random_));
      case 3:
        return any % 3 == 0 ? code_of(type_, normal_(random_)) : static_cast<std::uint16_t>(any & 0x8000u);
      default:
        return static_cast<std::uint16_t>(any & (type_ == OperandType::kBf16 ? 0x9fffu : 0x8fffu));
    }
  }

  float accumulator() {
    const auto any = static_cast<std::uint32_t>(random_());
    switch (kind_) {
      case 0:
        return std::bit_cast<float>(any);
      case 1:
        return std::isfinite(std::bit_cast<float>(any)) ? std::bit_cast<float>(any) : 1.0f;
      case 2:
        return normal_(random_) * 8;
      case 3:
        return any % 2 == 0 ? normal_(random_) * 0x1p-20f : 0.0f;
      default:
        return std::bit_cast<float>(any & 0x87ffffffu);
    }
  }

 private:
  std::uint16_t finite(std::uint16_t code) const {
    return std::isfinite(value_of(type_, code)) ? code : static_cast<std::uint16_t>(code & 0x80ffu);
  }

  OperandType type_;
  std::mt19937_64 random_;
  std::normal_distribution<float> normal_;
  int kind_ = 0;
};

struct Tile {
  ProductShape shape;
  Codes a;
  Codes b;
  std::vector<float> accumulators;

  Tile(ProductShape tile_shape, RandomOperands& random) : shape(tile_shape) {
    random.choose_kind();
    a.resize(static_cast<std::size_t>(shape.rows * shape.depth));
    b.resize(static_cast<std::size_t>(shape.depth * shape.columns));
    accumulators.resize(static_cast<std::size_t>(shape.rows * shape.columns));
    std::ranges::generate(a, [&] { return random.operand(); });
    std::ranges::generate(b, [&] { return random.operand(); });
    std::ranges::generate(accumulators, [&] { return random.accumulator(); });
  }

  Codes row(int m) const { return Codes(a.begin() + m * shape.depth, a.begin() + (m + 1) * shape.depth); }

  Codes column(int n) const {
    Codes result;
    for (int k = 0; k < shape.depth; ++k) result.push_back(b[k * shape.columns + n]);
    return result;
  }

  float& accumulator(int m, int n) { return accumulators[m * shape.columns + n]; }
};

TEST(MatrixUnitTile, HasTheBitsOfTheStep) {
  for (const OperandType type : kTypes) {
    RandomOperands random(type, 7);
    for (int trial = 0; trial < 600; ++trial) {
      Tile before({.rows = 1 + trial % 64, .columns = 8 * (1 + trial % 9), .depth = trial % 2 == 0 ? 16 : 8},
                  random);
      Tile after = before;
      multiply_step(type, after.shape, after.a.data(), after.b.data(), after.accumulators.data());
      for (int m = 0; m < before.shape.rows; ++m) {
        for (int n = 0; n < before.shape.columns; ++n) {
          const float expected =
              product_step(type, before.row(m), before.column(n), before.accumulator(m, n));
          ASSERT_EQ(bits(after.accumulator(m, n)), bits(expected))
              << "trial " << trial << " at " << m << ", " << n;
        }
      }
    }
  }
}

TEST(MatrixUnitTile, TheLargestSumsFit) {
  // 16 products of almost 4, each almost 2^27 units of the last bit kept.
  const float largest = 0x1.ffcp0f;
  for (const float sign : {1.0f, -1.0f}) {
    const Codes a = codes(OperandType::kF16, std::vector<float>(16, sign * largest));
    const Codes b = codes(OperandType::kF16, std::vector<float>(16 * 8, largest));
    std::vector<float> accumulators(8, sign * 0x1.fffffep0f);
    multiply_step(OperandType::kF16, {.rows = 1, .columns = 8, .depth = 16}, a.data(), b.data(),
                  accumulators.data());
    for (const float sum : accumulators) EXPECT_NEAR(sum, sign * (16 * largest * largest + 2), 1e-5);
  }
}

TEST(MatrixUnitTile, StaysWithinTheModelsDistanceFromFloat64) {
  const OperandType type = OperandType::kBf16;
  std::mt19937_64 random(11);
  std::normal_distribution<float> normal;
  for (int trial = 0; trial < 20000; ++trial) {
    Codes a, b;
    double exact = normal(random);
    const auto accumulator = static_cast<float>(exact);
    exact = accumulator;
    double largest = std::abs(exact);
    for (int k = 0; k < 16; ++k) {
      a.push_back(code_of(type, normal(random)));
      b.push_back(code_of(type, normal(random)));
      const double term = double{value_of(type, a.back())} * double{value_of(type, b.back())};
      exact += term;
      largest = std::max(largest, std::abs(term));
    }
    // Each of 17 terms loses less than 2^-25 of the largest one, the sum less than its last bit.
    const double bound = 17 * largest * 0x1p-25 + std::abs(exact) * 0x1.1p-23;
    ASSERT_NEAR(product_step(type, a, b, accumulator), exact, bound);
  }
}

/// The elements that lanes hold, counted: each one must be held once.
template <class Layout>
void expect_a_partition(int lanes, int elements, int rows, int columns, Layout&& layout) {
  std::set<std::pair<int, int>> seen;
  for (int lane = 0; lane < lanes; ++lane) {
    for (int i = 0; i < elements; ++i) {
      const Element at = layout(lane, i);
      EXPECT_TRUE(at.row >= 0 && at.row < rows && at.column >= 0 && at.column < columns);
      EXPECT_TRUE(seen.emplace(at.row, at.column).second) << at.row << ", " << at.column;
    }
  }
  EXPECT_EQ(seen.size(), static_cast<std::size_t>(rows * columns));
}

TEST(Fragments, HoldEachElementOnce) {
  expect_a_partition(32, 8, 16, 16, mma_a_element);
  expect_a_partition(32, 4, 16, 8, mma_a_element);
  expect_a_partition(32, 4, 16, 8, mma_b_element);
  expect_a_partition(32, 2, 8, 8, mma_b_element);
  expect_a_partition(32, 4, 16, 8, mma_accumulator_element);
  expect_a_partition(128, 8, 64, 16, wgmma_a_element);
  expect_a_partition(128, 4, 64, 8, wgmma_accumulator_element);
  expect_a_partition(128, 128, 64, 256, wgmma_accumulator_element);
  for (const bool transposed : {false, true}) {
    expect_a_partition(32, 2, 8, 8,
                       [&](int lane, int half) { return matrix_element(lane, half, transposed); });
  }
}

// Single places, read off the figures of the PTX ISA.
TEST(Fragments, AreThoseOfThePtxIsa) {
  EXPECT_EQ(mma_a_element(5, 1), (Element{1, 3}));
  EXPECT_EQ(mma_a_element(5, 2), (Element{9, 2}));
  EXPECT_EQ(mma_a_element(5, 4), (Element{1, 10}));
  EXPECT_EQ(mma_a_element(31, 7), (Element{15, 15}));
  EXPECT_EQ(mma_b_element(5, 1), (Element{3, 1}));
  EXPECT_EQ(mma_b_element(5, 2), (Element{10, 1}));
  EXPECT_EQ(mma_accumulator_element(6, 1), (Element{1, 5}));
  EXPECT_EQ(mma_accumulator_element(6, 2), (Element{9, 4}));
  EXPECT_EQ(wgmma_a_element(37, 2), (Element{25, 2}));
  EXPECT_EQ(wgmma_accumulator_element(127, 127), (Element{63, 255}));
  EXPECT_EQ(wgmma_accumulator_element(64, 6), (Element{40, 8}));
  EXPECT_EQ(matrix_element(6, 1, false), (Element{1, 5}));
  EXPECT_EQ(matrix_element(6, 1, true), (Element{5, 1}));
  EXPECT_EQ(matrix_address_lane(3, 7), 31);
}

TEST(WarpMma, MultipliesWhatTheLanesHold) {
  for (const int depth : {8, 16}) {
    for (const OperandType type : kTypes) {
      RandomOperands random(type, 3);
      Tile tile({.rows = 16, .columns = 8, .depth = depth}, random);
      std::array<std::array<std::uint32_t, 4>, 32> a{};
      std::array<std::array<std::uint32_t, 2>, 32> b{};
      std::array<std::array<float, 4>, 32> accumulators{};
      for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < depth / 2; ++i) {
          const Element at = mma_a_element(lane, i);
          a[lane][i / 2] |= std::uint32_t{tile.a[at.row * depth + at.column]} << (16 * (i % 2));
        }
        for (int i = 0; i < depth / 4; ++i) {
          const Element at = mma_b_element(lane, i);
          b[lane][i / 2] |= std::uint32_t{tile.b[at.row * 8 + at.column]} << (16 * (i % 2));
        }
        for (int i = 0; i < 4; ++i) {
          const Element at = mma_accumulator_element(lane, i);
          accumulators[lane][i] = tile.accumulator(at.row, at.column);
        }
      }
      warp_mma(type, depth, a, b, accumulators);
      for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4; ++i) {
          const Element at = mma_accumulator_element(lane, i);
          const float expected = product_step(type, tile.row(at.row), tile.column(at.column),
                                              tile.accumulator(at.row, at.column));
          EXPECT_EQ(bits(accumulators[lane][i]), bits(expected));
        }
      }
    }
  }
}

std::uint64_t descriptor_bits(std::uint32_t start, std::uint32_t leading, std::uint32_t stride,
                              std::uint64_t layout) {
  return std::uint64_t{start >> 4} | std::uint64_t{leading >> 4} << 16 | std::uint64_t{stride >> 4} << 32 |
         layout << 62;
}

TEST(WgmmaOperand, DescriptorFieldsAreDecoded) {
  const OperandDescriptor descriptor = decode_descriptor(descriptor_bits(0x2a40, 16, 1024, 1) | 5ull << 49);
  EXPECT_EQ(descriptor.start, 0x2a40u);
  EXPECT_EQ(descriptor.leading_offset, 16u);
  EXPECT_EQ(descriptor.stride_offset, 1024u);
  EXPECT_EQ(descriptor.base_offset, 5u);
  EXPECT_EQ(descriptor.swizzle, Swizzle::k128);
  EXPECT_EQ(decode_descriptor(descriptor_bits(0, 0, 0, 2)).swizzle, Swizzle::k64);
  EXPECT_EQ(decode_descriptor(descriptor_bits(0, 0, 0, 3)).swizzle, Swizzle::k32);
  EXPECT_EQ(decode_descriptor(descriptor_bits(0, 0, 0, 0)).swizzle, Swizzle::kNone);
}

/// Rows of 128 bytes as a swizzled tensor copy writes them: chunk c of row r lies at chunk c ^ (r % 8).
std::uint32_t offset_in_128_byte_rows(std::uint32_t row, std::uint32_t column) {
  return row * 128 + ((column / 8) ^ (row % 8)) * 16 + column % 8 * 2;
}

TEST(WgmmaOperand, ReadsATileOf128ByteRowsInBothDirections) {
  constexpr std::uint32_t kStart = 4096;
  for (std::uint32_t k0 = 0; k0 < 64; k0 += 16) {
    // 64 rows of 64 k: a step of 16 k begins 32 bytes further.
    const OperandDescriptor keys = decode_descriptor(descriptor_bits(kStart + k0 * 2, 16, 1024, 1));
    // The same memory as 64 k of 64 rows: a step of 16 k begins 16 lines further.
    const OperandDescriptor values = decode_descriptor(descriptor_bits(kStart + k0 * 128, 8192, 1024, 1));
    for (std::uint32_t row = 0; row < 64; ++row) {
      for (std::uint32_t k = 0; k < 16; ++k) {
        EXPECT_EQ(operand_offset(keys, Major::kK, row, k), kStart + offset_in_128_byte_rows(row, k0 + k));
        EXPECT_EQ(operand_offset(values, Major::kMn, row, k), kStart + offset_in_128_byte_rows(k0 + k, row));
      }
    }
    // Rows 64 to 127 of MN-major are in the next tile, at the leading offset.
    EXPECT_EQ(operand_offset(values, Major::kMn, 64 + 9, 3),
              kStart + 8192 + offset_in_128_byte_rows(k0 + 3, 9));
  }
}

// The examples of the PTX ISA, "Canonical Layouts", in elements; those of tf32 counted in 16-byte chunks.
TEST(WgmmaOperand, ReadsTheExamplesOfThePtxIsa) {
  const OperandDescriptor mn_plain = decode_descriptor(descriptor_bits(0, 128 * 2, 64 * 2, 0));
  EXPECT_EQ(operand_offset(mn_plain, Major::kMn, 1, 0), 2u * 1);
  EXPECT_EQ(operand_offset(mn_plain, Major::kMn, 8, 0), 2u * 64);
  EXPECT_EQ(operand_offset(mn_plain, Major::kMn, 0, 1), 2u * 8);
  EXPECT_EQ(operand_offset(mn_plain, Major::kMn, 0, 8), 2u * 128);

  const OperandDescriptor mn_32 = decode_descriptor(descriptor_bits(0, 128 * 2, 256 * 2, 3));
  EXPECT_EQ(operand_offset(mn_32, Major::kMn, 8, 0), 2u * 8);
  EXPECT_EQ(operand_offset(mn_32, Major::kMn, 16, 0), 2u * 128);
  EXPECT_EQ(operand_offset(mn_32, Major::kMn, 0, 1), 2u * 16);
  EXPECT_EQ(operand_offset(mn_32, Major::kMn, 0, 8), 2u * 256);
  EXPECT_EQ(operand_offset(mn_32, Major::kMn, 0, 4), 2u * (64 + 8)) << "line 4 has its chunks exchanged";

  const OperandDescriptor mn_64 = decode_descriptor(descriptor_bits(0, 256 * 2, 512 * 2, 2));
  EXPECT_EQ(operand_offset(mn_64, Major::kMn, 24, 0), 2u * 24);
  EXPECT_EQ(operand_offset(mn_64, Major::kMn, 32, 0), 2u * 256);
  EXPECT_EQ(operand_offset(mn_64, Major::kMn, 0, 1), 2u * 32);
  EXPECT_EQ(operand_offset(mn_64, Major::kMn, 0, 2), 2u * (64 + 8)) << "lines 2 and 3 have theirs exchanged";

  const OperandDescriptor k_plain = decode_descriptor(descriptor_bits(0, 256, 128, 0));
  EXPECT_EQ(operand_offset(k_plain, Major::kK, 1, 0), 16u);
  EXPECT_EQ(operand_offset(k_plain, Major::kK, 8, 0), 128u);
  EXPECT_EQ(operand_offset(k_plain, Major::kK, 0, 8), 256u);

  const OperandDescriptor k_32 = decode_descriptor(descriptor_bits(0, 16, 256, 3));
  EXPECT_EQ(operand_offset(k_32, Major::kK, 1, 0), 32u);
  EXPECT_EQ(operand_offset(k_32, Major::kK, 8, 0), 256u);
  EXPECT_EQ(operand_offset(k_32, Major::kK, 0, 8), 16u);
}

TEST(WgmmaOperand, ChunksCoverTheOperandOnce) {
  for (const std::uint64_t layout : {0, 1, 2, 3}) {
    for (const Major major : {Major::kK, Major::kMn}) {
      const OperandDescriptor descriptor = decode_descriptor(descriptor_bits(2048, 8192, 1024, layout));
      std::set<std::uint32_t> offsets;
      for_each_chunk(
          descriptor, major, 64, 16, [&](std::uint32_t offset, std::uint32_t row, std::uint32_t k) {
            for (std::uint32_t i = 0; i < 8; ++i) {
              const bool along_k = major == Major::kK;
              EXPECT_EQ(offset + 2 * i,
                        operand_offset(descriptor, major, row + (along_k ? 0 : i), k + (along_k ? i : 0)));
              offsets.insert(offset + 2 * i);
            }
          });
      EXPECT_EQ(offsets.size(), 64u * 16u);
    }
  }
}

}  // namespace
}  // namespace flashmla::emulator
