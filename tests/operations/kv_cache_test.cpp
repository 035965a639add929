// quantize_kv, dequantize_kv and append_kv against the rules of the formats.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "backends.h"
#include "cache.h"

namespace flashmla {
namespace {

FLASHMLA_ON_EVERY_BACKEND(QuantizeKvTest);
FLASHMLA_ON_EVERY_BACKEND(DequantizeKvTest);
FLASHMLA_ON_EVERY_BACKEND(AppendKvTest);

constexpr KvFormat kFp8Formats[] = {KvFormat::kFp8V32, KvFormat::kFp8Model1};
constexpr double kLargestBf16 = 0x1.fep127;

struct Fp8Sizes {
  std::int64_t quantized, group, width, row;
};

Fp8Sizes sizes_of(KvFormat format) {
  return format == KvFormat::kFp8V32 ? Fp8Sizes{512, 128, 576, 656} : Fp8Sizes{448, 64, 512, 584};
}

/// The smallest power of two that is not below `max(amax / 448, 1e-4)`.
double expected_scale(const Row& row, std::int64_t begin, std::int64_t count) {
  double amax = 0;
  for (std::int64_t c = begin; c < begin + count; ++c) {
    if (std::isfinite(row[std::size_t(c)])) amax = std::max(amax, std::fabs(row[std::size_t(c)]));
  }
  double scale = std::ldexp(1.0, -40);
  while (scale < std::max(amax / 448, 1e-4)) scale *= 2;
  return scale;
}

/// Expects that a token of the cache holds `row`, quantized by the rule.
void expect_quantized(const TensorView& cache, std::int64_t block, std::int64_t token, const Row& row) {
  const Fp8Sizes sizes = sizes_of(*kv_format_of(cache));
  const Fp8Place place = fp8_place(cache, block, token);
  const auto* bytes = cache.as<const std::uint8_t>();
  for (std::int64_t c = 0; c < sizes.quantized; ++c) {
    const std::int64_t group = c / sizes.group;
    const double scale = expected_scale(row, group * sizes.group, sizes.group);
    ASSERT_EQ(fp8_scale(cache, place, group), scale) << "group " << group;
    const int code = bytes[place.values + c];
    const double x = row[std::size_t(c)];
    if (std::isfinite(x)) {
      ASSERT_EQ(code, nearest_e4m3(x / scale)) << x << " with scale " << scale;
    } else {
      ASSERT_EQ(code & 0x7f, 0x7f) << x;
    }
  }
  const Row rope = row_at(TensorView::contiguous(bytes + place.rope, DataType::kBf16, {1, 64}), {0});
  for (std::int64_t c = 0; c < 64; ++c) {
    const double x = row[std::size_t(sizes.quantized + c)];
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(rope[std::size_t(c)]));
    } else {
      ASSERT_EQ(rope[std::size_t(c)], x);
    }
  }
}

QuantizeKv quantize(const cases::Tensor& kv, const cases::Tensor& cache) {
  QuantizeKv op;
  op.kv = kv.view();
  op.kv_cache = cache.view();
  return op;
}

DequantizeKv dequantize(const cases::Tensor& cache, const cases::Tensor& kv) {
  DequantizeKv op;
  op.kv_cache = cache.view();
  op.kv = kv.view();
  return op;
}

TEST_P(QuantizeKvTest, FollowsTheRuleForRandomRows) {
  for (const KvFormat format : kFp8Formats) {
    cases::Random random(4);
    const Fp8Sizes sizes = sizes_of(format);
    const cases::Tensor kv(DataType::kBf16, {2, 3, 1, sizes.width});
    cases::for_each_index(kv.view(), [&](std::span<const std::int64_t> index) {
      // Magnitudes from 2^-20 to 2^20, so that groups have very different scales.
      const double magnitude = std::ldexp(1.0, int(random.between(-20, 20)) * (index[1] == 2 ? 1 : 0));
      cases::set_element(kv.view(), index, random.normal() * magnitude);
    });
    const cases::Tensor cache = cases::fp8_cache(format, 2, 3);
    run(quantize(kv, cache));
    for (std::int64_t block = 0; block < 2; ++block) {
      for (std::int64_t token = 0; token < 3; ++token) {
        expect_quantized(cache.view(), block, token, row_at(kv.view(), {block, token, 0}));
      }
    }
  }
}

