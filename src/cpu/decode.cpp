// dense_decode and sparse_decode: parts of the schedule are handed out in order; sequences that are split
// are merged in order of their splits, each split by the thread that computed it.
#include <algorithm>
#include <atomic>
#include <thread>

#include "api/message.h"
#include "api/shapes.h"
#include "cpu/attention.h"
#include "cpu/cpu.h"
#include "cpu/key_sources.h"
#include "cpu/thread_memory.h"
#include "flashmla/kv_format.h"
#include "host/threads.h"
#include "schedule/request.h"

namespace flashmla::cpu {
namespace {

/// What the two operations have in common. Rows of a sequence and kv head are numbered `query * group +
/// head`; a *set* of rows shares its keys: all queries in dense decode, one query in sparse decode.
struct DecodeJob {
  std::string_view operation;
  DecodeShape shape;
  TensorView q;
  TensorView out;
  TensorView lse;
  TensorView attn_sink;
  TensorView descale_q;
  TensorView descale_k;
  TensorView schedule;
  TensorView num_splits;
  double softmax_scale;
  bool causal;
  std::int64_t sets;
  ScheduleRequest request;

  double logit_factor(std::int64_t seq) const {
    return softmax_scale * factor_of(descale_q, seq) * factor_of(descale_k, seq);
  }
  double value_factor(std::int64_t seq) const { return factor_of(descale_k, seq); }
  static double factor_of(const TensorView& factors, std::int64_t seq) {
    return factors.given() ? factors.as<const float>()[seq * factors.strides[0]] : 1;
  }

  std::int64_t rows() const { return shape.s_q * shape.group(); }
  std::int64_t rows_in_set() const { return rows() / std::max<std::int64_t>(sets, 1); }
};

template <class Op>
DecodeJob common_job(const Op& op) {
  const DecodeShape shape = shape_of(op);
  const std::int64_t parts = op.schedule.given() ? op.schedule.shape[0] : kCpuScheduleParts;
  return {.operation = Op::fields().operation,
          .shape = shape,
          .q = op.q,
          .out = op.out,
          .lse = op.lse,
          .attn_sink = {},
          .descale_q = {},
          .descale_k = {},
          .schedule = op.schedule,
          .num_splits = op.num_splits,
          .softmax_scale = softmax_scale_or_default(op.softmax_scale, shape.d_qk),
          .causal = false,
          .sets = 1,
          .request = schedule_request(op, parts, kCpuScheduleTile)};
}

DecodeJob job_of(const DenseDecode& op) {
  DecodeJob job = common_job(op);
  job.descale_q = op.descale_q;
  job.descale_k = op.descale_k;
  job.causal = op.causal;
  return job;
}

DecodeJob job_of(const SparseDecode& op) {
  DecodeJob job = common_job(op);
  job.attn_sink = op.attn_sink;
  job.sets = job.shape.s_q;
  return job;
}

/// A thread's buffers.
struct DecodeBuffers {
  Attention attention;
  std::uint16_t* dequantized;  ///< a block of keys of an FP8 cache, as bf16

  template <class Op>
  DecodeBuffers(Workspace& workspace, const Op& op, const DecodeJob& job)
      : attention(workspace, kWideRows, op.q.type, is_fp8(op) ? DataType::kBf16 : op.q.type, job.shape.d_qk,
                  job.shape.d_v, true),
        dequantized(workspace.take<std::uint16_t>(
            is_fp8(op) ? kMaxBlockTokens * static_cast<std::size_t>(whole_groups(job.shape.d_qk)) : 0)) {}

  template <class Op>
  static bool is_fp8(const Op& op) {
    return op.kv_cache.type == DataType::kU8;
  }
};

/// Smallest number of rows that a block is cut to when there is little work.
constexpr std::int64_t kMinRows = 32;

/// What all threads share.
struct SharedState {
  std::int32_t* schedule;
  std::int32_t* num_splits;
  std::atomic<std::int32_t>* merged;  ///< splits merged so far: [batch][h_kv][blocks of kMinRows]
  PartialState sums;                  ///< of split sequences: [batch][h_kv][rows]
  std::int64_t blocks_per_head;

