// An mha_forward and mha_backward problem built by a test: rows that no sequence covers are poison.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "backends.h"
#include "cache.h"

namespace flashmla {

struct MhaSizes {
  std::vector<std::int64_t> cu_seqlens_q = {0, 5};
  std::vector<std::int64_t> cu_seqlens_k = {0, 7};
  std::int64_t total_q = 5;
  std::int64_t total_k = 7;
  std::int64_t h_q = 2;
  std::int64_t h_kv = 2;
  std::int64_t d_qk = 64;
  std::int64_t d_v = 32;
  DataType type = DataType::kBf16;
};

/// The query and key rows of one sequence, by the rules for `cu_seqlens`.
struct Sequence {
  std::int64_t q_begin, q_end, k_begin, k_end;
};

/// Gradients in double precision, `[row][head]`.
struct MhaGradients {
  std::vector<std::vector<Row>> d_q, d_k, d_v;
};

class MhaProblem {
 public:
  explicit MhaProblem(const MhaSizes& given, std::uint64_t seed = 1) : sizes(given), random(seed) {
    q = cases::Tensor(sizes.type, {sizes.total_q, sizes.h_q, sizes.d_qk});
    k = cases::Tensor(sizes.type, {sizes.total_k, sizes.h_kv, sizes.d_qk});
    v = cases::Tensor(sizes.type, {sizes.total_k, sizes.h_kv, sizes.d_v});
    d_out = cases::Tensor(sizes.type, {sizes.total_q, sizes.h_q, sizes.d_v});
    out = cases::Tensor(sizes.type, {sizes.total_q, sizes.h_q, sizes.d_v});
    lse = cases::Tensor(DataType::kF32, {sizes.total_q, sizes.h_q});
    d_q = cases::Tensor(sizes.type, q.shape());
    d_k = cases::Tensor(sizes.type, k.shape());
    d_v = cases::Tensor(sizes.type, v.shape());
    cu_seqlens_q = int_vector(sizes.cu_seqlens_q);
    cu_seqlens_k = int_vector(sizes.cu_seqlens_k);
    for (const Sequence& sequence : sequences()) {
      for (std::int64_t row = sequence.q_begin; row < sequence.q_end; ++row) {
        write_heads(q, row);
        write_heads(d_out, row);
      }
      for (std::int64_t row = sequence.k_begin; row < sequence.k_end; ++row) {
        write_heads(k, row);
        write_heads(v, row);
      }
    }
  }

  /// Bounds are clamped to the tensor; one below its predecessor counts as equal.
  std::vector<Sequence> sequences() const {
    const auto q_bounds = clamped(sizes.cu_seqlens_q, sizes.total_q);
    const auto k_bounds = clamped(sizes.cu_seqlens_k, sizes.total_k);
    std::vector<Sequence> result;
    for (std::size_t b = 0; b + 1 < q_bounds.size(); ++b) {
      result.push_back({q_bounds[b], q_bounds[b + 1], k_bounds[b], k_bounds[b + 1]});
    }
    return result;
  }

  /// The key rows that a query row sees.
  Positions seen_by(std::int64_t row) const {
    Positions seen;
    for (const Sequence& s : sequences()) {
      if (row < s.q_begin || row >= s.q_end) continue;
      const std::int64_t len_q = s.q_end - s.q_begin;
      const std::int64_t len_k = s.k_end - s.k_begin;
      for (std::int64_t t = 0; t < len_k; ++t) {
        if (!causal || t <= len_k - len_q + (row - s.q_begin)) seen.push_back(s.k_begin + t);
      }
    }
    return seen;
  }

  MhaForward forward() const {
    MhaForward result;
    result.q = q.view();
    result.k = k.view();
    result.v = v.view();
    result.cu_seqlens_q = cu_seqlens_q.view();
    result.cu_seqlens_k = cu_seqlens_k.view();
    result.softmax_scale = softmax_scale;
    result.causal = causal;
    result.out = out.view();
    result.lse = lse.view();
    return result;
  }

  MhaBackward backward() const {
    MhaBackward result;
    result.q = q.view();
    result.k = k.view();
    result.v = v.view();
    result.out = out.view();
    result.lse = lse.view();
    result.d_out = d_out.view();
    result.cu_seqlens_q = cu_seqlens_q.view();
    result.cu_seqlens_k = cu_seqlens_k.view();
    result.softmax_scale = softmax_scale;
    result.causal = causal;
    result.deterministic = true;
    result.d_q = d_q.view();
    result.d_k = d_k.view();
    result.d_v = d_v.view();
    return result;
  }

  double scale() const { return softmax_scale ? *softmax_scale : 1 / std::sqrt(double(sizes.d_qk)); }
  std::int64_t kv_head(std::int64_t head) const { return head / (sizes.h_q / sizes.h_kv); }

  std::vector<Row> rows(const cases::Tensor& tensor, const Positions& positions, std::int64_t head) const {
    std::vector<Row> result;
    for (const std::int64_t position : positions) result.push_back(row_at(tensor.view(), {position, head}));
    return result;
  }

  Attended expected(std::int64_t row, std::int64_t head, const Positions& seen) const {
    return attend(row_at(q.view(), {row, head}), rows(k, seen, kv_head(head)), rows(v, seen, kv_head(head)),
                  sizes.d_v, scale());
  }

