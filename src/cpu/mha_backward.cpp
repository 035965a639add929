// mha_backward: weights are computed again from lse, in two passes that need no sums across threads: blocks
// of keys get `d_k` and `d_v` from the queries that see them, blocks of queries get `d_q` from the keys that
// they see. Every sum has a fixed order, so all gradients are deterministic.
//
// In both passes the block's own side are the *rows* (panels, transposed), and the other side comes by in
// blocks of *tokens*: `d_k[row] += sum over tokens of dS[token][row] * q[token]`, and so on.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>

#include "api/shapes.h"
#include "cpu/attention.h"
#include "cpu/cpu.h"
#include "cpu/engine.h"
#include "cpu/packed_blocks.h"
#include "cpu/thread_memory.h"
#include "host/threads.h"

namespace flashmla::cpu {
namespace {

/// Two rows that belong together: `(q, d_out)` of a query or `(k, v)` of a key.
struct RowPair {
  const void* qk;
  const void* vo;
};

/// Tokens of the other side, with the rows `[first_row, last_row)` that each of them meets.
struct TokenBlock {
  int count = 0;
  const void* qk[kMaxBlockTokens];
  const void* vo[kMaxBlockTokens];
  std::int32_t first_row[kMaxBlockTokens];
  std::int32_t last_row[kMaxBlockTokens];
  float lse_log2[kMaxBlockTokens];  ///< where tokens are queries
  float delta[kMaxBlockTokens];

  void add(const RowPair& pair, std::int64_t first, std::int64_t last) {
    qk[count] = pair.qk;
    vo[count] = pair.vo;
    first_row[count] = static_cast<std::int32_t>(first);
    last_row[count] = static_cast<std::int32_t>(last);
    ++count;
  }
};

/// A thread's buffers: panels of the block's rows, and the gradients that add up there.
class GradientRows {
 public:
  GradientRows(Workspace& workspace, DataType type, const MhaShape& shape, double softmax_scale, Side rows)
      : engine_(&engine_for(type, type)),
        type_(type),
        d_qk_(static_cast<int>(shape.d_qk)),
        d_v_(static_cast<int>(shape.d_v)),
        softmax_scale_(static_cast<float>(softmax_scale)),
        side_(rows),
        value_sum_(workspace, *engine_, type, std::max(d_qk_, d_v_)) {
    const std::size_t stride_qk = static_cast<std::size_t>(ValueSum::stride_of(d_qk_));
    const std::size_t stride_v = static_cast<std::size_t>(ValueSum::stride_of(d_v_));
    panel_qk_ = workspace.take<Unit>(panel_size(*engine_, d_qk_, kWideRows));
    panel_vo_ = workspace.take<Unit>(panel_size(*engine_, d_v_, kWideRows));
    scratch_ = workspace.take<float>(engine_->token_scratch(std::max(d_qk_, d_v_)));
    scores_ = workspace.take<float>(score_block_size(*engine_, kWideRows));
    d_weights_ = workspace.take<float>(score_block_size(*engine_, kWideRows));
    weights_ = take_factors(workspace, *engine_, kWideRows, scores_);
    d_scores_ = take_factors(workspace, *engine_, kWideRows, d_weights_);
    lse_log2_ = workspace.take<float>(kWideRows);
    delta_ = workspace.take<float>(kWideRows);
    ones_ = workspace.take<float>(kWideRows);
    sums_qk_ = workspace.take<float>(kWideRows * stride_qk);
    sums_v_ = workspace.take<float>(side_ == Side::kKeys ? kWideRows * stride_v : 0);
  }

  void begin(const void* const* qk, const void* const* vo, int count) {
    count_ = count;
    rows_ = round_up(count, engine_->lanes);
    engine_->pack_rows(qk, type_, count, d_qk_, rows_, 0, panel_qk_);
    engine_->pack_rows(vo, type_, count, d_v_, rows_, 0, panel_vo_);
    std::fill_n(ones_, kWideRows, 1.0f);
    std::fill_n(lse_log2_, kWideRows, 0.0f);
    std::fill_n(delta_, kWideRows, 0.0f);
    std::fill_n(sums_qk_, count * ValueSum::stride_of(d_qk_), 0.0f);
    if (side_ == Side::kKeys) std::fill_n(sums_v_, count * ValueSum::stride_of(d_v_), 0.0f);
  }

