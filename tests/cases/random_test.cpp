// Random cases: reproducible, within what the library allows, and NaN wherever nothing may be read.
#include "cases/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "expect_error.h"
#include "kv/float_types.h"

namespace flashmla::cases {
namespace {

bool same_bytes(const Case& a, const Case& b) {
  if (a.metadata != b.metadata || a.tensors.size() != b.tensors.size()) return false;
  return std::ranges::all_of(a.tensors, [&](const auto& item) {
    const auto other = b.tensors.find(item.first);
    return other != b.tensors.end() && std::ranges::equal(item.second.memory(), other->second.memory());
  });
}

/// What the elements of the rows `tensor[index]` are.
enum class Row { kNan, kFinite, kMixed };

Row row_at(const Tensor& tensor, const std::vector<std::int64_t>& index) {
  const TensorView& view = tensor.view();
  bool any_nan = false;
  bool any_finite = false;
  const std::vector<std::int64_t> rest(view.shape.begin() + static_cast<std::ptrdiff_t>(index.size()),
                                       view.shape.begin() + view.ndim);
  for_each_index(rest, [&](std::span<const std::int64_t> inner) {
    Index full = index;
    full.insert(full.end(), inner.begin(), inner.end());
    const bool nan = std::isnan(element(view, full));
    (nan ? any_nan : any_finite) = true;
  });
  return any_nan && any_finite ? Row::kMixed : any_nan ? Row::kNan : Row::kFinite;
}

/// Whether the 576 bytes of values of a token, or all 656, are 0xff.
bool fp8_token_is_nan(const Tensor& cache, std::int64_t token) {
  const TensorView& view = cache.view();
  const std::int64_t bytes = view.shape[3] == 584 ? 576 : 656;
  const std::int64_t begin = token / view.shape[1] * view.strides[0] + token % view.shape[1] * bytes;
  const auto memory =
      cache.memory().subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(bytes));
  return std::ranges::all_of(memory, [](std::byte byte) { return byte == std::byte{0xff}; });
}

TEST(Random, DrawsNearlyNormalNumbers) {
  Random random(1);
  constexpr int kCount = 100'000;
  double sum = 0;
  double squares = 0;
  double largest = 0;
  for (int i = 0; i < kCount; ++i) {
    const double value = random.normal();
    sum += value;
    squares += value * value;
    largest = std::max(largest, std::abs(value));
  }
  EXPECT_NEAR(sum / kCount, 0, 0.02);
  EXPECT_NEAR(squares / kCount, 1, 0.02);
  EXPECT_GT(largest, 2.5);
  EXPECT_LT(largest, 3.5);
}

TEST(Random, DrawsEveryNumberOfARange) {
  Random random(1);
  std::set<std::int64_t> drawn;
  for (int i = 0; i < 200; ++i) drawn.insert(random.between(-2, 3));
  EXPECT_EQ(drawn, (std::set<std::int64_t>{-2, -1, 0, 1, 2, 3}));
}

TEST(Random, IsTheSameOnEveryMachine) {
  Random random(42);
  // The first outputs of splitmix64 from this state, as its authors' program prints them.
  EXPECT_EQ(random.next(), 13679457532755275413u);
  EXPECT_EQ(random.next(), 2949826092126892291u);
}

TEST(RandomCase, SameSeedSameBytes) {
  for (const std::string& operation : operation_names()) {
    for (std::uint64_t seed = 1; seed <= 10; ++seed) {
      Random a(seed);
      Random b(seed);
      EXPECT_TRUE(same_bytes(random_case(operation, a), random_case(operation, b)))
          << operation << " " << seed;
      Random other(seed + 1000);
      EXPECT_FALSE(same_bytes(random_case(operation, a), random_case(operation, other)))
          << operation << " " << seed;
    }
  }
}

TEST(RandomCase, TheReferenceTakesEveryOneAndReadsNoNan) {
  for (const std::string& operation : operation_names()) {
    if (operation == "quantize_kv" || operation == "dequantize_kv" || operation == "append_kv") continue;
    Random random(7);
    for (int i = 0; i < 40; ++i) {
      const Case what = random_case(operation, random);
      for (const Result& result : run_case(what, {.threads = 1, .backend = "reference"})) {
        std::int64_t nans = 0;
        for_each_index(result.got.view(),
                       [&](auto index) { nans += std::isnan(element(result.got.view(), index)); });
        EXPECT_EQ(nans, 0) << what.source << " " << result.output;
      }
    }
  }
}

TEST(RandomCase, RefusesAnUnknownOperation) {
  Random random(1);
  expect_error("no random cases for operation 'guess'", [&] { random_case("guess", random); });
}

TEST(RandomDenseDecode, OnlyVisibleTokensAreNotNan) {
  DenseDecodeKnobs knobs{.batch = 4, .h_q = 2, .h_kv = 2, .d_qk = 16, .d_v = 8, .page = 5};
  knobs.seqlens = {0, 12, 5, 31};
  for (const bool shared : {false, true}) {
    for (const bool gaps : {false, true}) {
      knobs.shared_pages = shared;
      knobs.gaps = gaps;
      const Case what = make_dense_decode(knobs, 3);
      const Tensor& cache = what.tensors.at("kv_cache");
      const Tensor& table = what.tensors.at("block_table");
      std::set<std::pair<std::int64_t, std::int64_t>> visible;
      for (std::int64_t b = 0; b < knobs.batch; ++b) {
        for (std::int64_t t = 0; t < knobs.seqlens[static_cast<std::size_t>(b)]; ++t) {
          visible.emplace(static_cast<std::int64_t>(table.at({b, t / knobs.page})), t % knobs.page);
        }
      }
      for (std::int64_t block = 0; block < cache.view().shape[0]; ++block) {
        for (std::int64_t row = 0; row < knobs.page; ++row) {
          EXPECT_EQ(row_at(cache, {block, row}), visible.contains({block, row}) ? Row::kFinite : Row::kNan);
        }
      }
      // 12, 5 and 31 tokens in pages of 5 are 11 blocks; one more is in no table.
      EXPECT_EQ(cache.view().shape[0], 12);
    }
  }
}

TEST(RandomDenseDecode, OnlyVisibleCodesAreNotNan) {
  DenseDecodeKnobs knobs{.batch = 2, .h_q = 2, .d_qk = 16, .d_v = 8, .page = 5, .seqlens = {12, 3}};
  knobs.e4m3 = true;
  const Case what = make_dense_decode(knobs, 3);
  std::int64_t nans = 0;
  const TensorView& cache = what.tensors.at("kv_cache").view();
  for_each_index(cache, [&](auto index) { nans += element(cache, index) == 0xff; });
  // 15 of the tokens of 3, 1 and one unlisted block.
  EXPECT_EQ(nans, 10 * 16);
}

TEST(RandomDenseDecode, FactorsUndoThatCodesAndQueriesWereDivided) {
  DenseDecodeKnobs knobs{.batch = 40, .h_q = 2, .d_qk = 512, .page = 5, .seqlens = {5}};
  knobs.e4m3 = true;
  const Case what = make_dense_decode(knobs, 3);
  const auto deviation = [&](const char* name, std::int64_t at, bool codes) {
    const TensorView& tensor = what.tensors.at(name).view();
    double squares = 0;
    for (std::int64_t i = 0; i < 512; ++i) {
      const double value = element(tensor, Index{at, 0, 0, i});
      squares += std::pow(codes ? e4m3_to_float(static_cast<std::uint8_t>(value)) : value, 2);
    }
    return std::sqrt(squares / 512);
  };
  double least = 1e9;
  double most = 0;
  for (std::int64_t b = 0; b < 40; ++b) {
    const double descale_q = what.tensors.at("descale_q").at({b});
    const double descale_k = what.tensors.at("descale_k").at({b});
    const auto block = static_cast<std::int64_t>(what.tensors.at("block_table").at({b, 0}));
    EXPECT_NEAR(descale_q * deviation("q", b, false), 1, 0.15);
    EXPECT_NEAR(descale_k * deviation("kv_cache", block, true), 1.0 / 3, 0.05);
    EXPECT_NE(std::log2(descale_k), std::round(std::log2(descale_k)));
    least = std::min({least, descale_q, descale_k});
    most = std::max({most, descale_q, descale_k});
  }
  EXPECT_GE(least, 0x1p-6);
  EXPECT_LT(least, 0x1p-4);
  EXPECT_GT(most, 0x1p4);
  EXPECT_LE(most, 0x1p6);
  knobs.descale_q = knobs.descale_k = false;
  const Case without = make_dense_decode(knobs, 3);
  EXPECT_FALSE(without.tensors.contains("descale_q") || without.tensors.contains("descale_k"));
}

TEST(RandomDenseDecode, BlocksAreShuffled) {
  const Case what =
      make_dense_decode({.batch = 1, .h_q = 1, .d_qk = 8, .d_v = 8, .page = 1, .seqlens = {50}}, 1);
  std::vector<double> blocks;
  for (std::int64_t i = 0; i < 50; ++i) blocks.push_back(what.tensors.at("block_table").at({0, i}));
  EXPECT_FALSE(std::ranges::is_sorted(blocks));
  EXPECT_EQ(std::set<double>(blocks.begin(), blocks.end()).size(), 50u);
}

TEST(RandomDenseDecode, UnusedTableEntriesAreGarbage) {
  std::int64_t unused = 0;
  std::int64_t outside = 0;
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    const Case what = make_dense_decode({.h_q = 1, .d_qk = 8, .d_v = 8, .page = 4, .seqlens = {3, 40}}, seed);
    const Tensor& table = what.tensors.at("block_table");
    for (std::int64_t i = 1; i < table.view().shape[1]; ++i) {
      ++unused;
      const double entry = table.at({0, i});
      outside += entry < 0 || entry >= static_cast<double>(what.tensors.at("kv_cache").view().shape[0]);
    }
  }
  EXPECT_GT(outside, unused * 9 / 10);
}

