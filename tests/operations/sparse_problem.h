// A sparse_decode problem built by a test: cache rows that no test selects are poison.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "backends.h"
#include "cache.h"

namespace flashmla {

struct SparseSizes {
  std::int64_t batch = 1;
  std::int64_t s_q = 1;
  std::int64_t h_q = 4;
  std::int64_t h_kv = 1;
  KvFormat format = KvFormat::kBf16;
  std::int64_t d_qk = 64;  ///< replaced for FP8 formats
  std::int64_t d_v = 32;   ///< replaced for FP8 formats
  std::int64_t page = 4;
  std::int64_t blocks = 6;
  std::int64_t topk = 8;
  std::int64_t extra_topk = 0;  ///< 0: no second cache
  std::int64_t extra_page = 3;
  std::int64_t extra_blocks = 5;

  std::int64_t tokens() const { return blocks * page; }
  std::int64_t extra_tokens() const { return extra_blocks * extra_page; }
};

/// What a query sees: tokens of the cache and of the second cache.
struct Selection {
  Positions main;
  Positions extra;
};

/// Every index is -1 until `select` sets it.
class SparseProblem {
 public:
  explicit SparseProblem(const SparseSizes& given, std::uint64_t seed = 1) : sizes(given), random(seed) {
    if (is_fp8(sizes.format)) {
      sizes.d_qk = sizes.format == KvFormat::kFp8V32 ? 576 : 512;
      sizes.d_v = 512;
    }
    const DataType type = sizes.format == KvFormat::kF16 ? DataType::kF16 : DataType::kBf16;
    q = cases::Tensor(type, {sizes.batch, sizes.s_q, sizes.h_q, sizes.d_qk});
    kv_cache = make_cache(sizes.format, sizes.blocks, sizes.page, sizes.h_kv, sizes.d_qk);
    indices = cases::Tensor(DataType::kI32, {sizes.batch, sizes.s_q, sizes.topk});
    if (sizes.extra_topk > 0) {
      extra_kv_cache = make_cache(sizes.format, sizes.extra_blocks, sizes.extra_page, sizes.h_kv, sizes.d_qk);
      extra_indices = cases::Tensor(DataType::kI32, {sizes.batch, sizes.s_q, sizes.extra_topk});
    }
    out = cases::Tensor(type, {sizes.batch, sizes.s_q, sizes.h_q, sizes.d_v});
    lse = cases::Tensor(DataType::kF32, {sizes.batch, sizes.h_q, sizes.s_q});
    fill_random(q, random);
  }

  /// Sets the leftmost indices of a query, without touching the cache.
  void select(std::int64_t b, std::int64_t i, const Positions& values) {
    for (std::size_t k = 0; k < values.size(); ++k) {
      indices.set({b, i, static_cast<std::int64_t>(k)}, static_cast<double>(values[k]));
    }
  }

  void select_extra(std::int64_t b, std::int64_t i, const Positions& values) {
    for (std::size_t k = 0; k < values.size(); ++k) {
      extra_indices.set({b, i, static_cast<std::int64_t>(k)}, static_cast<double>(values[k]));
    }
  }

  /// Gives these tokens random rows.
  void write(const Positions& tokens) {
    for (const std::int64_t token : tokens) write_random_token(kv_cache.view(), token, random);
  }

  void write_extra(const Positions& tokens) {
    for (const std::int64_t token : tokens) write_random_token(extra_kv_cache.view(), token, random);
  }

  /// Lets every query select `topk` (and `extra_topk`) random tokens and writes them.
  void select_at_random() {
    for (std::int64_t b = 0; b < sizes.batch; ++b) {
      for (std::int64_t i = 0; i < sizes.s_q; ++i) {
        select(b, i, random_tokens(sizes.topk, sizes.tokens()));
        if (sizes.extra_topk > 0) select_extra(b, i, random_tokens(sizes.extra_topk, sizes.extra_tokens()));
      }
    }
    write(first(sizes.tokens()));
    if (sizes.extra_topk > 0) write_extra(first(sizes.extra_tokens()));
  }

  /// The first `count` and `extra_count` indices of a query.
  Selection selected(std::int64_t b, std::int64_t i, std::int64_t count, std::int64_t extra_count = 0) const {
    Selection result;
    for (std::int64_t k = 0; k < count; ++k) result.main.push_back(std::int64_t(indices.at({b, i, k})));
    for (std::int64_t k = 0; k < extra_count; ++k) {
      result.extra.push_back(std::int64_t(extra_indices.at({b, i, k})));
    }
    return result;
  }

  SparseDecode op() const {
    SparseDecode result;
    result.q = q.view();
    result.kv_cache = kv_cache.view();
    result.indices = indices.view();
    result.topk_length = topk_length.view();
    result.attn_sink = attn_sink.view();
    result.extra_kv_cache = extra_kv_cache.view();
    result.extra_indices = extra_indices.view();
    result.extra_topk_length = extra_topk_length.view();
    result.softmax_scale = softmax_scale;
    result.split_size = split_size;
    result.out = out.view();
    result.lse = lse.view();
    return result;
  }

  double scale() const { return softmax_scale ? *softmax_scale : 1 / std::sqrt(double(sizes.d_qk)); }

  Attended expected(std::int64_t b, std::int64_t i, std::int64_t head, const Selection& seen) const {
    const std::int64_t kv_head = head / (sizes.h_q / sizes.h_kv);
    std::vector<Row> rows = token_rows(kv_cache.view(), seen.main, kv_head);
    const std::vector<Row> extra = token_rows(extra_kv_cache.view(), seen.extra, kv_head);
    rows.insert(rows.end(), extra.begin(), extra.end());
    const double sink = attn_sink.view().given() ? attn_sink.at({head}) : -kInfinity;
    return attend(row_at(q.view(), {b, i, head}), rows, rows, sizes.d_v, scale(), sink);
  }

  /// Expects that query `i` of sequence `b` attended over `seen(b, i)`.
  void expect_seen(const std::function<Selection(std::int64_t, std::int64_t)>& seen) const {
    cases::Tensor expected_out(DataType::kF32, out.shape());
    cases::Tensor expected_lse(DataType::kF32, lse.shape());
    for (std::int64_t b = 0; b < sizes.batch; ++b) {
      for (std::int64_t i = 0; i < sizes.s_q; ++i) {
        for (std::int64_t head = 0; head < sizes.h_q; ++head) {
          const Attended row = expected(b, i, head, seen(b, i));
          set_row(expected_out.view(), {b, i, head}, row.out);
          expected_lse.set({b, head, i}, row.lse);
        }
      }
    }
    expect_close("sparse_decode", "out", out, expected_out);
    expect_close("sparse_decode", "lse", lse, expected_lse);
  }

  /// Expects that every query saw all of its indices.
  void expect_all_seen() const {
    expect_seen(
        [this](std::int64_t b, std::int64_t i) { return selected(b, i, sizes.topk, sizes.extra_topk); });
  }

  SparseSizes sizes;
  cases::Random random;
  cases::Tensor q, kv_cache, indices, topk_length, attn_sink;
  cases::Tensor extra_kv_cache, extra_indices, extra_topk_length;
  cases::Tensor out, lse;
  std::optional<float> softmax_scale;
  std::int64_t split_size = 0;

 private:
  Positions random_tokens(std::int64_t count, std::int64_t tokens) {
    Positions result;
    for (std::int64_t k = 0; k < count; ++k) result.push_back(random.between(0, tokens - 1));
    return result;
  }
};

}  // namespace flashmla
