// Rows of the FP8 cache formats: byte layout, quantizer, values read back.
#include "kv/row.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "kv/formats.h"

namespace flashmla {
namespace {

template <class Format>
class Row : public testing::Test {
 protected:
  static constexpr std::int64_t kPage = 3;
  static constexpr std::int64_t kTokenStride = Format::kTokenStride > 0 ? Format::kTokenStride : 672;
  static constexpr std::int64_t kBlockStride = kPage * kTokenStride + 48;

  Row() : bytes_(2 * kBlockStride, 0xaa), latent_(Format::kQuantized), rope_(Format::kRope) {
    cache_.data = bytes_.data();
    cache_.blocks = 2;
    cache_.page = kPage;
    cache_.block_stride = kBlockStride;
    cache_.token_stride = kTokenStride;
  }

  void fill(float spread, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal(0, spread);
    for (auto& value : latent_) value = float_to_bf16(normal(random));
    for (auto& value : rope_) value = float_to_bf16(normal(random));
  }

  void store(std::int64_t block, std::int64_t row) {
    store_row<Format>(latent_.data(), rope_.data(), Format::token(cache_, block, row));
  }

  std::vector<std::uint16_t> load(std::int64_t block, std::int64_t row) const {
    std::vector<std::uint16_t> values(Format::kWidth);
    load_row<Format>(Format::token(cache_, block, row), values.data());
    return values;
  }