TEST(RandomDenseDecode, SharesPagesAndInvalidatesBlocksOnlyWhenAsked) {
  DenseDecodeKnobs knobs{.batch = 8, .h_q = 1, .d_qk = 8, .d_v = 8, .page = 4, .seqlens = {40}};
  const auto used_blocks = [&](std::uint64_t seed) {
    const Case what = make_dense_decode(knobs, seed);
    std::vector<double> blocks;
    for (std::int64_t b = 0; b < 8; ++b) {
      for (std::int64_t i = 0; i < 10; ++i) blocks.push_back(what.tensors.at("block_table").at({b, i}));
    }
    return blocks;
  };
  const auto distinct = [](const std::vector<double>& blocks) {
    return std::set<double>(blocks.begin(), blocks.end()).size();
  };
  const auto out_of_range = [](double block) { return block < 0 || block > 80; };
  EXPECT_EQ(distinct(used_blocks(1)), 80u);
  EXPECT_TRUE(std::ranges::none_of(used_blocks(1), out_of_range));
  knobs.shared_pages = true;
  EXPECT_LT(distinct(used_blocks(1)), 80u);
  knobs.shared_pages = false;
  knobs.invalid_blocks = true;
  EXPECT_TRUE(std::ranges::any_of(used_blocks(1), out_of_range));
}