  /// Statistics of a row, where rows are queries.
  void set_query(int row, float lse, float delta) {
    lse_log2_[row] = lse * std::numbers::log2e_v<float>;
    delta_[row] = delta;
  }

  bool full(const TokenBlock& block) const { return block.count == engine_->block_tokens; }

  void add(const TokenBlock& block) {
    multiply(block);
    if (meet_all_rows(block) || all_finite(block)) {
      accumulate(block, 0, count_);
      return;
    }
    // Some row must not meet a token that is not finite: one token at a time, for the rows that meet it.
    for (int token = 0; token < block.count; ++token) {
      TokenBlock one;
      one.add({block.qk[token], block.vo[token]}, block.first_row[token], block.last_row[token]);
      one.lse_log2[0] = block.lse_log2[token];
      one.delta[0] = block.delta[token];
      multiply(one);
      accumulate(one, one.first_row[0], one.last_row[0]);
    }
  }

  void write_qk(int row, void* out) const {
    engine_->narrow(sums_qk_ + row * ValueSum::stride_of(d_qk_), 1.0f, d_qk_, type_, out);
  }

  void write_v(int row, void* out) const {
    engine_->narrow(sums_v_ + row * ValueSum::stride_of(d_v_), 1.0f, d_v_, type_, out);
  }

 private:
  /// Weights and gradients of the scores of a block.
  void multiply(const TokenBlock& block) {
    multiply(panel_qk_, block.qk, block.count, d_qk_, scores_);
    multiply(panel_vo_, block.vo, block.count, d_v_, d_weights_);
    const bool rows_are_queries = side_ == Side::kQueries;
    const auto gradient = rows_are_queries ? engine_->gradient_of_query_rows : engine_->gradient_of_key_rows;
    gradient({.tokens = block.count,
              .rows = rows_,
              .softmax_scale = softmax_scale_,
              .lse_log2 = rows_are_queries ? lse_log2_ : block.lse_log2,
              .delta = rows_are_queries ? delta_ : block.delta,
              .first_row = block.first_row,
              .last_row = block.last_row,
              .scores = scores_,
              .d_weights = d_weights_,
              .weights = weights_,
              .d_scores = d_scores_});
  }

  void multiply(const Unit* panel, const void* const* tokens, int count, int width, float* products) {
    const Unit* units[kMaxBlockTokens];
    engine_->token_units(tokens, type_, count, width, scratch_, units);
    engine_->scores({.panel = panel,
                     .rows = rows_,
                     .few_rows = 0,
                     .tokens = units,
                     .count = count,
                     .width = width,
                     .limits = nullptr,
                     .scratch = scratch_,
                     .scores = products});
  }

  bool all_finite(const TokenBlock& block) const {
    return value_sum_.all_finite(block.qk, block.count, d_qk_) &&
           value_sum_.all_finite(block.vo, block.count, d_v_);
  }

  bool meet_all_rows(const TokenBlock& block) const {
    for (int token = 0; token < block.count; ++token) {
      if (block.first_row[token] > 0 || block.last_row[token] < count_) return false;
    }
    return true;
  }

  void accumulate(const TokenBlock& block, int first_row, int last_row) {
    value_sum_.load(block.qk, block.count, d_qk_);
    value_sum_.add(d_scores_, block.count, d_qk_, {first_row, last_row, nullptr, ones_, sums_qk_});
    if (side_ == Side::kQueries) return;
    value_sum_.load(block.vo, block.count, d_v_);
    value_sum_.add(weights_, block.count, d_v_, {first_row, last_row, nullptr, ones_, sums_v_});
  }

  const Engine* engine_;
  DataType type_;
  int d_qk_;
  int d_v_;
  float softmax_scale_;
  Side side_;
  ValueSum value_sum_;
  int count_ = 0;
  std::int64_t rows_ = 0;
  Unit* panel_qk_;
  Unit* panel_vo_;
  float* scratch_;
  float* scores_;
  float* d_weights_;
  void* weights_;
  void* d_scores_;
  float* lse_log2_;
  float* delta_;
  float* ones_;
  float* sums_qk_;
  float* sums_v_;
};

/// Products of two rows, with the bits that an engine's scores have.
class DotProduct {
 public:
  DotProduct(Workspace& workspace, DataType type, std::int64_t width)
      : engine_(&engine_for(type, type)),
        type_(type),
        width_(static_cast<int>(width)),
        panel_(workspace.take<Unit>(panel_size(*engine_, width_, engine_->lanes))),
        scratch_(workspace.take<float>(engine_->token_scratch(width_))),
        product_(workspace.take<float>(score_block_size(*engine_, engine_->lanes))) {}