/// Runs one row through quantize_kv and compares.
void expect_row_follows_the_rule(const std::string& backend, KvFormat format, const Row& row) {
  const cases::Tensor kv(DataType::kBf16, {1, 1, 1, sizes_of(format).width});
  set_row(kv.view(), {0, 0, 0}, row);
  const cases::Tensor cache = cases::fp8_cache(format, 1, 1);
  run_on(backend, quantize(kv, cache));
  expect_quantized(cache.view(), 0, 0, row_at(kv.view(), {0, 0, 0}));
}

TEST_P(QuantizeKvTest, GivesAZeroGroupTheClampedScale) {
  for (const KvFormat format : kFp8Formats) {
    const Fp8Sizes sizes = sizes_of(format);
    const cases::Tensor kv(DataType::kBf16, {1, 1, 1, sizes.width});
    set_row(kv.view(), {0, 0, 0}, Row(std::size_t(sizes.width), 0.0));
    kv.view().as<std::uint16_t>()[3] = 0x8000;  // -0 keeps its sign
    const cases::Tensor cache = cases::fp8_cache(format, 1, 1);
    run(quantize(kv, cache));
    EXPECT_EQ(fp8_scale(cache.view(), fp8_place(cache.view(), 0, 0), 0), std::ldexp(1.0, -13));
    EXPECT_EQ(cache.view().as<std::uint8_t>()[2], 0);
    EXPECT_EQ(cache.view().as<std::uint8_t>()[3], 0x80);
  }
}

TEST_P(QuantizeKvTest, FollowsTheRuleAtTheEndsOfTheRange) {
  if (!computes(GetParam(), "quantize_kv")) GTEST_SKIP() << GetParam() << " has no quantize_kv";
  for (const KvFormat format : kFp8Formats) {
    const auto width = std::size_t(sizes_of(format).width);
    for (const double amax : {kLargestBf16, -kLargestBf16, 448.0, 450.0, 446.0, 1.0, 0.0447, 0.0448, 0.0449,
                              std::ldexp(1.0, -126), std::ldexp(1.0, -133), 896.0, 0.875}) {
      Row row(width, 0.25);
      for (std::size_t c = 0; c < width; ++c) row[c] = amax * double(c % 97) / 128.0;
      row[5] = row[300] = amax;
      expect_row_follows_the_rule(GetParam(), format, row);
    }
  }
}

TEST_P(QuantizeKvTest, RoundsTiesToEven) {
  if (!computes(GetParam(), "quantize_kv")) GTEST_SKIP() << GetParam() << " has no quantize_kv";
  // amax 448 gives scale 1: the midpoints between neighbours of e4m3 are bf16 numbers.
  for (const KvFormat format : kFp8Formats) {
    Row row(std::size_t(sizes_of(format).width), 448.0);
    for (int code = 0; code < 0x7e; ++code) {
      row[std::size_t(code) + 64] = (e4m3_value(code) + e4m3_value(code + 1)) / 2;
      row[std::size_t(code) + 200] = -row[std::size_t(code) + 64];
    }
    expect_row_follows_the_rule(GetParam(), format, row);
  }
}

TEST_P(QuantizeKvTest, StoresWhatIsNotFiniteAsNan) {
  if (!computes(GetParam(), "quantize_kv")) GTEST_SKIP() << GetParam() << " has no quantize_kv";
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const KvFormat format : kFp8Formats) {
    cases::Random random(9);
    Row row = random_row(sizes_of(format).width, random);
    row[0] = nan;
    row[70] = kInfinity;
    row[200] = -kInfinity;
    for (std::size_t c = 256; c < 384; ++c) row[c] = c % 2 == 0 ? nan : kInfinity;
    row[row.size() - 1] = nan;
    row[row.size() - 2] = kInfinity;
    expect_row_follows_the_rule(GetParam(), format, row);
  }
}