TEST(RandomDenseDecode, GapsAreNan) {
  DenseDecodeKnobs knobs{.batch = 2, .h_q = 2, .d_qk = 16, .d_v = 8, .page = 5, .seqlens = {10}};
  knobs.gaps = true;
  const Case what = make_dense_decode(knobs, 1);
  for (const char* name : {"q", "kv_cache"}) {
    const Tensor& tensor = what.tensors.at(name);
    Tensor mask = tensor;  // 0 where an element is, 0xff in the gaps
    for_each_index(mask.view(), [&](auto index) { set_element(mask.view(), index, 0); });
    std::int64_t gap_bytes = 0;
    for (std::size_t i = 0; i < mask.memory().size(); ++i) {
      if (mask.memory()[i] == std::byte{0}) continue;
      ++gap_bytes;
      ASSERT_EQ(tensor.memory()[i], std::byte{0xff}) << name;
    }
    EXPECT_GT(gap_bytes, 0) << name;
  }
}

TEST(RandomSparseDecode, OnlyListedTokensAreNotNan) {
  for (const KvFormat format : {KvFormat::kFp8V32, KvFormat::kFp8Model1, KvFormat::kBf16, KvFormat::kF16}) {
    for (const bool gaps : {false, true}) {
      SparseDecodeKnobs knobs;
      knobs.h_q = 1;
      knobs.s_q = 2;
      knobs.format = format;
      knobs.page = 3;
      knobs.blocks = 20;
      knobs.topk = 20;
      knobs.topk_length = {4, 11};
      knobs.extra_topk = 7;
      knobs.extra_blocks = 30;
      knobs.invalid = 0.2;
      knobs.duplicates = 0.2;
      knobs.gaps = gaps;
      const Case what = make_sparse_decode(knobs, 5);
      for (const std::string prefix : {"", "extra_"}) {
        const Tensor& cache = what.tensors.at(prefix + "kv_cache");
        const Tensor& indices = what.tensors.at(prefix + "indices");
        const std::int64_t page = cache.view().shape[1];
        std::set<std::int64_t> listed;
        for_each_index(indices.view(), [&](std::span<const std::int64_t> at) {
          const bool counts = !prefix.empty() || at[2] < knobs.topk_length[static_cast<std::size_t>(at[0])];
          if (counts) listed.insert(static_cast<std::int64_t>(element(indices.view(), at)));
        });
        for (std::int64_t token = 0; token < cache.view().shape[0] * page; ++token) {
          const bool nan = cache.type() == DataType::kU8
                               ? fp8_token_is_nan(cache, token)
                               : row_at(cache, {token / page, token % page}) == Row::kNan;
          EXPECT_EQ(nan, !listed.contains(token)) << name_of(format) << " " << prefix << token;
        }
      }
    }
  }
}