  float operator()(const void* a, const void* b) const {
    const Unit* units = nullptr;
    engine_->pack_rows(&a, type_, 1, width_, engine_->lanes, 0, panel_);
    engine_->token_units(&b, type_, 1, width_, scratch_, &units);
    engine_->scores({.panel = panel_,
                     .rows = engine_->lanes,
                     .few_rows = 0,
                     .tokens = &units,
                     .count = 1,
                     .width = width_,
                     .limits = nullptr,
                     .scratch = scratch_,
                     .scores = product_});
    return product_[0];
  }

 private:
  const Engine* engine_;
  DataType type_;
  int width_;
  Unit* panel_;
  float* scratch_;
  float* product_;
};

/// The operation, its sizes, and `delta [total_q, h_q]`.
struct BackwardJob {
  const MhaBackward& op;
  MhaShape shape;
  double softmax_scale;
  float* delta;

  BackwardJob(Workspace& workspace, const MhaBackward& operation)
      : op(operation),
        shape(shape_of(operation)),
        softmax_scale(softmax_scale_or_default(operation.softmax_scale, shape.d_qk)),
        delta(workspace.take<float>(static_cast<std::size_t>(shape.total_q * shape.h_q))) {}

  DotProduct dot_product(Workspace& workspace) const { return {workspace, op.q.type, shape.d_v}; }

  GradientRows buffers(Workspace& workspace, Side side) const {
    return {workspace, op.q.type, shape, softmax_scale, side};
  }

  ThreadMemory memory(Workspace& workspace, int threads) const {
    // Key rows keep two gradients, query rows one, a dot product less: the largest serves all passes.
    return ThreadMemory(workspace, threads, [&](Workspace& mine) { buffers(mine, Side::kKeys); });
  }

  PackedBlocks blocks(Side side) const {
    return {op.cu_seqlens_q, shape.total_q, op.cu_seqlens_k,
            shape.total_k,   side,          side == Side::kQueries ? shape.h_q : shape.h_kv,
            kWideRows};
  }

