// A dense_decode problem built by a test: what no query may see is poison.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "backends.h"
#include "cache.h"

namespace flashmla {

struct DenseSizes {
  std::vector<std::int64_t> seqlens = {10};
  std::int64_t s_q = 1;
  std::int64_t h_q = 4;
  std::int64_t h_kv = 1;
  std::int64_t d_qk = 64;
  std::int64_t d_v = 32;
  std::int64_t page = 4;
  DataType type = DataType::kBf16;
  /// The cache holds e4m3 codes.
  bool e4m3 = false;
  /// Bits of every 16-bit word of the cache that is not written.
  std::uint16_t poison = 0xffff;

  std::int64_t batch() const { return static_cast<std::int64_t>(seqlens.size()); }
  std::int64_t blocks_of(std::int64_t b) const {
    return (seqlens[static_cast<std::size_t>(b)] + page - 1) / page;
  }
  /// Two more than the longest sequence needs.
  std::int64_t max_blocks() const {
    std::int64_t most = 0;
    for (std::int64_t b = 0; b < batch(); ++b) most = std::max(most, blocks_of(b));
    return most + 2;
  }
};

/// Blocks are handed out from the last to the first with one unlisted block between sequences; unused
/// entries of `block_table` are garbage.
class DenseProblem {
 public:
  explicit DenseProblem(const DenseSizes& given, std::uint64_t seed = 1) : sizes(given), random(seed) {
    const KvFormat format = sizes.e4m3                     ? KvFormat::kE4m3
                            : sizes.type == DataType::kF16 ? KvFormat::kF16
                                                           : KvFormat::kBf16;
    const std::int64_t batch = sizes.batch();
    std::int64_t blocks = batch + 1;
    for (std::int64_t b = 0; b < batch; ++b) blocks += sizes.blocks_of(b);
    q = cases::Tensor(sizes.type, {batch, sizes.s_q, sizes.h_q, sizes.d_qk});
    kv_cache = make_cache(format, blocks, sizes.page, sizes.h_kv, sizes.d_qk);
    block_table = cases::Tensor(DataType::kI32, {batch, sizes.max_blocks()});
    cache_seqlens = cases::Tensor(DataType::kI32, {batch});
    out = cases::Tensor(sizes.type, {batch, sizes.s_q, sizes.h_q, sizes.d_v});
    lse = cases::Tensor(DataType::kF32, {batch, sizes.h_q, sizes.s_q});
    fill_random(q, random);
    fill_words(kv_cache, sizes.poison);
    std::int64_t block = blocks - 1;
    for (std::int64_t b = 0; b < batch; ++b, --block) block = add_sequence(b, block);
  }

  /// Place of position `t` of sequence `b`, as a token of the cache.
  std::int64_t token(std::int64_t b, std::int64_t t) const {
    const auto block = static_cast<std::int64_t>(block_table.at({b, t / sizes.page}));
    return block * sizes.page + t % sizes.page;
  }

  DenseDecode op() const {
    DenseDecode result;
    result.q = q.view();
    result.kv_cache = kv_cache.view();
    result.block_table = block_table.view();
    result.cache_seqlens = cache_seqlens.view();
    result.descale_q = descale_q.view();
    result.descale_k = descale_k.view();
    result.softmax_scale = softmax_scale;
    result.causal = causal;
    result.split_size = split_size;
    result.out = out.view();
    result.lse = lse.view();
    return result;
  }

  double scale() const { return softmax_scale ? *softmax_scale : 1 / std::sqrt(double(sizes.d_qk)); }

  /// A factor of a sequence.
  static double factor(const cases::Tensor& factors, std::int64_t b) {
    return factors.view().given() ? factors.at({b}) : 1;
  }

  Attended expected(std::int64_t b, std::int64_t i, std::int64_t head, const Positions& seen) const {
    std::vector<Row> rows;
    for (const std::int64_t t : seen) {
      const std::int64_t at = token(b, t);
      rows.push_back(
          row_at(kv_cache.view(), {at / sizes.page, at % sizes.page, head / (sizes.h_q / sizes.h_kv)}));
      if (!sizes.e4m3) continue;
      for (double& value : rows.back()) value = e4m3_value(int(value)) * factor(descale_k, b);
    }
    return attend(row_at(q.view(), {b, i, head}), rows, rows, sizes.d_v, scale() * factor(descale_q, b));
  }

  /// Expects that query `i` of sequence `b` attended over the positions `seen(b, i)`.
  void expect_seen(const std::function<Positions(std::int64_t, std::int64_t)>& seen) const {
    cases::Tensor expected_out(DataType::kF32, out.shape());
    cases::Tensor expected_lse(DataType::kF32, lse.shape());
    for (std::int64_t b = 0; b < sizes.batch(); ++b) {
      for (std::int64_t i = 0; i < sizes.s_q; ++i) {
        for (std::int64_t head = 0; head < sizes.h_q; ++head) {
          const Attended row = expected(b, i, head, seen(b, i));
          set_row(expected_out.view(), {b, i, head}, row.out);
          expected_lse.set({b, head, i}, row.lse);
        }
      }
    }
    expect_close("dense_decode", "out", out, expected_out);
    expect_close("dense_decode", "lse", lse, expected_lse);
  }

  /// Expects that every query saw its whole sequence.
  void expect_all_seen() const {
    expect_seen([this](std::int64_t b, std::int64_t) { return first(sizes.seqlens[std::size_t(b)]); });
  }

  DenseSizes sizes;
  cases::Random random;
  cases::Tensor q, kv_cache, block_table, cache_seqlens, descale_q, descale_k, out, lse;
  std::optional<float> softmax_scale;
  bool causal = false;
  std::int64_t split_size = 0;

 private:
  std::int64_t add_sequence(std::int64_t b, std::int64_t block) {
    const std::int64_t length = sizes.seqlens[static_cast<std::size_t>(b)];
    cache_seqlens.set({b}, static_cast<double>(length));
    for (std::int64_t i = 0; i < sizes.max_blocks(); ++i) {
      const double garbage = i % 2 == 0 ? 2147483647.0 : -2147483648.0;
      block_table.set({b, i}, i < sizes.blocks_of(b) ? static_cast<double>(block--) : garbage);
    }
    for (std::int64_t t = 0; t < length; ++t) write_token(token(b, t));
    return block;
  }

  void write_token(std::int64_t token) {
    if (!sizes.e4m3) return write_random_token(kv_cache.view(), token, random);
    for (std::int64_t head = 0; head < sizes.h_kv; ++head) {
      Row codes = random_row(sizes.d_qk, random);
      for (double& code : codes) code = nearest_e4m3(code);
      set_row(kv_cache.view(), {token / sizes.page, token % sizes.page, head}, codes);
    }
  }
};

}  // namespace flashmla
