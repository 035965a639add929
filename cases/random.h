// Random cases for every operation, the same on every machine for the same seed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cases/case.h"
#include "flashmla/kv_format.h"

namespace flashmla::cases {

/// splitmix64 with integer-only distributions, so that a seed means the same bytes everywhere.
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next();
  /// Uniform in `[low, high]`.
  std::int64_t between(std::int64_t low, std::int64_t high);
  /// True with probability `p`.
  bool chance(double p);
  /// Mean 0, variance 1, nearly normal: the sum of four uniform numbers, so at most 3.5 in magnitude.
  float normal();
  template <class T>
  const T& pick(const std::vector<T>& choices) {
    return choices[static_cast<std::size_t>(between(0, static_cast<std::int64_t>(choices.size()) - 1))];
  }

 private:
  std::uint64_t state_;
};

/// Attention sinks of a case.
enum class Sinks {
  kNone,
  kFinite,
  kSomeInfinite,  ///< about a third +inf or -inf
};

// Knobs, one struct an operation, all with defaults. In common:
// - Whatever the operation must not read is NaN, or garbage where it is integers.
// - `gaps`: inputs and outputs have padded strides.
// - Lists of lengths are cycled over the batch.

struct DenseDecodeKnobs {
  std::int64_t batch = 2;
  std::int64_t s_q = 1;
  std::int64_t h_q = 16;
  std::int64_t h_kv = 1;
  std::int64_t d_qk = 576;
  std::int64_t d_v = 512;
  std::int64_t page = 64;
  std::vector<std::int64_t> seqlens = {200};
  /// Of `q`, and of the cache if that does not hold codes.
  DataType type = DataType::kBf16;
  /// The cache holds e4m3 codes of rows that were divided by `descale_k` of their sequence, if given;
  /// queries were by `descale_q`. Factors lie between 2^-6 and 2^6.
  bool e4m3 = false;
  bool descale_q = true;
  bool descale_k = true;
  bool causal = false;
  std::int64_t split_size = 0;
  bool gaps = false;
  /// Sequences share their first pages sometimes, and all have the same `descale_k`.
  bool shared_pages = false;
  /// Some used entries of `block_table` name blocks that do not exist.
  bool invalid_blocks = false;
  /// Empty sequences have negative lengths, and some sequences a length beyond `block_table`, which
  /// means all of it.
  bool wild_lengths = false;
};

struct SparseDecodeKnobs {
  std::int64_t batch = 2;
  std::int64_t s_q = 1;
  std::int64_t h_q = 64;
  std::int64_t h_kv = 1;    ///< 1 for FP8 formats
  std::int64_t d_qk = 576;  ///< replaced by the format's own width for FP8 formats
  std::int64_t d_v = 512;
  KvFormat format = KvFormat::kFp8V32;
  /// Type of `q`; for kBf16 and kF16 formats the format tells it.
  DataType type = DataType::kBf16;
  std::int64_t page = 64;
  std::int64_t blocks = 8;
  std::int64_t topk = 128;
  /// Per sequence; empty: not given.
  std::vector<std::int64_t> topk_length;
  /// 0: no second cache.
  std::int64_t extra_topk = 0;
  std::int64_t extra_page = 2;
  std::int64_t extra_blocks = 64;
  std::vector<std::int64_t> extra_topk_length;
  Sinks sinks = Sinks::kNone;
  /// Parts of the indices that are outside the cache (-1, huge, very negative), and that repeat
  /// another one of the query.
  double invalid = 0;
  double duplicates = 0;
  /// Part of the queries whose indices are all invalid.
  double lonely = 0;
  std::int64_t split_size = 0;
  bool gaps = false;
};

struct SparsePrefillKnobs {
  std::int64_t s_q = 4;
  std::int64_t s_kv = 256;
  std::int64_t h_q = 64;
  std::int64_t h_kv = 1;
  std::int64_t d_qk = 576;
  std::int64_t d_v = 512;
  std::int64_t topk = 128;
  std::vector<std::int64_t> topk_length;  ///< per query, cycled; empty: not given
  DataType type = DataType::kBf16;
  Sinks sinks = Sinks::kNone;
  double invalid = 0;
  double duplicates = 0;
  double lonely = 0;
  bool gaps = false;
};