TEST_P(QuantizeKvTest, LeavesPaddingBetweenBlocksAlone) {
  for (const KvFormat format : kFp8Formats) {
    const Fp8Sizes sizes = sizes_of(format);
    const std::int64_t stride = (4 * sizes.row + 15) / 16 * 16;
    const cases::Tensor kv(DataType::kBf16, {2, 3, 1, sizes.width});
    cases::Random random(2);
    fill_random(kv, random);
    const cases::Tensor cache = cases::fp8_cache(format, 2, 3, stride);
    run(quantize(kv, cache));
    for (std::int64_t at = 3 * sizes.row; at < stride; ++at) {
      ASSERT_EQ(cache.memory()[std::size_t(at)], std::byte{0xff}) << at;
    }
    expect_quantized(cache.view(), 1, 2, row_at(kv.view(), {1, 2, 0}));
  }
}

TEST_P(DequantizeKvTest, GivesEveryCodeTimesItsScale) {
  // Scales of at most 20 bits: the product with e4m3 is exact in float, so there is one way to round it.
  const float odd_scales[] = {1.0f,          0.7001953125f, 3.0f,        1e-3f,
                              0x1.2345p-20f, 0x1.fffp90f,   0x1.8p-120f, 0x1.abcp119f};
  const int codes[] = {127, 126, 0, 1, 254, 247, 100, 140};
  for (const KvFormat format : kFp8Formats) {
    const Fp8Sizes sizes = sizes_of(format);
    const cases::Tensor cache = cases::fp8_cache(format, 2, 4);
    const cases::Tensor kv(DataType::kBf16, {2, 4, 1, sizes.width});
    auto* bytes = cache.view().as<std::uint8_t>();
    for (std::int64_t token = 0; token < 8; ++token) {
      const Fp8Place place = fp8_place(cache.view(), token / 4, token % 4);
      for (std::int64_t c = 0; c < sizes.quantized; ++c)
        bytes[place.values + c] = std::uint8_t(c + token * 32);
      for (std::int64_t group = 0; group < sizes.quantized / sizes.group; ++group) {
        const auto pick = std::size_t(token + group) % 8;
        float scale = odd_scales[pick];
        std::uint32_t bits = 0;
        std::memcpy(&bits, &scale, 4);
        bits &= 0xfffffff0u;
        if (format == KvFormat::kFp8V32) {
          std::memcpy(bytes + place.scales + 4 * group, &bits, 4);
        } else {
          bytes[place.scales + group] = std::uint8_t(codes[pick]);
        }
      }
    }
    run(dequantize(cache, kv));
    for (std::int64_t token = 0; token < 8; ++token) {
      const Row expected = fp8_row(cache.view(), token / 4, token % 4);
      const Row got = row_at(kv.view(), {token / 4, token % 4, 0});
      for (std::size_t c = 0; c < expected.size(); ++c) {
        if (std::isnan(expected[c])) {
          ASSERT_TRUE(std::isnan(got[c])) << token << " " << c;
        } else {
          ASSERT_EQ(got[c], expected[c]) << token << " " << c;
        }
      }
    }
  }
}

TEST_P(DequantizeKvTest, BringsQuantizedRowsBackWithinAStepOfE4m3) {
  for (const KvFormat format : kFp8Formats) {
    const Fp8Sizes sizes = sizes_of(format);
    const cases::Tensor kv(DataType::kBf16, {2, 5, 1, sizes.width});
    const cases::Tensor back(DataType::kBf16, kv.shape(), {sizes.width * 6, sizes.width, sizes.width, 1});
    const cases::Tensor cache = cases::fp8_cache(format, 2, 5);
    cases::Random random(3);
    fill_random(kv, random);
    run(quantize(kv, cache));
    run(dequantize(cache, back));
    cases::for_each_index(kv.view(), [&](std::span<const std::int64_t> index) {
      const double x = cases::element(kv.view(), index);
      const double allowed = index[3] < sizes.quantized ? std::max(std::fabs(x) / 16, 1e-4) : 0.0;
      ASSERT_NEAR(cases::element(back.view(), index), x, allowed);
    });
  }
}

/// Random tokens and where they go.
struct NewTokens {
  cases::Tensor latent, rope, slots;

