// Launches dense decode: the schedule if none was given, attention of the parts, the merge of divided
// sequences.
#include <algorithm>
#include <limits>
#include <span>

#include "api/message.h"
#include "api/shapes.h"
#include "api/workspace.h"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/merge_kernel.h"
#include "cuda/portable/dense_decode_kernel.h"
#include "cuda/portable/portable.h"
#include "cuda/portable/schedule.h"

namespace flashmla::portable {
namespace {

struct DenseDecodeKernel {
  int rows;
  int blocks;  ///< of a multiprocessor
  std::uint32_t threads;
  std::size_t shared_bytes;
  void (*kernel)(DenseDecodeParams);
};

template <class T, int kRows, int kStages, int kDepthParts, int kBlocks>
constexpr DenseDecodeKernel entry() {
  using C = DenseDecodeConfig<T, kRows, kStages, kDepthParts, kBlocks>;
  static_assert(C::kKeys == kScheduleTile);
  return {kRows, kBlocks, C::kThreads, sizeof(DenseDecodeShared<C>), dense_decode_kernel<C>};
}

/// For up to 16, 32 and more rows, fastest first, by what shared memory has room for: 227 KB (SM90, SM100),
/// 163 KB (SM80), 99 KB (SM86, SM89, SM120). With 16 rows two blocks hide each other's latencies: 3.9 TB/s
/// instead of 3.6 on an H200. With more rows, which need the registers of a whole multiprocessor, four stages
/// let one block do so.
template <class T>
constexpr DenseDecodeKernel kFewRows[] = {entry<T, 16, 2, 4, 2>(), entry<T, 16, 3, 4, 1>(),
                                          entry<T, 16, 2, 4, 1>()};
template <class T>
constexpr DenseDecodeKernel kSomeRows[] = {entry<T, 32, 5, 4, 1>(), entry<T, 32, 3, 4, 1>(),
                                           entry<T, 32, 2, 4, 1>()};
template <class T>
constexpr DenseDecodeKernel kManyRows[] = {entry<T, 64, 4, 4, 1>(), entry<T, 64, 3, 2, 1>(),
                                           entry<T, 64, 2, 2, 1>()};

/// Shared memory of a multiprocessor that a block takes beside its own.
constexpr std::size_t kReservedBytes = 1024;

template <class T>
const DenseDecodeKernel* choose_kernel(std::int64_t rows, std::size_t shared_limit) {
  const std::span<const DenseDecodeKernel> kernels = rows <= 16   ? kFewRows<T>
                                                     : rows <= 32 ? kSomeRows<T>
                                                                  : kManyRows<T>;
  const auto chosen = std::find_if(kernels.begin(), kernels.end(), [&](const DenseDecodeKernel& kernel) {
    const auto blocks = static_cast<std::size_t>(kernel.blocks);
    return kernel.shared_bytes * blocks + kReservedBytes * (blocks - 1) <= shared_limit;
  });
  return chosen == kernels.end() ? nullptr : &*chosen;
}

/// The fastest kernel that the GPU has shared memory for; null if it has less than 99 KB a block.
const DenseDecodeKernel* choose_kernel(DataType type, std::int64_t rows, Device device) {
  const auto limit = static_cast<std::size_t>(cuda::shared_memory_limit(device.index));
  return type == DataType::kBf16 ? choose_kernel<ptx::Bf16>(rows, limit)
                                 : choose_kernel<ptx::F16>(rows, limit);
}

static_assert(entry<ptx::Bf16, 64, 3, 2, 1>().shared_bytes <= 163 * 1024);
static_assert(entry<ptx::Bf16, 16, 2, 4, 1>().shared_bytes <= 99 * 1024);
static_assert(entry<ptx::Bf16, 32, 2, 4, 1>().shared_bytes <= 99 * 1024);
static_assert(entry<ptx::Bf16, 64, 2, 2, 1>().shared_bytes <= 99 * 1024);

using schedule::ceil_div;

/// Of a grid along y and z.
constexpr std::int64_t kMostBlocks = 65535;

/// Everything that follows from shapes and the GPU.
struct Plan {
  DecodeShape shape;
  const DenseDecodeKernel* kernel;
  std::int64_t rows;
  std::int64_t row_tiles;
  std::int64_t parts;
  ScheduleRequest request;
  std::int64_t slots;

  Plan(const DenseDecode& op, const Execution& on) : shape(shape_of(op)), rows(shape.s_q * shape.group()) {
    kernel = choose_kernel(op.q.type, rows, on.device);
    row_tiles = ceil_div(rows, kernel->rows);
    parts = op.schedule.given() ? op.schedule.shape[0]
                                : parts_for(row_tiles * shape.h_kv, kernel->blocks, shape.batch, on.device);
    request = schedule_request(op, parts, kScheduleTile);
    slots = most_splits(request);
  }