  /// Expects that query row `row` attended over the key rows `seen(row)`.
  template <class Seen>
  void expect_seen(const Seen& seen) const {
    cases::Tensor expected_out(DataType::kF32, out.shape());
    cases::Tensor expected_lse(DataType::kF32, lse.shape());
    for (std::int64_t row = 0; row < sizes.total_q; ++row) {
      for (std::int64_t head = 0; head < sizes.h_q; ++head) {
        const Attended attended = expected(row, head, seen(row));
        set_row(expected_out.view(), {row, head}, attended.out);
        expected_lse.set({row, head}, attended.lse);
      }
    }
    expect_close("mha_forward", "out", out, expected_out);
    expect_close("mha_forward", "lse", lse, expected_lse);
  }

  void expect_all_seen() const {
    expect_seen([this](std::int64_t row) { return seen_by(row); });
  }

  /// Gradients of `sum(d_out * out)` by the chain rule through softmax, for the rounded `out` and `lse`
  /// that the operation is given.
  MhaGradients gradients() const {
    MhaGradients g;
    g.d_q.assign(std::size_t(sizes.total_q), zero_heads(sizes.h_q, sizes.d_qk));
    g.d_k.assign(std::size_t(sizes.total_k), zero_heads(sizes.h_kv, sizes.d_qk));
    g.d_v.assign(std::size_t(sizes.total_k), zero_heads(sizes.h_kv, sizes.d_v));
    for (std::int64_t row = 0; row < sizes.total_q; ++row) {
      for (std::int64_t head = 0; head < sizes.h_q; ++head) add_gradients(row, head, g);
    }
    return g;
  }

  /// Whether no row sees more than one key: then `d_q` and `d_k` are zero but for rounding, and the cosine
  /// of rounding says nothing.
  bool gradients_vanish() const {
    for (std::int64_t row = 0; row < sizes.total_q; ++row) {
      if (seen_by(row).size() > 1) return false;
    }
    return true;
  }

  void expect_gradients() const {
    const MhaGradients g = gradients();
    expect_gradient("d_q", d_q, g.d_q);
    expect_gradient("d_k", d_k, g.d_k);
    expect_gradient("d_v", d_v, g.d_v);
  }

  MhaSizes sizes;
  cases::Random random;
  cases::Tensor q, k, v, d_out, cu_seqlens_q, cu_seqlens_k, out, lse, d_q, d_k, d_v;
  std::optional<float> softmax_scale;
  bool causal = false;

 private:
  static std::vector<std::int64_t> clamped(std::vector<std::int64_t> bounds, std::int64_t total) {
    std::int64_t low = 0;
    for (std::int64_t& bound : bounds) bound = low = std::max(low, std::clamp<std::int64_t>(bound, 0, total));
    return bounds;
  }

  static std::vector<Row> zero_heads(std::int64_t heads, std::int64_t width) {
    return std::vector<Row>(std::size_t(heads), Row(std::size_t(width), 0.0));
  }

  static void add(Row& sum, double factor, const Row& row) {
    for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += factor * row[c];
  }

  void write_heads(const cases::Tensor& tensor, std::int64_t row) {
    for (std::int64_t head = 0; head < tensor.view().shape[1]; ++head) {
      set_row(tensor.view(), {row, head}, random_row(tensor.view().shape[2], random));
    }
  }

  void add_gradients(std::int64_t row, std::int64_t head, MhaGradients& g) const {
    const Positions seen = seen_by(row);
    if (seen.empty()) return;
    const std::vector<Row> keys = rows(k, seen, kv_head(head));
    const std::vector<Row> values = rows(v, seen, kv_head(head));
    const Row query = row_at(q.view(), {row, head});
    const Row grad = row_at(d_out.view(), {row, head});
    const double log_sum = lse.at({row, head});
    const double mean = dot(grad, row_at(out.view(), {row, head}));
    Row weights, weight_grads;
    for (std::size_t t = 0; t < seen.size(); ++t) {
      weights.push_back(std::exp(scale() * dot(query, keys[t]) - log_sum));
      weight_grads.push_back(dot(grad, values[t]));
    }
    for (std::size_t t = 0; t < seen.size(); ++t) {
      const double logit_grad = scale() * weights[t] * (weight_grads[t] - mean);
      const auto key_row = std::size_t(seen[t]);
      add(g.d_q[std::size_t(row)][std::size_t(head)], logit_grad, keys[t]);
      add(g.d_k[key_row][std::size_t(kv_head(head))], logit_grad, query);
      add(g.d_v[key_row][std::size_t(kv_head(head))], weights[t], grad);
    }
  }

  static void expect_gradient(const char* name, const cases::Tensor& got,
                              const std::vector<std::vector<Row>>& expected_rows) {
    cases::Tensor expected(DataType::kF32, got.shape());
    for (std::size_t row = 0; row < expected_rows.size(); ++row) {
      for (std::size_t head = 0; head < expected_rows[row].size(); ++head) {
        set_row(expected.view(), {std::int64_t(row), std::int64_t(head)}, expected_rows[row][head]);
      }
    }
    expect_close("mha_backward", name, got, expected);
  }
};

}  // namespace flashmla