  RowPair query(std::int64_t token, std::int64_t head) const {
    return {packed_row(op.q, token, head), packed_row(op.d_out, token, head)};
  }
  RowPair key(std::int64_t token, std::int64_t kv_head) const {
    return {packed_row(op.k, token, kv_head), packed_row(op.v, token, kv_head)};
  }
  float lse(std::int64_t token, std::int64_t head) const {
    return op.lse.as<const float>()[token * op.lse.strides[0] + head * op.lse.strides[1]];
  }
  float& delta_of(std::int64_t token, std::int64_t head) const { return delta[token * shape.h_q + head]; }
};

/// The products are those of `<d_out, v>` in the same order: where a query sees one key, so that `out` is its
/// value, the difference is exactly zero.
void compute_delta(const BackwardJob& job, const ThreadMemory& memory, int threads) {
  const MhaShape& shape = job.shape;
  parallel_for(threads, shape.total_q, [&](int thread, std::int64_t token) {
    Workspace mine = memory.of(thread);
    const DotProduct dot = job.dot_product(mine);
    for (std::int64_t head = 0; head < shape.h_q; ++head) {
      job.delta_of(token, head) =
          dot(packed_row(job.op.d_out, token, head), packed_row(job.op.out, token, head));
    }
  });
}

/// `d_k` and `d_v` of a block of keys.
void key_gradients(const BackwardJob& job, const PackedBlock& block, GradientRows& rows) {
  const int count = static_cast<int>(block.end - block.begin);
  const void* qk[kWideRows];
  const void* vo[kWideRows];
  for (int row = 0; row < count; ++row) {
    const RowPair key = job.key(block.begin + row, block.head);
    qk[row] = key.qk;
    vo[row] = key.vo;
  }
  rows.begin(qk, vo, count);
  const PackedSequence& sequence = block.sequence;
  TokenBlock tokens;
  for (std::int64_t head = block.head * job.shape.group(); head < (block.head + 1) * job.shape.group();
       ++head) {
    for (std::int64_t q = sequence.query_begin(block.begin, job.op.causal); q < sequence.q_end; ++q) {
      const float lse = job.lse(q, head);
      if (lse == kInfinity) continue;  // a lonely query gives no gradient, whatever else it holds
      const std::int64_t seen =
          std::min<std::int64_t>(sequence.key_end(q, job.op.causal) - block.begin, count);
      tokens.lse_log2[tokens.count] = lse * std::numbers::log2e_v<float>;
      tokens.delta[tokens.count] = job.delta_of(q, head);
      tokens.add(job.query(q, head), 0, seen);
      if (rows.full(tokens)) {
        rows.add(tokens);
        tokens.count = 0;
      }
    }
  }
  if (tokens.count > 0) rows.add(tokens);
  for (int row = 0; row < count; ++row) {
    rows.write_qk(row, packed_row(job.op.d_k, block.begin + row, block.head));
    rows.write_v(row, packed_row(job.op.d_v, block.begin + row, block.head));
  }
}

/// `d_q` of a block of queries.
void query_gradients(const BackwardJob& job, const PackedBlock& block, GradientRows& rows) {
  const int count = static_cast<int>(block.end - block.begin);
  const void* qk[kWideRows];
  const void* vo[kWideRows];
  for (int row = 0; row < count; ++row) {
    const RowPair query = job.query(block.begin + row, block.head);
    qk[row] = query.qk;
    vo[row] = query.vo;
  }
  rows.begin(qk, vo, count);
  for (int row = 0; row < count; ++row) {
    rows.set_query(row, job.lse(block.begin + row, block.head), job.delta_of(block.begin + row, block.head));
  }
  const PackedSequence& sequence = block.sequence;
  const std::int64_t end = sequence.key_end(block.end - 1, job.op.causal);
  TokenBlock tokens;
  for (std::int64_t k = sequence.k_begin; k < end; ++k) {
    const std::int64_t first =
        std::max(sequence.query_begin(k, job.op.causal) - block.begin, std::int64_t{0});
    tokens.add(job.key(k, block.head / job.shape.group()), first, count);
    if (rows.full(tokens)) {
      rows.add(tokens);
      tokens.count = 0;
    }
  }
  if (tokens.count > 0) rows.add(tokens);
  for (int row = 0; row < count; ++row) {
    std::uint16_t* out = packed_row(job.op.d_q, block.begin + row, block.head);
    if (job.lse(block.begin + row, block.head) == kInfinity) {
      std::memset(out, 0, 2 * static_cast<std::size_t>(job.shape.d_qk));
    } else {
      rows.write_qk(row, out);
    }
  }
}

template <class Gradients>
void for_each_block(const BackwardJob& job, Side side, const ThreadMemory& memory, int threads,
                    Gradients&& gradients) {
  const PackedBlocks blocks = job.blocks(side);
  WorkQueue queue(blocks.count());
  parallel(threads, [&](int thread) {
    Workspace mine = memory.of(thread);
    GradientRows rows = job.buffers(mine, side);
    PackedBlocks walk = blocks;
    for (std::int64_t item = queue.take(); item >= 0; item = queue.take())
      gradients(job, walk.at(item), rows);
  });
}

void clear_uncovered_rows(const TensorView& cu_seqlens, const TensorView& gradient) {
  for_each_uncovered_row(cu_seqlens, gradient.shape[0], [&](std::int64_t token) {
    for (std::int64_t head = 0; head < gradient.shape[1]; ++head) {
      std::memset(packed_row(gradient, token, head), 0, 2 * static_cast<std::size_t>(gradient.shape[2]));
    }
  });
}

}  // namespace

std::size_t workspace_bytes(const MhaBackward& op, const Execution& on) {
  Workspace workspace;
  const int threads = threads_of(on);
  const BackwardJob job(workspace, op);
  job.memory(workspace, threads);
  return workspace.bytes();
}

void run(const MhaBackward& op, const Execution& on) {
  const int threads = threads_of(on);
  Workspace workspace(on);
  const BackwardJob job(workspace, op);
  const ThreadMemory memory = job.memory(workspace, threads);
  compute_delta(job, memory, threads);
  for_each_block(job, Side::kKeys, memory, threads, key_gradients);
  for_each_block(job, Side::kQueries, memory, threads, query_gradients);
  clear_uncovered_rows(op.cu_seqlens_q, op.d_q);
  clear_uncovered_rows(op.cu_seqlens_k, op.d_k);
  clear_uncovered_rows(op.cu_seqlens_k, op.d_v);
}

}  // namespace flashmla::cpu