  NewTokens(KvFormat format, DataType slot_type, const std::vector<std::int64_t>& given) {
    const auto count = static_cast<std::int64_t>(given.size());
    const DataType type = format == KvFormat::kF16 ? DataType::kF16 : DataType::kBf16;
    latent = cases::Tensor(type, {count, format == KvFormat::kFp8Model1 ? 448 : 512});
    rope = cases::Tensor(type, {count, 64});
    slots = cases::Tensor(slot_type, {count});
    cases::Random random(7);
    fill_random(latent, random);
    fill_random(rope, random);
    for (std::int64_t i = 0; i < count; ++i) {
      if (slot_type == DataType::kI64) {
        slots.view().as<std::int64_t>()[i] = given[std::size_t(i)];
      } else {
        slots.view().as<std::int32_t>()[i] = static_cast<std::int32_t>(given[std::size_t(i)]);
      }
    }
  }

  /// Latent and RoPE values of a token in one row.
  Row row(std::int64_t i) const {
    Row result = row_at(latent.view(), {i});
    const Row tail = row_at(rope.view(), {i});
    result.insert(result.end(), tail.begin(), tail.end());
    return result;
  }

  AppendKv op(const cases::Tensor& cache) const {
    AppendKv result;
    result.latent = latent.view();
    result.rope = rope.view();
    result.slot_mapping = slots.view();
    result.kv_cache = cache.view();
    return result;
  }
};

constexpr KvFormat kFormats[] = {KvFormat::kBf16, KvFormat::kF16, KvFormat::kFp8V32, KvFormat::kFp8Model1};

/// Expects token `slot` to hold token `i` of `tokens`.
void expect_stored(const cases::Tensor& cache, std::int64_t slot, const NewTokens& tokens, std::int64_t i) {
  const std::int64_t page = cache.view().shape[1];
  if (cache.type() == DataType::kU8) {
    expect_quantized(cache.view(), slot / page, slot % page, tokens.row(i));
  } else {
    EXPECT_EQ(row_at(cache.view(), {slot / page, slot % page, 0}), tokens.row(i));
  }
}

TEST_P(AppendKvTest, StoresEachTokenInItsSlot) {
  for (const KvFormat format : kFormats) {
    for (const DataType slot_type : {DataType::kI32, DataType::kI64}) {
      const NewTokens tokens(format, slot_type, {0, 11, 4, 7});
      const std::int64_t width = tokens.latent.shape()[1] + 64;
      const cases::Tensor cache = make_cache(format, 3, 4, 1, width);
      run(tokens.op(cache));
      const std::int64_t slots[] = {0, 11, 4, 7};
      for (std::int64_t i = 0; i < 4; ++i) expect_stored(cache, slots[i], tokens, i);
    }
  }
}

TEST_P(AppendKvTest, WritesTheBytesOfQuantizeKv) {
  for (const KvFormat format : kFp8Formats) {
    const NewTokens tokens(format, DataType::kI32, {0, 1, 2, 3, 4, 5});
    const cases::Tensor appended = cases::fp8_cache(format, 2, 3);
    const cases::Tensor quantized = cases::fp8_cache(format, 2, 3);
    const cases::Tensor kv(DataType::kBf16, {2, 3, 1, sizes_of(format).width});
    for (std::int64_t i = 0; i < 6; ++i) set_row(kv.view(), {i / 3, i % 3, 0}, tokens.row(i));
    run(tokens.op(appended));
    run(quantize(kv, quantized));
    EXPECT_EQ(bytes_of(appended), bytes_of(quantized));
  }
}

TEST_P(AppendKvTest, KeepsTheLastTokenOfASlot) {
  for (const KvFormat format : kFormats) {
    std::vector<std::int64_t> slots(300, 5);
    slots[3] = slots[250] = 2;
    const NewTokens tokens(format, DataType::kI64, slots);
    const cases::Tensor cache = make_cache(format, 2, 4, 1, tokens.latent.shape()[1] + 64);
    run(tokens.op(cache), 3);
    expect_stored(cache, 5, tokens, 299);
    expect_stored(cache, 2, tokens, 250);
  }
}