/// For mha_forward, mha_backward, and `mha`, which is both.
struct MhaKnobs {
  std::vector<std::int64_t> seqlens_q = {64, 48};
  std::vector<std::int64_t> seqlens_k = {80, 100};  ///< as many as seqlens_q
  std::int64_t h_q = 2;
  std::int64_t h_kv = 2;
  std::int64_t d_qk = 192;
  std::int64_t d_v = 128;
  DataType type = DataType::kBf16;
  bool causal = false;
  bool deterministic = false;
  /// Rows in front of the first sequence and behind the last one.
  std::int64_t uncovered_rows = 0;
  /// Bounds beyond the tensors or smaller than the one before, which mean the same as the right ones.
  bool wild_bounds = false;
  bool gaps = false;
  /// Who computes `out` and `lse` for mha_backward. The default is exact but slow; empty takes the
  /// fastest.
  std::string backend = "reference";
};

/// For quantize_kv and dequantize_kv.
struct QuantizeKnobs {
  std::int64_t blocks = 2;
  std::int64_t page = 64;
  KvFormat format = KvFormat::kFp8V32;
  /// quantize_kv: some values are zero groups, infinities, NaN, or at the ends of the range.
  /// dequantize_kv: every e4m3 code, and scales that are no powers of two where the format has such.
  bool special_values = false;
  bool gaps = false;
};

struct AppendKvKnobs {
  std::int64_t tokens = 20;
  std::int64_t blocks = 4;
  std::int64_t page = 16;
  KvFormat format = KvFormat::kFp8V32;
  std::int64_t d_latent = 512;  ///< replaced by the format's own width for FP8 formats
  std::int64_t d_rope = 64;
  DataType slot_type = DataType::kI64;
  double invalid = 0;
  double duplicates = 0;
  bool gaps = false;
};

struct MergeStatesKnobs {
  std::int64_t states = 2;
  std::int64_t batch = 2;
  std::int64_t s_q = 1;
  std::int64_t h_q = 16;
  std::int64_t d_v = 512;
  DataType type = DataType::kBf16;
  DataType out_type = DataType::kBf16;
  /// Part of the rows of a state that saw nothing: lse +inf or -inf, out NaN.
  double lonely = 0;
  bool gaps = false;
};

struct MakeScheduleKnobs {
  std::int64_t batch = 4;
  /// Dense: lengths of the sequences. Empty: sparse.
  std::vector<std::int64_t> seqlens = {200, 5000};
  std::int64_t max_seqlen = 8192;
  std::int64_t topk = 2048;     ///< sparse only
  std::int64_t extra_topk = 0;  ///< sparse only
  std::vector<std::int64_t> topk_length;
  std::vector<std::int64_t> extra_topk_length;
  std::int64_t split_size = 0;
  std::int64_t parts = 8;
};

Case make_dense_decode(const DenseDecodeKnobs& knobs, std::uint64_t seed);
Case make_sparse_decode(const SparseDecodeKnobs& knobs, std::uint64_t seed);
Case make_sparse_prefill(const SparsePrefillKnobs& knobs, std::uint64_t seed);
/// A case for `mha`: the forward pass and the gradients after it.
Case make_mha(const MhaKnobs& knobs, std::uint64_t seed);
Case make_mha_forward(const MhaKnobs& knobs, std::uint64_t seed);
/// `out` and `lse` come from mha_forward on `knobs.backend`.
Case make_mha_backward(const MhaKnobs& knobs, std::uint64_t seed);
Case make_quantize_kv(const QuantizeKnobs& knobs, std::uint64_t seed);
Case make_dequantize_kv(const QuantizeKnobs& knobs, std::uint64_t seed);
Case make_append_kv(const AppendKvKnobs& knobs, std::uint64_t seed);
Case make_merge_states(const MergeStatesKnobs& knobs, std::uint64_t seed);
Case make_make_schedule(const MakeScheduleKnobs& knobs, std::uint64_t seed);

/// A small case whose knobs are drawn too, over all that the library allows: odd head counts, pages of
/// 1 to 130 tokens, several kv heads, empty sequences, more queries than keys, and so on. `operation`
/// is one of operation_names(); throws Error (kValue) for another.
Case random_case(std::string_view operation, Random& random);

}  // namespace flashmla::cases