  SharedState(Workspace& workspace, const DecodeJob& job) {
    const DecodeShape& shape = job.shape;
    blocks_per_head = job.sets * ((job.rows_in_set() + kMinRows - 1) / kMinRows);
    schedule = workspace.take<std::int32_t>(job.schedule.given() ? 0 : 8 * kCpuScheduleParts);
    num_splits =
        workspace.take<std::int32_t>(job.schedule.given() ? 0 : static_cast<std::size_t>(shape.batch) + 1);
    merged = workspace.take<std::atomic<std::int32_t>>(static_cast<std::size_t>(merged_count(shape)));
    sums = PartialState::take(workspace, shape.batch * shape.s_q * shape.h_q, shape.d_v);
  }

  std::int64_t merged_count(const DecodeShape& shape) const {
    return shape.batch * shape.h_kv * blocks_per_head;
  }
};

/// A schedule's tensors, given or made here.
struct ScheduleTensors {
  const std::int32_t* rows;
  std::int64_t row_stride;
  const std::int32_t* num_splits;
  std::int64_t num_splits_stride;

  PartRow part(std::int64_t p) const { return PartRow::load(rows + p * row_stride); }
  std::int64_t splits_of(std::int64_t seq) const {
    return num_splits[(seq + 1) * num_splits_stride] - num_splits[seq * num_splits_stride];
  }
};

ScheduleTensors prepare_schedule(const DecodeJob& job, const SharedState& shared) {
  if (!job.schedule.given()) {
    make_schedule(job.request, shared.schedule, 8, shared.num_splits, 1);
    return {shared.schedule, 8, shared.num_splits, 1};
  }
  const ScheduleTensors given{job.schedule.as<const std::int32_t>(), job.schedule.strides[0],
                              job.num_splits.as<const std::int32_t>(), job.num_splits.strides[0]};
  if (!schedule_is_valid(job.request, given.rows, given.row_stride, given.num_splits,
                         given.num_splits_stride)) {
    fail(ErrorKind::kValue, job.operation,
         "schedule and num_splits must come from make_schedule for the same lengths, shapes and split_size, "
         "got a schedule for others");
  }
  return given;
}

/// Rows of one set that are computed together.
struct RowBlock {
  std::int64_t head;  ///< kv head
  std::int64_t set;
  std::int64_t begin;  ///< row of the sequence and kv head
  int count;
};

class DecodeRun {
 public:
  DecodeRun(const DecodeJob& job, const SharedState& shared, int threads)
      : job_(job), shared_(shared), schedule_(prepare_schedule(job, shared)) {
    const std::int64_t merged = shared.merged_count(job.shape);
    for (std::int64_t i = 0; i < merged; ++i) new (shared.merged + i) std::atomic<std::int32_t>(0);
    choose_row_blocks(threads);
  }

  std::int64_t work_count() const {
    return job_.request.parts * job_.shape.h_kv * job_.sets * blocks_in_set_;
  }

  /// One part for one block of rows. `keys_of(seq, block, begin, end)` makes the stream of keys.
  template <class KeysOf>
  void work(std::int64_t item, Attention& attention, KeysOf&& keys_of) const {
    const RowBlock block = row_block(item);
    const PartRow part = schedule_.part(item / (job_.shape.h_kv * job_.sets * blocks_in_set_));
    PartSplits splits(job_.request, part);
    for (Split split; splits.next(split);) {
      attend(split, block, attention, keys_of);
      finish(split, block, attention);
    }
  }

 private:
  /// Large blocks share keys best; smaller ones keep more threads busy. The choice changes no bits.
  void choose_row_blocks(int threads) {
    std::int64_t busy_parts = 0;
    for (std::int64_t p = 0; p < job_.request.parts; ++p) busy_parts += !schedule_.part(p).empty();
    for (rows_in_block_ = kWideRows;; rows_in_block_ /= 2) {
      blocks_in_set_ = (job_.rows_in_set() + rows_in_block_ - 1) / rows_in_block_;
      const std::int64_t works = busy_parts * job_.shape.h_kv * job_.sets * blocks_in_set_;
      if (rows_in_block_ == kMinRows || works >= 2 * threads) return;
    }
  }

