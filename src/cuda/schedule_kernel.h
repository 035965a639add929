// The schedule of a decode step on a GPU: the rows and splits that make_schedule() of schedule/schedule.h
// writes, computed by one block.
//
// That algorithm walks over sequences and parts one by one. Here threads take them side by side: prefix sums
// of the sequences' costs, then each cut by a search in them, then prefix sums of the cuts that begin a
// split.
#pragma once

#include <cstdint>

#include "cuda/ptx/threads.h"
#include "cuda/tile/block_scan.h"
#include "schedule/schedule.h"

namespace flashmla::cuda {

struct ScheduleParams {
  ScheduleRequest request;
  std::int32_t* rows;
  std::int64_t row_stride;
  std::int32_t* num_splits;
  std::int64_t num_splits_stride;
  // Scratch memory.
  std::int64_t* costs;       ///< [batch + 1]: of all sequences before this one
  schedule::Position* cuts;  ///< [parts + 1]: where parts begin
  std::int32_t* inner_cuts;  ///< [parts + 1]: cuts up to this one that divide a sequence, equal ones once
};

inline constexpr int kScheduleThreads = 512;

struct ScheduleShared {
  tile::BlockScanShared<kScheduleThreads> scan;
};

class ScheduleBlock {
 public:
  FLASHMLA_DEVICE explicit ScheduleBlock(const ScheduleParams& params)
      : params_(params),
        request_(params.request),
        shared_(ptx::shared_memory<ScheduleShared>()),
        thread_(ptx::thread_index().x) {}

  FLASHMLA_DEVICE void run() {
    sum_costs();
    ptx::sync_block();
    place_cuts();
    ptx::sync_block();
    count_inner_cuts();
    ptx::sync_block();
    write_rows();
    if (!fixed()) write_num_splits();
  }

 private:
  FLASHMLA_DEVICE bool fixed() const { return request_.split_size > 0; }

  /// Calls `store(i, sum)` with `sum = value(0) + ... + value(i)` for `i` in `[0, count)`.
  template <class Value, class Store>
  FLASHMLA_DEVICE void prefix_sums(std::int64_t count, Value&& value, Store&& store) {
    std::int64_t before = 0;
    for (std::int64_t first = 0; first < count; first += kScheduleThreads) {
      const std::int64_t i = first + thread_;
      const std::int64_t sum = before + tile::block_inclusive_sum(i < count ? value(i) : 0, shared_.scan);
      if (i < count) store(i, sum);
      if (first + kScheduleThreads >= count) break;
      if (thread_ == kScheduleThreads - 1) shared_.scan.warp_sums[0] = sum;
      ptx::sync_block();
      before = shared_.scan.warp_sums[0];
      ptx::sync_block();
    }
  }

  FLASHMLA_DEVICE void sum_costs() {
    if (thread_ == 0) {
      params_.costs[0] = 0;
      params_.num_splits[0] = 0;
    }
    prefix_sums(
        request_.batch,
        [&](std::int64_t seq) { return schedule::cost_of(request_, request_.length_of(seq)); },
        [&](std::int64_t seq, std::int64_t sum) { params_.costs[seq + 1] = sum; });
    if (!fixed()) return;
    prefix_sums(
        request_.batch,
        [&](std::int64_t seq) { return schedule::fixed_splits(request_, request_.length_of(seq)); },
        [&](std::int64_t seq, std::int64_t sum) { store_num_splits(seq + 1, sum); });
  }

  FLASHMLA_DEVICE void store_num_splits(std::int64_t seq, std::int64_t splits) {
    params_.num_splits[seq * params_.num_splits_stride] = static_cast<std::int32_t>(splits);
  }

  FLASHMLA_DEVICE void place_cuts() {
    const std::int64_t total = params_.costs[request_.batch];
    for (std::int64_t p = thread_; p <= request_.parts; p += kScheduleThreads) {
      params_.cuts[p] = p == request_.parts ? schedule::Position{request_.batch, 0}
                        : p == 0            ? schedule::Position{0, 0}
                                            : cut(total, p);
    }
  }

  FLASHMLA_DEVICE schedule::Position cut(std::int64_t total, std::int64_t p) const {
    const std::int64_t at = schedule::cut_cost(request_, total, p);
    const std::int64_t seq = first(request_.batch, [&](std::int64_t s) { return params_.costs[s + 1] > at; });
    if (seq == request_.batch) return {seq, 0};
    return schedule::place_cut(request_, total / request_.parts, seq, request_.length_of(seq),
                               at - params_.costs[seq]);
  }

  /// The first number below `count` for which the predicate holds, as it then does for all behind; or
  /// `count`.
  template <class Predicate>
  FLASHMLA_DEVICE static std::int64_t first(std::int64_t count, Predicate&& holds) {
    std::int64_t low = 0;
    std::int64_t high = count;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (holds(middle)) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }

  FLASHMLA_DEVICE void count_inner_cuts() {
    prefix_sums(
        request_.parts + 1,
        [&](std::int64_t p) {
          const bool inner = params_.cuts[p].key > 0;
          return std::int64_t{inner && !(params_.cuts[p] == params_.cuts[p - 1])};
        },
        [&](std::int64_t p, std::int64_t sum) { params_.inner_cuts[p] = static_cast<std::int32_t>(sum); });
  }

  /// Cuts that divide sequences before `seq`.
  FLASHMLA_DEVICE std::int64_t inner_cuts_before(std::int64_t seq) const {
    const std::int64_t p =
        first(request_.parts + 1, [&](std::int64_t i) { return params_.cuts[i].seq >= seq; });
    return p == 0 ? 0 : params_.inner_cuts[p - 1];
  }

  FLASHMLA_DEVICE void write_rows() {
    for (std::int64_t p = thread_; p < request_.parts; p += kScheduleThreads) {
      const schedule::Position begin = params_.cuts[p];
      std::int64_t split = 0;
      if (begin.key > 0) {
        split =
            fixed() ? begin.key / request_.split_size : params_.inner_cuts[p] - inner_cuts_before(begin.seq);
      }
      schedule::part_between(request_, begin, params_.cuts[p + 1], split)
          .store(params_.rows + p * params_.row_stride);
    }
  }

  FLASHMLA_DEVICE void write_num_splits() {
    for (std::int64_t seq = 1 + thread_; seq <= request_.batch; seq += kScheduleThreads) {
      store_num_splits(seq, seq + inner_cuts_before(seq));
    }
  }

  const ScheduleParams& params_;
  const ScheduleRequest& request_;
  ScheduleShared& shared_;
  std::int64_t thread_;
};

}  // namespace flashmla::cuda
