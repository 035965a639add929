// Gradients of multi-head attention over packed sequences in float64.
//
// Two passes, each with one writer an output row: `d_q` by blocks of query rows, `d_k` and `d_v` by blocks
// of keys. Probabilities are computed again in both, from the `lse` that was given.
#include <algorithm>
#include <cmath>

#include "api/sequences.h"
#include "api/shapes.h"
#include "reference/attention_rows.h"
#include "reference/packed_sequence.h"
#include "reference/reference.h"

namespace flashmla::reference {
namespace {

constexpr std::int64_t kBlock = 16;  // rows that are converted once for a pass over the other side

/// Some rows `(a, b)`, converted: of queries `(q, d_out)`, of keys `(k, v)`; and sums of the same shape.
struct Pairs {
  double* a;  ///< `[count, d_qk]`
  double* b;  ///< `[count, d_v]`

  Pairs(double* memory, std::int64_t count, std::int64_t d_qk) : a(memory), b(memory + count * d_qk) {}
};

/// What one thread works with.
struct Scratch {
  Pairs block;  ///< the rows of the unit
  Pairs sums;   ///< their gradients
  Pairs other;  ///< one row of the other side

  static std::int64_t size(const MhaShape& shape) { return (2 * kBlock + 1) * (shape.d_qk + shape.d_v); }

  Scratch(double* memory, const MhaShape& shape)
      : block(memory, kBlock, shape.d_qk),
        sums(memory + kBlock * (shape.d_qk + shape.d_v), kBlock, shape.d_qk),
        other(memory + 2 * kBlock * (shape.d_qk + shape.d_v), 1, shape.d_qk) {}

  void clear_sums(const MhaShape& shape) { std::fill_n(sums.a, kBlock * (shape.d_qk + shape.d_v), 0.0); }
};

/// A checked operation with what follows from it.
struct Backward {
  const MhaBackward& op;
  MhaShape shape;
  double softmax_scale;
  double* delta;  ///< `[total_q, h_q]`

  void load_query(const PackedQuery& query, double* q, double* d_out) const {
    load_row(address(op.q, query.token, query.head), op.q.type, shape.d_qk, q);
    load_row(address(op.d_out, query.token, query.head), op.d_out.type, shape.d_v, d_out);
  }

  void load_key(std::int64_t token, std::int64_t kv_head, double* k, double* v) const {
    load_row(address(op.k, token, kv_head), op.k.type, shape.d_qk, k);
    load_row(address(op.v, token, kv_head), op.v.type, shape.d_v, v);
  }

  /// A row saw nothing if its lse is +inf; then it has no gradient, whatever else it holds.
  bool lonely(const PackedQuery& query) const { return std::isinf(lse(query)) && lse(query) > 0; }

  double lse(const PackedQuery& query) const { return element<float>(op.lse, query.token, query.head); }

  double& delta_of(const PackedQuery& query) const { return delta[query.token * shape.h_q + query.head]; }
};

/// Gradients of one logit: `P` and `softmax_scale * dS`.
struct LogitGradient {
  double probability;
  double d_score;