TEST(RandomSparseDecode, HasInvalidIndicesDuplicatesAndLonelyQueriesAsAsked) {
  SparseDecodeKnobs knobs;
  knobs.batch = 20;
  knobs.h_q = 1;
  knobs.topk = 100;
  const auto counts = [&] {
    const Case what = make_sparse_decode(knobs, 1);
    const Tensor& indices = what.tensors.at("indices");
    std::int64_t invalid = 0;
    std::int64_t repeated = 0;
    std::int64_t lonely = 0;
    for (std::int64_t b = 0; b < knobs.batch; ++b) {
      std::set<double> seen;
      std::int64_t valid = 0;
      for (std::int64_t k = 0; k < knobs.topk; ++k) {
        const double index = indices.at({b, 0, k});
        const bool outside = index < 0 || index >= static_cast<double>(knobs.blocks * knobs.page);
        invalid += outside;
        valid += !outside;
        repeated += !outside && !seen.insert(index).second;
      }
      lonely += valid == 0;
    }
    return std::vector{invalid, repeated, lonely};
  };
  EXPECT_EQ(counts(), (std::vector<std::int64_t>{0, 0, 0}));
  knobs.invalid = 0.5;
  EXPECT_NEAR(static_cast<double>(counts()[0]), 1000, 150);
  knobs.invalid = 0;
  knobs.duplicates = 0.5;
  EXPECT_NEAR(static_cast<double>(counts()[1]), 1000, 150);
  knobs.lonely = 0.5;
  EXPECT_NEAR(static_cast<double>(counts()[2]), 10, 6);
}

TEST(RandomSparseDecode, RowsThatRunOutBecomePadding) {
  SparseDecodeKnobs knobs;
  knobs.batch = 1;
  knobs.h_q = 1;
  knobs.page = 4;
  knobs.blocks = 2;
  knobs.topk = 12;
  const Case what = make_sparse_decode(knobs, 1);
  const Tensor& indices = what.tensors.at("indices");
  for (std::int64_t k = 0; k < 12; ++k) EXPECT_EQ(indices.at({0, 0, k}) == -1, k >= 8) << k;
}

TEST(RandomSparseDecode, SinksAreInfiniteOnlyWhenAsked) {
  SparseDecodeKnobs knobs;
  const auto infinite = [&] {
    const Case what = make_sparse_decode(knobs, 1);
    std::pair<int, int> count{0, 0};
    for (std::int64_t h = 0; h < knobs.h_q; ++h) {
      const double sink = what.tensors.at("attn_sink").at({h});
      EXPECT_FALSE(std::isnan(sink));
      if (std::isinf(sink)) ++(sink > 0 ? count.first : count.second);
    }
    return count;
  };
  EXPECT_FALSE(make_sparse_decode(knobs, 1).tensors.contains("attn_sink"));
  knobs.sinks = Sinks::kFinite;
  EXPECT_EQ(infinite(), (std::pair{0, 0}));
  knobs.sinks = Sinks::kSomeInfinite;
  EXPECT_GT(infinite().first, 3);
  EXPECT_GT(infinite().second, 3);
}

TEST(RandomSparsePrefill, OnlyListedRowsOfEachHeadAreNotNan) {
  SparsePrefillKnobs knobs;
  knobs.s_kv = 40;
  knobs.h_q = 4;
  knobs.h_kv = 2;
  knobs.topk = 6;
  knobs.topk_length = {3, 0, 6};
  const Case what = make_sparse_prefill(knobs, 1);
  std::set<std::pair<std::int64_t, std::int64_t>> listed;
  for_each_index(std::vector{knobs.s_q, knobs.h_kv, knobs.topk}, [&](std::span<const std::int64_t> at) {
    if (at[2] >= knobs.topk_length[static_cast<std::size_t>(at[0] % 3)]) return;
    listed.emplace(static_cast<std::int64_t>(what.tensors.at("indices").at({at[0], at[1], at[2]})), at[1]);
  });
  for (std::int64_t row = 0; row < knobs.s_kv; ++row) {
    for (std::int64_t head = 0; head < knobs.h_kv; ++head) {
      EXPECT_EQ(row_at(what.tensors.at("kv"), {row, head}),
                listed.contains({row, head}) ? Row::kFinite : Row::kNan);
    }
  }
}

