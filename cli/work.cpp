// How much an operation has to compute and to move, as a basis of rates.
#include "cli/work.h"

#include <algorithm>
#include <cstdint>
#include <variant>
#include <vector>

namespace flashmla::cli {
namespace {

double bytes_of(const TensorView& view) {
  return view.given() ? static_cast<double>(view.size()) * static_cast<double>(size_of(view.type)) : 0;
}

double row_bytes(const TensorView& cache) {
  return static_cast<double>(cache.shape[cache.ndim - 1]) * static_cast<double>(size_of(cache.type));
}

std::int64_t int_at(const TensorView& view, std::int64_t i) {
  return view.as<std::int32_t>()[i * view.strides[0]];
}

/// Keys that `queries` rows see in total, of which row `i` sees the first `keys - queries + i + 1` if
/// `causal` and all of them otherwise.
double visible_pairs(std::int64_t queries, std::int64_t keys, bool causal) {
  double pairs = 0;
  for (std::int64_t i = 0; i < queries; ++i) {
    pairs += static_cast<double>(causal ? std::max<std::int64_t>(0, keys - queries + i + 1) : keys);
  }
  return pairs;
}

/// Valid entries of an index tensor, and the tokens that they name.
struct Selection {
  double entries = 0;
  double tokens = 0;
};

/// Indices of the columns `j` of `[i, j, topk]`; `topk_length` goes with `i`.
Selection selection_of(const TensorView& indices, std::int64_t first, std::int64_t last,
                       const TensorView& topk_length, std::int64_t tokens) {
  Selection found;
  std::vector<bool> named(static_cast<std::size_t>(tokens), false);
  const std::int64_t topk = indices.shape[2];
  for (std::int64_t i = 0; i < indices.shape[0]; ++i) {
    const std::int64_t length =
        topk_length.given() ? std::clamp<std::int64_t>(int_at(topk_length, i), 0, topk) : topk;
    for (std::int64_t j = first; j < last; ++j) {
      const auto* row = indices.as<std::int32_t>() + i * indices.strides[0] + j * indices.strides[1];
      for (std::int64_t k = 0; k < length; ++k) {
        if (row[k] < 0 || row[k] >= tokens) continue;
        found.entries += 1;
        named[static_cast<std::size_t>(row[k])] = true;
      }
    }
  }
  found.tokens = static_cast<double>(std::count(named.begin(), named.end(), true));
  return found;
}

/// All columns name rows of the same cache.
Selection selection(const TensorView& indices, const TensorView& topk_length, std::int64_t tokens) {
  if (!indices.given()) return {};
  return selection_of(indices, 0, indices.shape[1], topk_length, tokens);
}

/// Latent attention: a key and a value a pair of query row and token, for each query head.
double latent_flops(double pairs, const TensorView& q, const TensorView& out) {
  const auto heads = static_cast<double>(q.shape[q.ndim - 2]);
  return 2 * pairs * heads * static_cast<double>(q.shape[q.ndim - 1] + out.shape[out.ndim - 1]);
}

Work work(const DenseDecode& op) {
  const std::int64_t limit = op.block_table.shape[1] * op.kv_cache.shape[1];
  double pairs = 0;
  double tokens = 0;
  for (std::int64_t b = 0; b < op.q.shape[0]; ++b) {
    const std::int64_t length = std::clamp<std::int64_t>(int_at(op.cache_seqlens, b), 0, limit);
    pairs += visible_pairs(op.q.shape[1], length, op.causal);
    tokens += static_cast<double>(length);
  }
  return {.flops = latent_flops(pairs, op.q, op.out),
          .bytes = tokens * static_cast<double>(op.kv_cache.shape[2]) * row_bytes(op.kv_cache)};
}

Work work(const SparseDecode& op) {
  const TensorView& cache = op.kv_cache;
  const TensorView& extra = op.extra_kv_cache;
  const Selection main = selection(op.indices, op.topk_length, cache.shape[0] * cache.shape[1]);
  const Selection second =
      selection(op.extra_indices, op.extra_topk_length, extra.given() ? extra.shape[0] * extra.shape[1] : 0);
  return {.flops = latent_flops(main.entries + second.entries, op.q, op.out),
          .bytes = (main.tokens + second.tokens) * static_cast<double>(cache.shape[2]) * row_bytes(cache)};
}

// Indices are per kv head here: each head reads rows of its own, for its share of the query heads.
Work work(const SparsePrefill& op) {
  const std::int64_t kv_heads = op.kv.shape[1];
  Selection all;
  for (std::int64_t head = 0; head < kv_heads; ++head) {
    const Selection found = selection_of(op.indices, head, head + 1, op.topk_length, op.kv.shape[0]);
    all.entries += found.entries;
    all.tokens += found.tokens;
  }
  return {.flops = latent_flops(all.entries, op.q, op.out) / static_cast<double>(kv_heads),
          .bytes = all.tokens * row_bytes(op.kv)};
}

template <class Op>
double mha_pairs(const Op& op) {
  double pairs = 0;
  const auto bound = [](const TensorView& cumulative, std::int64_t b, const TensorView& rows) {
    return std::clamp<std::int64_t>(int_at(cumulative, b), 0, rows.shape[0]);
  };
  for (std::int64_t b = 0; b + 1 < op.cu_seqlens_q.shape[0]; ++b) {
    const std::int64_t queries = bound(op.cu_seqlens_q, b + 1, op.q) - bound(op.cu_seqlens_q, b, op.q);
    const std::int64_t keys = bound(op.cu_seqlens_k, b + 1, op.k) - bound(op.cu_seqlens_k, b, op.k);
    pairs += visible_pairs(queries, std::max<std::int64_t>(0, keys), op.causal);
  }
  return pairs * static_cast<double>(op.q.shape[1]);
}

Work work(const MhaForward& op) {
  const auto width = static_cast<double>(op.q.shape[2] + op.v.shape[2]);
  return {.flops = 2 * mha_pairs(op) * width,
          .bytes = bytes_of(op.q) + bytes_of(op.k) + bytes_of(op.v) + bytes_of(op.out) + bytes_of(op.lse)};
}

Work work(const MhaBackward& op) {
  const auto width = static_cast<double>(3 * op.q.shape[2] + 2 * op.v.shape[2]);
  return {.flops = 2 * mha_pairs(op) * width,
          .bytes = 2 * (bytes_of(op.q) + bytes_of(op.k) + bytes_of(op.v)) + bytes_of(op.out) +
                   bytes_of(op.d_out) + bytes_of(op.lse)};
}

Work work(const QuantizeKv& op) { return {.bytes = bytes_of(op.kv) + bytes_of(op.kv_cache)}; }

Work work(const DequantizeKv& op) { return {.bytes = bytes_of(op.kv) + bytes_of(op.kv_cache)}; }

Work work(const AppendKv& op) {
  const auto tokens = static_cast<double>(op.slot_mapping.shape[0]);
  return {.bytes = bytes_of(op.latent) + bytes_of(op.rope) + bytes_of(op.slot_mapping) +
                   tokens * row_bytes(op.kv_cache)};
}

Work work(const MergeStates& op) {
  double bytes = bytes_of(op.out) + bytes_of(op.lse);
  for (const TensorView& out : op.outs) bytes += bytes_of(out);
  for (const TensorView& lse : op.lses) bytes += bytes_of(lse);
  return {.bytes = bytes};
}

Work work(const MakeSchedule& op) {
  return {.bytes = bytes_of(op.cache_seqlens) + bytes_of(op.topk_length) + bytes_of(op.extra_topk_length) +
                   bytes_of(op.schedule) + bytes_of(op.num_splits)};
}

}  // namespace

Work work_of(const cases::AnyOperation& operation) {
  return std::visit([](const auto& op) { return work(op); }, operation);
}

bool fits_in_cache(const Work& work, const Machine& machine) {
  return work.bytes < static_cast<double>(machine.last_level_cache_bytes);
}

}  // namespace flashmla::cli