  RowBlock row_block(std::int64_t item) const {
    const std::int64_t in_set = item % blocks_in_set_;
    const std::int64_t set = item / blocks_in_set_ % job_.sets;
    const std::int64_t begin = in_set * rows_in_block_;
    return {.head = item / (blocks_in_set_ * job_.sets) % job_.shape.h_kv,
            .set = set,
            .begin = set * job_.rows_in_set() + begin,
            .count = static_cast<int>(std::min(rows_in_block_, job_.rows_in_set() - begin))};
  }

  struct RowPlace {
    std::int64_t query;
    std::int64_t head;  ///< query head
  };
  RowPlace place_of(const RowBlock& block, std::int64_t row) const {
    const std::int64_t at = block.begin + row;
    return {at / job_.shape.group(), block.head * job_.shape.group() + at % job_.shape.group()};
  }

  template <class KeysOf>
  void attend(const Split& split, const RowBlock& block, Attention& attention, KeysOf&& keys_of) const {
    const void* queries[kWideRows];
    std::int64_t bounds[kWideRows];
    const std::int64_t length = job_.request.length_of(split.seq);
    for (int row = 0; row < block.count; ++row) {
      const auto [query, head] = place_of(block, row);
      queries[row] = job_.q.as<const std::uint16_t>() + split.seq * job_.q.strides[0] +
                     query * job_.q.strides[1] + head * job_.q.strides[2];
      bounds[row] = std::max<std::int64_t>(length - job_.shape.s_q + query + 1, 0);
    }
    attention.begin(queries, block.count, job_.logit_factor(split.seq));
    const std::int64_t end = job_.causal ? std::min(split.end, bounds[block.count - 1]) : split.end;
    auto keys = keys_of(split.seq, block, split.begin, end);
    attention.attend(keys, job_.causal ? bounds : nullptr);
  }

  void finish(const Split& split, const RowBlock& block, const Attention& attention) const {
    const std::int64_t splits = schedule_.splits_of(split.seq);
    if (splits == 1) return write(split.seq, block, attention, attention.state());
    const std::int64_t head = split.seq * job_.shape.h_kv + block.head;
    const PartialState all = shared_.sums.from(head * job_.rows() + block.begin);
    auto& merged = shared_.merged[head * shared_.blocks_per_head + block.set * blocks_in_set_ +
                                  (block.begin - block.set * job_.rows_in_set()) / rows_in_block_];
    // Splits before this one belong to work that was handed out earlier, so they do arrive.
    while (merged.load(std::memory_order_acquire) != split.number) std::this_thread::yield();
    if (split.number == 0) {
      copy_state(attention.state(), all, block.count);
    } else {
      merge_state(attention.engine(), attention.state(), all, block.count);
    }
    if (split.number == splits - 1) write(split.seq, block, attention, all);
    merged.store(static_cast<std::int32_t>(split.number + 1), std::memory_order_release);
  }

  void write(std::int64_t seq, const RowBlock& block, const Attention& attention,
             const PartialState& state) const {
    for (int row = 0; row < block.count; ++row) {
      const auto [query, head] = place_of(block, row);
      const TensorView& out = job_.out;
      const TensorView& lse = job_.lse;
      finish_row(
          attention.engine(), state, row, job_.shape.d_v,
          {.out = out.as<std::uint16_t>() + seq * out.strides[0] + query * out.strides[1] +
                  head * out.strides[2],
           .type = out.type,
           .lse = lse.as<float>() + seq * lse.strides[0] + head * lse.strides[1] + query * lse.strides[2],
           .max_logit = nullptr,
           .sink = job_.attn_sink.given()
                       ? job_.attn_sink.as<const float>() + head * job_.attn_sink.strides[0]
                       : nullptr,
           .value_factor = job_.value_factor(seq)});
    }
  }