  /// Splits that the batch may have, whatever its lengths are; 0 if no sequence can be divided.
  static std::int64_t most_splits(const ScheduleRequest& request) {
    if (request.split_size == 0 && request.parts == 1) return 0;
    if (request.split_size == 0) return request.batch + request.parts - 1;
    return request.batch * std::max<std::int64_t>(1, ceil_div(request.max_seqlen, request.split_size));
  }
};

struct Scratch {
  ScheduleScratch schedule;
  std::int32_t* rows;
  std::int32_t* num_splits;
  float* partial_out;
  float* partial_lse;

  Scratch(Workspace& workspace, const DenseDecode& op, const Plan& plan)
      : schedule(workspace, op.schedule.given() ? 0 : plan.request.batch,
                 op.schedule.given() ? 0 : plan.parts) {
    const auto batch = static_cast<std::size_t>(plan.shape.batch);
    const auto partial_rows = static_cast<std::size_t>(plan.slots * plan.shape.h_kv * plan.rows);
    rows = workspace.take<std::int32_t>(op.schedule.given() ? 0 : static_cast<std::size_t>(plan.parts) * 8);
    num_splits = workspace.take<std::int32_t>(op.schedule.given() ? 0 : batch + 1);
    partial_out = workspace.take<float>(partial_rows * static_cast<std::size_t>(plan.shape.d_v));
    partial_lse = workspace.take<float>(partial_rows);
  }
};

/// A schedule's tensors, given or made here.
struct ScheduleTensors {
  const std::int32_t* rows;
  std::int64_t row_stride;
  const std::int32_t* num_splits;
  std::int64_t num_splits_stride;
};

ScheduleTensors prepare_schedule(const DenseDecode& op, const Execution& on, const Plan& plan,
                                 const Scratch& scratch) {
  if (op.schedule.given()) {
    return {op.schedule.as<const std::int32_t>(), op.schedule.strides[0],
            op.num_splits.as<const std::int32_t>(), op.num_splits.strides[0]};
  }
  launch_schedule(plan.request, {scratch.rows, 8, scratch.num_splits, 1}, scratch.schedule, on);
  return {scratch.rows, 8, scratch.num_splits, 1};
}

tile::PagedCacheParams cache_params(const DenseDecode& op) {
  return {.rows = op.kv_cache.as<const std::uint16_t>(),
          .block_stride = op.kv_cache.strides[0],
          .token_stride = op.kv_cache.strides[1],
          .head_stride = op.kv_cache.strides[2],
          .blocks = op.kv_cache.shape[0],
          .block_table = op.block_table.as<const std::int32_t>(),
          .table_stride = op.block_table.strides[0],
          .table_entry_stride = op.block_table.strides[1],
          .page = tile::Divisor(static_cast<std::int32_t>(std::min(op.kv_cache.shape[1], kLargestLength)))};
}

void attend(const DenseDecode& op, const Execution& on, const Plan& plan, const Scratch& scratch,
            const ScheduleTensors& schedule) {
  const DecodeShape& shape = plan.shape;
  const DenseDecodeParams params{
      .cache = cache_params(op),
      .q = op.q.as<const std::uint16_t>(),
      .q_strides = {op.q.strides[0], op.q.strides[1], op.q.strides[2]},
      .out = op.out.as<std::uint16_t>(),
      .out_strides = {op.out.strides[0], op.out.strides[1], op.out.strides[2]},
      .lse = op.lse.as<float>(),
      .lse_strides = {op.lse.strides[0], op.lse.strides[1], op.lse.strides[2]},
      .partial_out = scratch.partial_out,
      .partial_lse = scratch.partial_lse,
      .slots = plan.slots,
      .request = plan.request,
      .schedule = schedule.rows,
      .schedule_stride = schedule.row_stride,
      .num_splits = schedule.num_splits,
      .num_splits_stride = schedule.num_splits_stride,
      .s_q = static_cast<std::int32_t>(shape.s_q),
      .group = tile::Divisor(static_cast<std::int32_t>(shape.group())),
      .rows = static_cast<std::int32_t>(plan.rows),
      .h_kv = static_cast<std::int32_t>(shape.h_kv),
      .d_qk = static_cast<std::int32_t>(shape.d_qk),
      .d_v = static_cast<std::int32_t>(shape.d_v),
      .logit_factor =
          static_cast<float>(softmax_scale_or_default(op.softmax_scale, shape.d_qk)) * tile::kLog2E,
      .causal = op.causal,
  };
  cuda::launch(plan.kernel->kernel, "dense_decode",
               {.grid = {static_cast<std::uint32_t>(plan.row_tiles), static_cast<std::uint32_t>(shape.h_kv),
                         static_cast<std::uint32_t>(plan.parts)},
                .block = {plan.kernel->threads},
                .shared_bytes = plan.kernel->shared_bytes,
                .overlaps_previous = cuda::kernels_overlap(on.device.index),
                .stream = on.stream},
               params);
}

void merge(const DenseDecode& op, const Execution& on, const Plan& plan, const Scratch& scratch,
           const ScheduleTensors& schedule) {
  const DecodeShape& shape = plan.shape;
  const auto pieces = static_cast<std::int32_t>(ceil_div(shape.d_v, cuda::kMergeColumns));
  const cuda::MergeParams params{
      .partial_out = scratch.partial_out,
      .partial_lse = scratch.partial_lse,
      .slots = plan.slots,
      .num_splits = schedule.num_splits,
      .num_splits_stride = schedule.num_splits_stride,
      .out = op.out.as<std::uint16_t>(),
      .out_strides = {op.out.strides[0], op.out.strides[1], op.out.strides[2]},
      .lse = op.lse.as<float>(),
      .lse_strides = {op.lse.strides[0], op.lse.strides[1], op.lse.strides[2]},
      .batch = static_cast<std::int32_t>(shape.batch),
      .rows = static_cast<std::int32_t>(plan.rows),
      .h_kv = static_cast<std::int32_t>(shape.h_kv),
      .d_v = static_cast<std::int32_t>(shape.d_v),
      .group = tile::Divisor(static_cast<std::int32_t>(shape.group())),
      .pieces = tile::Divisor(pieces),
  };
  const std::int64_t blocks = ceil_div(plan.rows * pieces, cuda::kMergeThreads / ptx::kWarpSize);
  // Enough to fill the GPU once if all sequences are divided; few to start if none is.
  const std::int64_t most =
      2 * cuda::kMergeBlocks * std::int64_t{cuda::device_properties(on.device.index).multiprocessors};
  const std::int64_t layers =
      std::clamp<std::int64_t>(most / (blocks * shape.h_kv), 1, std::min(shape.batch, kMostBlocks));
  cuda::launch(op.out.type == DataType::kBf16 ? cuda::merge_kernel<ptx::Bf16> : cuda::merge_kernel<ptx::F16>,
               "merge",
               {.grid = {static_cast<std::uint32_t>(blocks), static_cast<std::uint32_t>(shape.h_kv),
                         static_cast<std::uint32_t>(layers)},
                .block = {cuda::kMergeThreads},
                .overlaps_previous = cuda::kernels_overlap(on.device.index),
                .stream = on.stream},
               params);
}

}  // namespace

Support supports(const DenseDecode& op, const Execution& on) {
  const DecodeShape shape = shape_of(op);
  if (op.kv_cache.type == DataType::kU8) return {false, "has no e4m3 cache"};
  if (shape.d_qk > kMaxWidth) return {false, "needs d_qk <= 576"};
  if (shape.d_v > kMaxValueWidth) return {false, "needs d_v <= 512"};
  if (shape.batch == 0 || shape.s_q == 0) return {};
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (shape.s_q > kMost / 8 / shape.group()) return {false, "needs fewer than 2^28 rows"};
  if (choose_kernel(op.q.type, shape.s_q * shape.group(), on.device) == nullptr) {
    return {false, "needs 99 KB of shared memory a block"};
  }
  const Plan plan(op, on);
  if (shape.h_kv > kMostBlocks) return {false, "needs h_kv <= 65535"};
  if (plan.parts > kMostBlocks) return {false, "needs a schedule of at most 65535 parts"};
  if (plan.slots > kMost) return {false, "needs fewer than 2^31 splits"};
  constexpr std::int64_t kMostPartials = std::int64_t{1} << 46;  // f32 numbers; no GPU has memory for so many
  if (plan.slots > kMostPartials / (shape.h_kv * plan.rows * (shape.d_v + 1))) {
    return {false, "needs fewer splits times rows"};
  }
  return {};
}

std::size_t workspace_bytes(const DenseDecode& op, const Execution& on) {
  if (op.out.size() == 0) return 0;
  Workspace workspace;
  const Scratch scratch(workspace, op, Plan(op, on));
  return workspace.bytes();
}

void run(const DenseDecode& op, const Execution& on) {
  if (op.out.size() == 0) return;
  const cuda::CurrentDevice current(on.device.index);
  const Plan plan(op, on);
  Workspace workspace(on);
  const Scratch scratch(workspace, op, plan);
  const ScheduleTensors schedule = prepare_schedule(op, on, plan, scratch);
  attend(op, on, plan, scratch, schedule);
  if (plan.slots > 0) merge(op, on, plan, scratch, schedule);
}

std::int64_t schedule_parts(const DenseDecode& op, const Execution& on) {
  const std::int64_t h_kv = op.kv_cache.given() ? std::max<std::int64_t>(op.kv_cache.shape[2], 1) : 1;
  const std::int64_t rows = op.q.shape[1] * op.q.shape[2] / h_kv;
  const DenseDecodeKernel* kernel = choose_kernel(op.q.type, rows, on.device);
  if (kernel == nullptr) return 1;
  return parts_for(ceil_div(rows, kernel->rows) * h_kv, kernel->blocks, op.q.shape[0], on.device);
}

}  // namespace flashmla::portable