/// Copies the bytes of one token between caches of the same layout.
void restore_token(const TensorView& to, const TensorView& from, std::int64_t token) {
  const std::int64_t block = token / to.shape[1];
  const std::int64_t row = token % to.shape[1];
  if (to.type != DataType::kU8) return set_row(to, {block, row, 0}, row_at(from, {block, row, 0}));
  const Fp8Sizes sizes = sizes_of(*kv_format_of(to));
  const Fp8Place place = fp8_place(to, block, row);
  const auto copy = [&](std::int64_t at, std::int64_t count) {
    std::memcpy(to.as<char>() + at, from.as<char>() + at, std::size_t(count));
  };
  copy(place.values, sizes.quantized);
  copy(place.scales, sizes.row - sizes.quantized - 128);
  copy(place.rope, 128);
}

TEST_P(AppendKvTest, SkipsSlotsOutsideTheCacheAndTouchesNothingElse) {
  const std::int64_t far = std::numeric_limits<std::int64_t>::max();
  for (const KvFormat format : kFormats) {
    const NewTokens tokens(format, DataType::kI64,
                           {-1, 12, 5, -far - 1, far, 1LL << 32, (1LL << 32) + 5, -7});
    const std::int64_t width = tokens.latent.shape()[1] + 64;
    const cases::Tensor cache = make_cache(format, 3, 4, 1, width);
    run(tokens.op(cache));
    expect_stored(cache, 5, tokens, 2);

    // With that token's bytes taken back, all is as before.
    const cases::Tensor blank = make_cache(format, 3, 4, 1, width);
    const cases::Tensor restored = cache;
    restore_token(restored.view(), blank.view(), 5);
    EXPECT_EQ(bytes_of(restored), bytes_of(blank));
  }
}

TEST_P(AppendKvTest, KeepsTheLastTokenOfEachSlotOnAnyNumberOfThreads) {
  // Slots that are drawn often, seldom, in runs, far apart, and not at all.
  constexpr std::int64_t kSlots = 70'000;
  for (const std::int64_t drawn : {7, 300, 70'000}) {
    cases::Random random(5);
    std::vector<std::int64_t> slots;
    for (int run = 0; run < 100; ++run) {
      const std::int64_t begin = random.between(-1, drawn);
      for (int i = 0; i < 10; ++i) slots.push_back(run % 2 == 0 ? begin + i : run % 4096 * 4096 % kSlots);
    }
    const auto count = static_cast<std::int64_t>(slots.size());
    const cases::Tensor latent(DataType::kBf16, {count, 8});
    const cases::Tensor rope(DataType::kBf16, {count, 8});
    const cases::Tensor slot_mapping(DataType::kI64, {count});
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::int64_t c = 0; c < 8; ++c) latent.view().as<std::uint16_t>()[i * 8 + c] = std::uint16_t(i);
      slot_mapping.view().as<std::int64_t>()[i] = slots[std::size_t(i)];
    }
    for (const int threads : {1, 2, 5}) {
      const cases::Tensor cache(DataType::kBf16, {kSlots / 10, 10, 1, 16});
      AppendKv op;
      op.latent = latent.view();
      op.rope = rope.view();
      op.slot_mapping = slot_mapping.view();
      op.kv_cache = cache.view();
      run(op, threads);
      std::vector<std::int64_t> last(kSlots, 0xffff);  // what an untouched cache holds
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t slot = slots[std::size_t(i)];
        if (slot >= 0 && slot < kSlots) last[std::size_t(slot)] = i;
      }
      for (std::int64_t slot = 0; slot < kSlots; ++slot) {
        ASSERT_EQ(cache.view().as<std::uint16_t>()[slot * 16], last[std::size_t(slot)])
            << slot << " with " << threads << " threads";
      }
    }
  }
}

TEST_P(AppendKvTest, LeavesPaddingBetweenRowsAlone) {
  const NewTokens tokens(KvFormat::kBf16, DataType::kI32, {1, 4});
  const cases::Tensor cache(DataType::kBf16, {2, 3, 1, 576}, {4 * 592, 592, 592, 1});
  run(tokens.op(cache));
  expect_stored(cache, 1, tokens, 0);
  expect_stored(cache, 4, tokens, 1);
  const auto* values = cache.view().as<const std::uint16_t>();
  for (std::int64_t c = 576; c < 592; ++c) EXPECT_EQ(values[592 + c], 0xffff);
}

