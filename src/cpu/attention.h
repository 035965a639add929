// Attention of a block of rows over a stream of keys: scores, online softmax, values.
#pragma once

#include <cstdint>
#include <limits>

#include "api/workspace.h"
#include "cpu/engine.h"
#include "cpu/value_sum.h"
#include "flashmla/tensor.h"

namespace flashmla::cpu {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Up to `capacity` keys that exist, in order of their positions; 16-bit rows of one type.
struct KeyBlock {
  int capacity = 0;
  int count = 0;
  const void* keys[kMaxBlockTokens];
  const void* values[kMaxBlockTokens];
  std::int64_t positions[kMaxBlockTokens];
};

/// What the rows of a block have seen so far. `sums[row]` is the sum of 2^(logit - max) * value, not yet
/// divided by `sum`; logits have base 2.
struct PartialState {
  float* sums = nullptr;  ///< `[rows][stride]`
  float* max = nullptr;   ///< `[rows]`
  float* sum = nullptr;   ///< `[rows]`
  std::int64_t stride = 0;

  static PartialState take(Workspace& workspace, std::int64_t rows, std::int64_t d_v);

  /// The state of the rows from `row` on.
  PartialState from(std::int64_t row) const { return {sums + row * stride, max + row, sum + row, stride}; }
};

/// `into = from`, for `rows` rows.
void copy_state(const PartialState& from, const PartialState& into, std::int64_t rows);

/// Adds what `from` has seen to `into`; the bits depend on the order of merges alone.
void merge_state(const Engine& engine, const PartialState& from, const PartialState& into, std::int64_t rows);

/// Where one row's result goes.
struct RowOutput {
  void* out;
  DataType type;
  float* lse;
  float* max_logit;   ///< or null
  const float* sink;  ///< or null
  double value_factor = 1;
};

/// Divides by the sum, applies the sink and the factor and writes a row; a row that saw nothing is lonely.
void finish_row(const Engine& engine, const PartialState& state, std::int64_t row, std::int64_t d_v,
                const RowOutput& to);

/// A thread's buffers, for rows of one operation.
class Attention {
 public:
  /// For blocks of up to `max_rows` rows. `latent`: a value is the first part of its key. Rows of different
  /// types meet as f32.
  Attention(Workspace& workspace, int max_rows, DataType query_type, DataType key_type, std::int64_t d_qk,
            std::int64_t d_v, bool latent);

  /// Starts a block of rows; their queries are copied.
  void begin(const void* const* queries, int count, double softmax_scale);

  /// Attends over all keys of `source`, which has `bool next(KeyBlock&)`. With `bounds`, which never
  /// fall, row `r` sees the positions below `bounds[r]`; nothing else reaches its result, whatever it holds.
  template <class Source>
  void attend(Source& source, const std::int64_t* bounds) {
    while (source.next(block_)) attend_block(bounds);
    if (!started_) clear_sums();
  }

  const PartialState& state() const { return state_; }
  const Engine& engine() const { return *engine_; }

 private:
  void attend_block(const std::int64_t* bounds);
  void clear_sums();
  bool set_limits(const std::int64_t* bounds);
  void accumulate_rows(int first, int last, int tokens, const float* correction);

  const Engine* engine_;
  DataType query_type_;
  DataType key_type_;
  int d_qk_;
  int d_v_;
  float scale_log2_ = 0;
  bool values_are_keys_;
  int count_ = 0;
  int few_rows_ = 0;
  const void* packed_queries_[kMaxRows];
  std::int64_t rows_ = 0;
  bool started_ = false;
  bool limited_ = false;  ///< whether some row does not see the whole block
  KeyBlock block_;
  const Unit* key_units_[kMaxBlockTokens];
  Unit* queries_;
  float* key_scratch_;
  ValueSum value_sum_;
  float* scores_;
  void* weights_;
  float* correction_;
  std::int32_t* limits_;
  PartialState state_;
};

}  // namespace flashmla::cpu