TEST(RandomMha, RowsOfNoSequenceAreNan) {
  MhaKnobs knobs;
  knobs.seqlens_q = {2, 0, 1};
  knobs.seqlens_k = {3, 2, 0};
  knobs.uncovered_rows = 2;
  const Case what = make_mha(knobs, 1);
  const auto expect_rows = [&](const char* name, const std::vector<bool>& finite) {
    const Tensor& tensor = what.tensors.at(name);
    ASSERT_EQ(tensor.view().shape[0], static_cast<std::int64_t>(finite.size())) << name;
    for (std::size_t i = 0; i < finite.size(); ++i) {
      EXPECT_EQ(row_at(tensor, {static_cast<std::int64_t>(i)}), finite[i] ? Row::kFinite : Row::kNan)
          << name << i;
    }
  };
  for (const char* name : {"q", "d_out"}) expect_rows(name, {false, false, true, true, true, false, false});
  // The second sequence has keys, but no query that reads them.
  for (const char* name : {"k", "v"}) {
    expect_rows(name, {false, false, true, true, true, false, false, false, false});
  }
}

TEST(RandomMha, WildBoundsMeanTheSame) {
  MhaKnobs knobs;
  knobs.seqlens_q = {0, 3, 0, 2};
  knobs.seqlens_k = {2, 4, 0, 3};
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    knobs.wild_bounds = true;
    const Case what = make_mha_forward(knobs, seed);
    for (const auto& [name, lengths] :
         {std::pair{"cu_seqlens_q", knobs.seqlens_q}, {"cu_seqlens_k", knobs.seqlens_k}}) {
      const std::int64_t total =
          what.tensors.at(name == std::string("cu_seqlens_q") ? "q" : "k").view().shape[0];
      std::int64_t before = 0;
      for (std::int64_t b = 0; b < 4; ++b) {
        const auto stored = static_cast<std::int64_t>(what.tensors.at(name).at({b + 1}));
        const std::int64_t bound = std::max(before, std::clamp<std::int64_t>(stored, 0, total));
        EXPECT_EQ(bound - before, lengths[static_cast<std::size_t>(b)]) << name << " seed " << seed;
        before = bound;
      }
    }
  }
}

TEST(RandomMergeStates, StatesThatSawNothingAreNan) {
  MergeStatesKnobs knobs;
  knobs.lonely = 0.3;
  const Case what = make_merge_states(knobs, 1);
  std::int64_t lonely = 0;
  for_each_index(std::vector{knobs.batch, knobs.s_q, knobs.h_q}, [&](std::span<const std::int64_t> row) {
    const bool infinite = std::isinf(what.tensors.at("lses.1").at({row[0], row[2], row[1]}));
    EXPECT_EQ(row_at(what.tensors.at("outs.1"), {row[0], row[1], row[2]}),
              infinite ? Row::kNan : Row::kFinite);
    lonely += infinite;
  });
  EXPECT_GT(lonely, 3);
}

TEST(RandomAppendKv, TokensThatAreSkippedAreNan) {
  AppendKvKnobs knobs;
  knobs.tokens = 40;
  knobs.invalid = 0.5;
  const Case what = make_append_kv(knobs, 1);
  std::int64_t skipped = 0;
  for (std::int64_t i = 0; i < knobs.tokens; ++i) {
    const double slot = what.tensors.at("slot_mapping").at({i});
    const bool valid = slot >= 0 && slot < static_cast<double>(knobs.blocks * knobs.page);
    EXPECT_EQ(row_at(what.tensors.at("latent"), {i}), valid ? Row::kFinite : Row::kNan);
    EXPECT_EQ(row_at(what.tensors.at("rope"), {i}), valid ? Row::kFinite : Row::kNan);
    skipped += !valid;
  }
  EXPECT_GT(skipped, 5);
  EXPECT_LT(skipped, 35);
}

TEST(RandomQuantize, SpecialValuesOnlyWhenAsked) {
  QuantizeKnobs knobs;
  const auto not_finite = [&] {
    const Case what = make_quantize_kv(knobs, 1);
    const Tensor& kv = what.tensors.at("kv");
    std::int64_t count = 0;
    for_each_index(kv.view(), [&](auto index) { count += !std::isfinite(element(kv.view(), index)); });
    return count;
  };
  EXPECT_EQ(not_finite(), 0);
  knobs.special_values = true;
  EXPECT_GT(not_finite(), 10);
}

}  // namespace
}  // namespace flashmla::cases