TEST_P(AppendKvTest, TakesOtherWidthsForPlainFormats) {
  cases::Random random(1);
  const cases::Tensor latent(DataType::kF16, {1, 24});
  const cases::Tensor rope(DataType::kF16, {1, 8});
  fill_random(latent, random);
  fill_random(rope, random);
  const cases::Tensor slots = int_vector({3});
  const cases::Tensor cache(DataType::kF16, {2, 2, 1, 32});
  AppendKv op;
  op.latent = latent.view();
  op.rope = rope.view();
  op.slot_mapping = slots.view();
  op.kv_cache = cache.view();
  run(op);
  EXPECT_EQ(cache.at({1, 1, 0, 23}), latent.at({0, 23}));
  EXPECT_EQ(cache.at({1, 1, 0, 24}), rope.at({0, 0}));
}

/// A part of a tensor's blocks.
TensorView blocks_of(const TensorView& view, std::int64_t first, std::int64_t count) {
  TensorView part = view;
  part.data = view.as<std::byte>() + first * view.strides[0] * std::int64_t(size_of(view.type));
  part.shape[0] = count;
  return part;
}

// The cpu backend stores what is larger than some caches past them.
TEST(LargeKvCache, HasTheBytesOfItsBlocksOneByOne) {
  constexpr std::int64_t kBlocks = 30;
  constexpr std::int64_t kPage = 2039;  // threads take ranges that cross the ends of blocks
  for (const KvFormat format : kFp8Formats) {
    const Fp8Sizes sizes = sizes_of(format);
    const cases::Tensor kv(DataType::kBf16, {kBlocks, kPage, 1, sizes.width});
    cases::Random random(8);
    auto* values = kv.view().as<std::uint16_t>();
    for (std::int64_t i = 0; i < kv.view().size(); ++i) values[i] = std::uint16_t(random.between(0, 0xffff));
    const std::int64_t stride = (kPage * sizes.row + 575) / 576 * 576 + 16;
    const cases::Tensor whole = cases::fp8_cache(format, kBlocks, kPage, stride);
    const cases::Tensor parts = cases::fp8_cache(format, kBlocks, kPage, stride);
    const cases::Tensor whole_back(DataType::kBf16, kv.shape());
    const cases::Tensor parts_back(DataType::kBf16, kv.shape());
    run_on("cpu", quantize(kv, whole), 2);
    run_on("cpu", dequantize(whole, whole_back), 2);
    for (std::int64_t block = 0; block < kBlocks; ++block) {
      QuantizeKv quantize_part;
      quantize_part.kv = blocks_of(kv.view(), block, 1);
      quantize_part.kv_cache = blocks_of(parts.view(), block, 1);
      run_on("cpu", quantize_part);
      DequantizeKv dequantize_part;
      dequantize_part.kv_cache = quantize_part.kv_cache;
      dequantize_part.kv = blocks_of(parts_back.view(), block, 1);
      run_on("cpu", dequantize_part);
    }
    ASSERT_TRUE(std::ranges::equal(whole.memory(), parts.memory())) << name_of(format);
    ASSERT_TRUE(std::ranges::equal(whole_back.memory(), parts_back.memory())) << name_of(format);
  }
}

TEST(LargeKvCache, HoldsWhatWasAppendedInAnyOrder) {
  constexpr std::int64_t kTokens = 60'000;
  for (const KvFormat format : kFormats) {
    std::vector<std::int64_t> slots(kTokens);
    for (std::int64_t i = 0; i < kTokens; ++i) slots[std::size_t(i)] = i * 7919 % kTokens;
    const NewTokens tokens(format, DataType::kI64, slots);
    const std::int64_t width = tokens.latent.shape()[1] + 64;
    const cases::Tensor cache = make_cache(format, kTokens / 100, 100, 1, width);
    run_on("cpu", tokens.op(cache), 2);
    for (std::int64_t i = 0; i < kTokens; i += 599) expect_stored(cache, slots[std::size_t(i)], tokens, i);
  }
}

}  // namespace
}  // namespace flashmla