  const DecodeJob& job_;
  const SharedState& shared_;
  ScheduleTensors schedule_;
  std::int64_t rows_in_block_ = kWideRows;
  std::int64_t blocks_in_set_ = 1;
};

template <class Op>
std::size_t decode_workspace_bytes(const Op& op, const Execution& on) {
  const DecodeJob job = job_of(op);
  Workspace workspace;
  const SharedState shared(workspace, job);
  const ThreadMemory memory(workspace, threads_of(on),
                            [&](Workspace& mine) { DecodeBuffers(mine, op, job); });
  return workspace.bytes();
}

/// `keys_of(buffers, seq, block, begin, end)` makes the stream of keys.
template <class Op, class KeysOf>
void run_decode(const Op& op, const Execution& on, KeysOf&& keys_of) {
  const DecodeJob job = job_of(op);
  if (job.out.size() == 0) return;
  Workspace workspace(on);
  const SharedState shared(workspace, job);
  const int threads = threads_of(on);
  const ThreadMemory memory(workspace, threads, [&](Workspace& mine) { DecodeBuffers(mine, op, job); });
  const DecodeRun decode(job, shared, threads);
  WorkQueue queue(decode.work_count());
  parallel(threads, [&](int thread) {
    Workspace mine = memory.of(thread);
    DecodeBuffers buffers(mine, op, job);
    for (std::int64_t item = queue.take(); item >= 0; item = queue.take()) {
      decode.work(item, buffers.attention,
                  [&](std::int64_t seq, const RowBlock& block, std::int64_t begin, std::int64_t end) {
                    return keys_of(buffers, seq, block, begin, end);
                  });
    }
  });
}

Selection selection(const TensorView& indices, const PagedCache& cache, std::int64_t seq, std::int64_t query,
                    std::int64_t count) {
  if (!indices.given()) return {};
  return {indices.as<const std::int32_t>() + seq * indices.strides[0] + query * indices.strides[1], count,
          cache};
}

}  // namespace

std::size_t workspace_bytes(const DenseDecode& op, const Execution& on) {
  return decode_workspace_bytes(op, on);
}
std::size_t workspace_bytes(const SparseDecode& op, const Execution& on) {
  return decode_workspace_bytes(op, on);
}

void run(const DenseDecode& op, const Execution& on) {
  const PagedCache cache(op.kv_cache);
  run_decode(op, on,
             [&](DecodeBuffers& buffers, std::int64_t seq, const RowBlock& block, std::int64_t begin,
                 std::int64_t end) {
               PagedKeys keys(cache,
                              op.block_table.as<const std::int32_t>() + seq * op.block_table.strides[0],
                              op.block_table.strides[1], block.head, begin, end);
               if (DecodeBuffers::is_fp8(op)) {
                 keys.dequantize_with(buffers.attention.engine(), buffers.dequantized, op.q.shape[3]);
               }
               return keys;
             });
}

void run(const SparseDecode& op, const Execution& on) {
  const PagedCache cache(op.kv_cache);
  const PagedCache extra_cache = op.extra_kv_cache.given() ? PagedCache(op.extra_kv_cache) : PagedCache();
  const KvFormat format = *kv_format_of(op.kv_cache);
  const ScheduleRequest request = job_of(op).request;
  run_decode(op, on,
             [&](DecodeBuffers& buffers, std::int64_t seq, const RowBlock& block, std::int64_t begin,
                 std::int64_t end) {
               const std::int64_t main_count = request.main_length_of(seq);
               SelectedKeys keys(selection(op.indices, cache, seq, block.set, main_count),
                                 selection(op.extra_indices, extra_cache, seq, block.set,
                                           request.length_of(seq) - main_count),
                                 block.head, begin, end);
               if (DecodeBuffers::is_fp8(op)) {
                 keys.dequantize_with(buffers.attention.engine(), format, buffers.dequantized, op.q.shape[3]);
               }
               return keys;
             });
}

}  // namespace flashmla::cpu