  std::vector<std::uint8_t> bytes_;
  PagedCache cache_;
  std::vector<std::uint16_t> latent_;
  std::vector<std::uint16_t> rope_;
};

using Formats = testing::Types<Fp8V32, Fp8Model1>;
TYPED_TEST_SUITE(Row, Formats);

TYPED_TEST(Row, ReadsBackWhatItStoredWithinHalfAStep) {
  for (const float spread : {1e-6f, 0.02f, 1.0f, 300.0f, 1e30f}) {
    this->fill(spread, 7);
    this->store(1, 2);
    const auto values = this->load(1, 2);
    for (int i = 0; i < TypeParam::kQuantized; ++i) {
      const int begin = i / TypeParam::kGroup * TypeParam::kGroup;
      const float scale = fp8_group_scale(this->latent_.data() + begin, TypeParam::kGroup);
      const float expected = bf16_to_float(this->latent_[static_cast<std::size_t>(i)]);
      const float got = bf16_to_float(values[static_cast<std::size_t>(i)]);
      // Three mantissa bits, or half a step of the subnormals.
      ASSERT_LE(std::abs(got - expected), std::max(std::abs(expected) / 16, scale * 0x1p-10f));
    }
    EXPECT_EQ(std::memcmp(values.data() + TypeParam::kQuantized, this->rope_.data(), 2 * TypeParam::kRope),
              0);
  }
}

TYPED_TEST(Row, TouchesOnlyTheBytesOfItsToken) {
  this->fill(1.0f, 8);
  this->store(0, 1);
  this->store(1, 0);
  const Fp8Token stored[] = {TypeParam::token(this->cache_, 0, 1), TypeParam::token(this->cache_, 1, 0)};
  std::vector<bool> mine(this->bytes_.size(), false);
  const auto mark = [&](const std::uint8_t* begin, int count) {
    for (int i = 0; i < count; ++i) mine[static_cast<std::size_t>(begin - this->bytes_.data() + i)] = true;
  };
  for (const Fp8Token& token : stored) {
    mark(token.values, TypeParam::kQuantized);
    mark(token.scales, TypeParam::kScaleBytes);
    mark(token.rope, 2 * TypeParam::kRope);
  }
  for (std::size_t i = 0; i < mine.size(); ++i) {
    ASSERT_TRUE(mine[i] || this->bytes_[i] == 0xaa) << i;
  }
}

TYPED_TEST(Row, KeepsValuesThatAreNotFiniteOutOfTheScale) {
  this->fill(1.0f, 9);
  this->store(0, 0);
  const auto clean = this->load(0, 0);
  // The smallest value of its group, so that the scale does not need it.
  std::size_t smallest = 0;
  for (std::size_t i = 0; i < TypeParam::kGroup; ++i) {
    if ((this->latent_[i] & 0x7fff) < (this->latent_[smallest] & 0x7fff)) smallest = i;
  }
  for (const std::uint16_t code : {0x7f80, 0xff80, 0x7fc0}) {
    this->latent_[smallest] = code;
    this->store(0, 0);
    auto values = this->load(0, 0);
    EXPECT_TRUE(std::isnan(bf16_to_float(values[smallest])));
    values[smallest] = clean[smallest];
    EXPECT_EQ(values, clean);
  }
}

TYPED_TEST(Row, ReadsTheE4m3NanCodesAsNan) {
  this->fill(1.0f, 10);
  this->store(0, 0);
  const Fp8Token token = TypeParam::token(this->cache_, 0, 0);
  token.values[3] = 0x7f;
  token.values[TypeParam::kQuantized - 1] = 0xff;
  const auto values = this->load(0, 0);
  EXPECT_TRUE(std::isnan(bf16_to_float(values[3])));
  EXPECT_TRUE(std::isnan(bf16_to_float(values[TypeParam::kQuantized - 1])));
  EXPECT_FALSE(std::isnan(bf16_to_float(values[4])));
}

TEST(Fp8Scale, IsThePowerOfTwoAtOrAboveTheRatio) {
  EXPECT_EQ(fp8_scale_of(0.0f), 0x1p-13f);
  EXPECT_EQ(fp8_scale_of(0.005f), 0x1p-13f);
  EXPECT_EQ(fp8_scale_of(0x1p-13f * 448), 0x1p-13f);
  EXPECT_EQ(fp8_scale_of(std::nextafter(0x1p-13f * 448, 1.0f)), 0x1p-12f);
  EXPECT_EQ(fp8_scale_of(448.0f), 1.0f);
  EXPECT_EQ(fp8_scale_of(450.0f), 2.0f);
  EXPECT_EQ(fp8_scale_of(446.0f), 1.0f);
  EXPECT_EQ(fp8_scale_of(bf16_to_float(0x7f7f)), 0x1p120f);
}

TEST(Fp8V32, ReadsScalesThatAreNoPowerOfTwo) {
  std::vector<std::uint8_t> bytes(Fp8V32::kRowBytes, 0);
  PagedCache cache;
  cache.data = bytes.data();
  cache.page = 1;
  const Fp8Token token = Fp8V32::token(cache, 0, 0);
  bytes[130] = 0x39;  // 1.125
  Fp8V32::write_scale(token.scales, 1, 0.3f);
  std::vector<std::uint16_t> values(Fp8V32::kWidth);
  load_row<Fp8V32>(token, values.data());
  EXPECT_EQ(values[130], float_to_bf16(1.125f * 0.3f));
}

TEST(Fp8V32, HasScalesAtByte512AndRopeAtByte528) {
  std::vector<std::uint8_t> bytes(2000);
  PagedCache cache;
  cache.data = bytes.data();
  cache.page = 2;
  cache.token_stride = 700;
  const Fp8Token token = Fp8V32::token(cache, 0, 1);
  EXPECT_EQ(token.values - bytes.data(), 700);
  EXPECT_EQ(token.scales - token.values, 512);
  EXPECT_EQ(token.rope - token.values, 528);
}

TEST(Fp8Model1, HasAllScalesOfABlockBehindItsRows) {
  std::vector<std::uint8_t> bytes(10000);
  PagedCache cache;
  cache.data = bytes.data();
  cache.page = 5;
  cache.block_stride = 4000;
  cache.token_stride = 584;
  const Fp8Token token = Fp8Model1::token(cache, 1, 3);
  EXPECT_EQ(token.values - bytes.data(), 4000 + 3 * 576);
  EXPECT_EQ(token.rope - token.values, 448);
  EXPECT_EQ(token.scales - bytes.data(), 4000 + 5 * 576 + 3 * 8);
}

TEST(Fp8Model1, WritesTheUnusedByteAsZero) {
  std::vector<std::uint8_t> bytes(584, 0xff);
  PagedCache cache;
  cache.data = bytes.data();
  cache.page = 1;
  const std::vector<std::uint16_t> zeros(512, 0);
  store_row<Fp8Model1>(zeros.data(), zeros.data(), Fp8Model1::token(cache, 0, 0));
  EXPECT_EQ(bytes[583], 0);
  EXPECT_EQ(bytes[582], 127 - 13);
}

TEST(KvFormat, IsKnownByNameAndByShape) {
  for (const KvFormat format :
       {KvFormat::kBf16, KvFormat::kF16, KvFormat::kE4m3, KvFormat::kFp8V32, KvFormat::kFp8Model1}) {
    EXPECT_EQ(kv_format_named(name_of(format)), format);
  }
  EXPECT_EQ(kv_format_named("fp8"), std::nullopt);
  EXPECT_EQ(kv_row_size(KvFormat::kFp8V32, 576), 656);
  EXPECT_EQ(kv_row_size(KvFormat::kFp8V32, 512), std::nullopt);
  EXPECT_EQ(kv_row_size(KvFormat::kFp8Model1, 512), 584);
  EXPECT_EQ(kv_row_size(KvFormat::kF16, 100), 100);
  EXPECT_EQ(kv_row_size(KvFormat::kE4m3, 576), 576);
  EXPECT_EQ(kv_row_width(KvFormat::kFp8Model1, 584), 512);
  EXPECT_EQ(kv_row_width(KvFormat::kBf16, 40), 40);
  EXPECT_EQ(kv_row_width(KvFormat::kE4m3, 656), 656);

  TensorView cache;
  cache.type = DataType::kU8;
  cache.ndim = 4;
  cache.shape = {1, 1, 1, 656};
  EXPECT_EQ(kv_format_of(cache), KvFormat::kFp8V32);
  cache.shape[3] = 584;
  EXPECT_EQ(kv_format_of(cache), KvFormat::kFp8Model1);
  cache.shape[3] = 585;
  EXPECT_EQ(kv_format_of(cache), std::nullopt);
  cache.type = DataType::kF16;
  EXPECT_EQ(kv_format_of(cache), KvFormat::kF16);
  cache.type = DataType::kF32;
  EXPECT_EQ(kv_format_of(cache), std::nullopt);
  EXPECT_EQ(kv_format_of(TensorView{}), std::nullopt);
}

}  // namespace
}  // namespace flashmla