  LogitGradient(const Backward& backward, const PackedQuery& query, const double* q, const double* d_out,
                const double* k, const double* v) {
    const double logit = backward.softmax_scale * dot(q, k, backward.shape.d_qk);
    probability = std::exp(logit - backward.lse(query));
    const double d_probability = dot(d_out, v, backward.shape.d_v);
    d_score = backward.softmax_scale * probability * (d_probability - backward.delta_of(query));
  }
};

void query_gradients(const Backward& backward, const PackedSequence& sequence, std::int64_t kv_head,
                     std::int64_t first, std::int64_t count, Scratch scratch) {
  const MhaShape& shape = backward.shape;
  const auto query_of = [&](std::int64_t r) { return PackedQuery(sequence, shape, kv_head, first + r); };
  scratch.clear_sums(shape);
  for (std::int64_t r = 0; r < count; ++r) {
    double* q = scratch.block.a + r * shape.d_qk;
    double* d_out = scratch.block.b + r * shape.d_v;
    backward.load_query(query_of(r), q, d_out);
    load_row(address(backward.op.out, query_of(r).token, query_of(r).head), backward.op.out.type, shape.d_v,
             scratch.other.b);
    backward.delta_of(query_of(r)) = dot(d_out, scratch.other.b, shape.d_v);
  }
  const std::int64_t end = query_of(count - 1).visible;
  for (std::int64_t t = 0; t < end; ++t) {
    backward.load_key(sequence.begin_k + t, kv_head, scratch.other.a, scratch.other.b);
    for (std::int64_t r = 0; r < count; ++r) {
      if (t >= query_of(r).visible || backward.lonely(query_of(r))) continue;
      const LogitGradient gradient(backward, query_of(r), scratch.block.a + r * shape.d_qk,
                                   scratch.block.b + r * shape.d_v, scratch.other.a, scratch.other.b);
      add_scaled(gradient.d_score, scratch.other.a, shape.d_qk, scratch.sums.a + r * shape.d_qk);
    }
  }
  for (std::int64_t r = 0; r < count; ++r) {
    store_row(scratch.sums.a + r * shape.d_qk, backward.op.d_q.type, shape.d_qk,
              address(backward.op.d_q, query_of(r).token, query_of(r).head));
  }
}

void key_gradients(const Backward& backward, const PackedSequence& sequence, std::int64_t kv_head,
                   std::int64_t first, std::int64_t count, Scratch scratch) {
  const MhaShape& shape = backward.shape;
  scratch.clear_sums(shape);
  for (std::int64_t r = 0; r < count; ++r) {
    backward.load_key(sequence.begin_k + first + r, kv_head, scratch.block.a + r * shape.d_qk,
                      scratch.block.b + r * shape.d_v);
  }
  for (std::int64_t row = 0; row < sequence.len_q * shape.group(); ++row) {
    const PackedQuery query(sequence, shape, kv_head, row);
    if (first >= query.visible || backward.lonely(query)) continue;
    backward.load_query(query, scratch.other.a, scratch.other.b);
    for (std::int64_t r = 0; r < count && first + r < query.visible; ++r) {
      const LogitGradient gradient(backward, query, scratch.other.a, scratch.other.b,
                                   scratch.block.a + r * shape.d_qk, scratch.block.b + r * shape.d_v);
      add_scaled(gradient.d_score, scratch.other.a, shape.d_qk, scratch.sums.a + r * shape.d_qk);
      add_scaled(gradient.probability, scratch.other.b, shape.d_v, scratch.sums.b + r * shape.d_v);
    }
  }
  for (std::int64_t r = 0; r < count; ++r) {
    const std::int64_t token = sequence.begin_k + first + r;
    store_row(scratch.sums.a + r * shape.d_qk, backward.op.d_k.type, shape.d_qk,
              address(backward.op.d_k, token, kv_head));
    store_row(scratch.sums.b + r * shape.d_v, backward.op.d_v.type, shape.d_v,
              address(backward.op.d_v, token, kv_head));
  }
}

void fill_with_zeros(const TensorView& rows) {
  for (std::int64_t i = 0; i < rows.shape[0]; ++i) {
    for (std::int64_t head = 0; head < rows.shape[1]; ++head) {
      store_zeros(rows.type, rows.shape[2], address(rows, i, head));
    }
  }
}

/// Memory of a call: deltas, and scratch for each thread.
struct Memory {
  double* delta;
  double* scratch;
  std::size_t bytes;

  Memory(Workspace workspace, const MhaShape& shape, const Execution& on)
      : delta(workspace.take<double>(static_cast<std::size_t>(shape.total_q * shape.h_q))),
        scratch(workspace.take<double>(static_cast<std::size_t>(Scratch::size(shape) * threads_of(on)))),
        bytes(workspace.bytes()) {}
};

/// Calls `gradients` for every kv head and block of `rows`, on all threads.
template <class Gradients>
void for_each_block(const Backward& backward, std::int64_t rows, double* memory, const Execution& on,
                    Gradients&& gradients) {
  const std::int64_t blocks = (rows + kBlock - 1) / kBlock;
  parallel_for(threads_of(on), backward.shape.h_kv * blocks, [&](int thread, std::int64_t unit) {
    const std::int64_t first = unit % blocks * kBlock;
    const Scratch scratch(memory + Scratch::size(backward.shape) * thread, backward.shape);
    gradients(unit / blocks, first, std::min(kBlock, rows - first), scratch);
  });
}

}  // namespace

std::size_t workspace_bytes(const MhaBackward& op, const Execution& on) {
  return Memory(Workspace(), shape_of(op), on).bytes;
}

void run(const MhaBackward& op, const Execution& on) {
  const MhaShape shape = shape_of(op);
  const Memory memory(Workspace(on), shape, on);
  const Backward backward{op, shape, softmax_scale_or_default(op.softmax_scale, shape.d_qk), memory.delta};
  for (const TensorView* gradient : {&op.d_q, &op.d_k, &op.d_v}) fill_with_zeros(*gradient);
  SequenceWalk q(op.cu_seqlens_q, shape.total_q);
  SequenceWalk k(op.cu_seqlens_k, shape.total_k);
  while (q.next() && k.next()) {
    const PackedSequence sequence(q, k, op.causal);
    for_each_block(backward, sequence.len_q * shape.group(), memory.scratch, on,
                   [&](std::int64_t kv_head, std::int64_t first, std::int64_t count, const Scratch& scratch) {
                     query_gradients(backward, sequence, kv_head, first, count, scratch);
                   });
    for_each_block(backward, sequence.len_k, memory.scratch, on,
                   [&](std::int64_t kv_head, std::int64_t first, std::int64_t count, const Scratch& scratch) {
                     key_gradients(backward, sequence, kv_head, first, count, scratch);
                   });
  }
}

}  // namespace flashmla::reference
