// A sparse_prefill problem built by a test: rows that no test selects are poison.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "backends.h"
#include "cache.h"

namespace flashmla {

struct PrefillSizes {
  std::int64_t s_q = 2;
  std::int64_t s_kv = 24;
  std::int64_t h_q = 4;
  std::int64_t h_kv = 1;
  std::int64_t d_qk = 64;
  std::int64_t d_v = 32;
  std::int64_t topk = 8;
  DataType type = DataType::kBf16;
};

/// Every index is -1 until `select` sets it.
class PrefillProblem {
 public:
  explicit PrefillProblem(const PrefillSizes& given, std::uint64_t seed = 1) : sizes(given), random(seed) {
    q = cases::Tensor(sizes.type, {sizes.s_q, sizes.h_q, sizes.d_qk});
    kv = cases::Tensor(sizes.type, {sizes.s_kv, sizes.h_kv, sizes.d_qk});
    indices = cases::Tensor(DataType::kI32, {sizes.s_q, sizes.h_kv, sizes.topk});
    out = cases::Tensor(sizes.type, {sizes.s_q, sizes.h_q, sizes.d_v});
    max_logits = cases::Tensor(DataType::kF32, {sizes.s_q, sizes.h_q});
    lse = cases::Tensor(DataType::kF32, {sizes.s_q, sizes.h_q});
    fill_random(q, random);
  }

  /// Sets the leftmost indices of query `i` in every kv head, without touching `kv`.
  void select(std::int64_t i, const Positions& values) {
    for (std::int64_t head = 0; head < sizes.h_kv; ++head) select_in_head(i, head, values);
  }

  void select_in_head(std::int64_t i, std::int64_t kv_head, const Positions& values) {
    for (std::size_t k = 0; k < values.size(); ++k) {
      indices.set({i, kv_head, static_cast<std::int64_t>(k)}, static_cast<double>(values[k]));
    }
  }

  /// Gives these rows random values.
  void write(const Positions& rows) {
    for (const std::int64_t row : rows) {
      for (std::int64_t head = 0; head < sizes.h_kv; ++head) {
        set_row(kv.view(), {row, head}, random_row(sizes.d_qk, random));
      }
    }
  }

  /// Lets every query and kv head select `topk` random rows and writes all rows.
  void select_at_random() {
    cases::for_each_index(indices.view(), [&](std::span<const std::int64_t> index) {
      cases::set_element(indices.view(), index, static_cast<double>(random.between(0, sizes.s_kv - 1)));
    });
    write(first(sizes.s_kv));
  }

  Positions selected(std::int64_t i, std::int64_t kv_head, std::int64_t count) const {
    Positions result;
    for (std::int64_t k = 0; k < count; ++k) result.push_back(std::int64_t(indices.at({i, kv_head, k})));
    return result;
  }

  SparsePrefill op() const {
    SparsePrefill result;
    result.q = q.view();
    result.kv = kv.view();
    result.indices = indices.view();
    result.attn_sink = attn_sink.view();
    result.topk_length = topk_length.view();
    result.softmax_scale = softmax_scale;
    result.out = out.view();
    result.max_logits = max_logits.view();
    result.lse = lse.view();
    return result;
  }

  double scale() const { return softmax_scale ? *softmax_scale : 1 / std::sqrt(double(sizes.d_qk)); }

  Attended expected(std::int64_t i, std::int64_t head, const Positions& seen) const {
    const std::int64_t kv_head = head / (sizes.h_q / sizes.h_kv);
    std::vector<Row> rows;
    for (const std::int64_t row : seen) rows.push_back(row_at(kv.view(), {row, kv_head}));
    const double sink = attn_sink.view().given() ? attn_sink.at({head}) : -kInfinity;
    return attend(row_at(q.view(), {i, head}), rows, rows, sizes.d_v, scale(), sink);
  }

  /// Expects that query `i` attended over the rows `seen(i, kv_head)`.
  void expect_seen(const std::function<Positions(std::int64_t, std::int64_t)>& seen) const {
    cases::Tensor expected_out(DataType::kF32, out.shape());
    cases::Tensor expected_lse(DataType::kF32, lse.shape());
    cases::Tensor expected_max(DataType::kF32, max_logits.shape());
    for (std::int64_t i = 0; i < sizes.s_q; ++i) {
      for (std::int64_t head = 0; head < sizes.h_q; ++head) {
        const Attended row = expected(i, head, seen(i, head / (sizes.h_q / sizes.h_kv)));
        set_row(expected_out.view(), {i, head}, row.out);
        expected_lse.set({i, head}, row.lse);
        expected_max.set({i, head}, row.max_logit);
      }
    }
    expect_close("sparse_prefill", "out", out, expected_out);
    expect_close("sparse_prefill", "lse", lse, expected_lse);
    expect_close("sparse_prefill", "max_logits", max_logits, expected_max);
  }

  /// Expects that every query saw all of its indices.
  void expect_all_seen() const {
    expect_seen([this](std::int64_t i, std::int64_t kv_head) { return selected(i, kv_head, sizes.topk); });
  }

  PrefillSizes sizes;
  cases::Random random;
  cases::Tensor q, kv, indices, attn_sink, topk_length, out, max_logits, lse;
  std::optional<float> softmax_scale;
};

}  // namespace flashmla
