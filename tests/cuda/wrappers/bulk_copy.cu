// Tests of ptx/bulk_copy.h. For multicast see multicast.cu.
#include "buffer.h"
#include "cuda/launch.h"
#include "cuda/ptx/bulk_copy.h"
#include "cuda/ptx/cluster.h"
#include "cuda/ptx/fence.h"
#include "cuda/ptx/threads.h"
#include "cuda/tensor_map.h"
#include "kernel_steps.h"
#include "values.h"
#include "wrapper_test.h"

namespace flashmla::wrappers {
namespace {

constexpr std::uint32_t kThreads = 64;
constexpr std::uint32_t kWords = 1024;  // of 4 bytes

struct Params {
  const std::uint32_t* in;
  std::uint32_t* out;
};

struct Pieces {
  ptx::Barrier barrier;
  alignas(16) std::uint32_t words[kWords];
};

/// Copies of 16 to 2048 bytes, started by two threads that count their bytes in different ways.
__global__ void copy_bulk_kernel(const __grid_constant__ Params params) {
  Pieces& shared = ptx::shared_memory<Pieces>();
  const std::uint32_t thread = ptx::thread_index().x;
  if (thread == 0) make_barrier(shared.barrier, 2);
  ptx::sync_block();
  if (thread == 0) {
    shared.barrier.expect_bytes(2048 + 16);
    ptx::copy_bulk(&shared.words[512], params.in, 2048, shared.barrier);
    ptx::copy_bulk(&shared.words[508], params.in + 600, 16, shared.barrier);
    shared.barrier.arrive();
  } else if (thread == 32) {
    shared.barrier.arrive_expect_bytes(1984 + 48);
    ptx::copy_bulk(&shared.words[0], params.in + 4, 1984, shared.barrier);
    ptx::copy_bulk(&shared.words[496], params.in + 700, 48, shared.barrier);
  }
  const bool good = phase_ended(shared.barrier, 0);
  write_out(params.out, shared.words, kWords);
  params.out[kWords + thread] = good;
}

void copy_bulk(Outputs& outputs) {
  const Buffer<std::uint32_t> in(random_words(kWords, 1));
  const Buffer<std::uint32_t> out(kWords + kThreads);
  cuda::launch(copy_bulk_kernel, "copy_bulk", {.block = {kThreads}, .shared_bytes = sizeof(Pieces)},
               Params{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

struct Twins {
  ptx::Barrier barrier;
  alignas(16) std::uint32_t own[kWords];
  alignas(16) std::uint32_t received[kWords];
};

/// Two blocks send each other what they have.
__global__ void to_peer_kernel(const __grid_constant__ Params params) {
  Twins& shared = ptx::shared_memory<Twins>();
  const std::uint32_t thread = ptx::thread_index().x, block = ptx::block_index().x;
  if (thread == 0) {
    make_barrier(shared.barrier, 1);
    shared.barrier.arrive_expect_bytes(sizeof(shared.received));
  }
  for (std::uint32_t i = thread; i < kWords; i += kThreads) shared.own[i] = params.in[block * kWords + i];
  ptx::fence_async_proxy();
  ptx::cluster_arrive();
  ptx::cluster_wait();
  if (thread == 0) {
    constexpr std::uint32_t kFirst = 400;
    const std::uint32_t peer = 1 - ptx::cluster_rank();
    ptx::copy_bulk_to_peer(shared.received, shared.own, 4 * kFirst, shared.barrier, peer);
    ptx::copy_bulk_to_peer(&shared.received[kFirst], &shared.own[kFirst], 4 * (kWords - kFirst),
                           shared.barrier, peer);
  }
  const bool good = phase_ended_in_cluster(shared.barrier, 0);
  std::uint32_t* const out = params.out + block * (kWords + kThreads);
  write_out(out, shared.received, kWords);
  out[kWords + thread] = good;
  // A block must not end while its peer reads or writes its memory.
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

void to_peer(Outputs& outputs) {
  constexpr std::uint32_t kBlocks = 4;
  const Buffer<std::uint32_t> in(random_words(kBlocks * kWords, 2));
  const Buffer<std::uint32_t> out(kBlocks * (kWords + kThreads));
  cuda::launch(to_peer_kernel, "to_peer",
               {.grid = {kBlocks}, .block = {kThreads}, .shared_bytes = sizeof(Twins), .cluster = 2},
               Params{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

/// Stores of three groups. The memory of the first is used again as soon as it was read.
__global__ void store_bulk_kernel(const __grid_constant__ Params params) {
  Pieces& shared = ptx::shared_memory<Pieces>();
  const std::uint32_t thread = ptx::thread_index().x;
  constexpr std::uint32_t kHalf = kWords / 2;
  for (std::uint32_t i = thread; i < kWords; i += kThreads) shared.words[i] = params.in[i];
  ptx::fence_async_proxy();
  ptx::sync_block();
  if (thread == 0) {
    ptx::store_bulk(params.out, shared.words, 4 * kHalf);
    ptx::store_bulk_commit();
    ptx::store_bulk(params.out + kHalf, &shared.words[kHalf], 4 * (kHalf - 4));
    ptx::store_bulk(params.out + kWords - 4, &shared.words[kWords - 4], 16);
    ptx::store_bulk_commit();
    ptx::store_bulk_wait_read<1>();
  }
  ptx::sync_block();
  for (std::uint32_t i = thread; i < kHalf; i += kThreads) shared.words[i] ^= 0x55555555u;
  ptx::fence_async_proxy();
  ptx::sync_block();
  if (thread == 0) {
    ptx::store_bulk(params.out + kWords, shared.words, 4 * kHalf);
    ptx::store_bulk_commit();
    ptx::store_bulk_wait<0>();
  }
}

void store_bulk(Outputs& outputs) {
  const Buffer<std::uint32_t> in(random_words(kWords, 3));
  const Buffer<std::uint32_t> out(kWords + kWords / 2);
  cuda::launch(store_bulk_kernel, "store_bulk", {.block = {kThreads}, .shared_bytes = sizeof(Pieces)},
               Params{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

struct ReduceParams {
  const float* in;
  float* sums;
};

struct Addends {
  alignas(16) float numbers[kWords];
};

__global__ void reduce_add_bulk_kernel(const __grid_constant__ ReduceParams params) {
  Addends& shared = ptx::shared_memory<Addends>();
  const std::uint32_t thread = ptx::thread_index().x, block = ptx::block_index().x;
  for (std::uint32_t i = thread; i < kWords; i += kThreads) {
    shared.numbers[i] = params.in[block * kWords + i];
  }
  ptx::fence_async_proxy();
  ptx::sync_block();
  if (thread == 0) {
    ptx::reduce_add_bulk(params.sums, shared.numbers, sizeof(shared.numbers) - 16);
    ptx::store_bulk_commit();
    ptx::store_bulk_wait<0>();
  }
}

void reduce_add_bulk(Outputs& outputs) {
  constexpr std::uint32_t kBlocks = 8;
  const Buffer<float> in(random_integers(kBlocks * kWords, 4));
  const Buffer<float> sums(random_integers(kWords, 5));
  cuda::launch(reduce_add_bulk_kernel, "reduce_add_bulk",
               {.grid = {kBlocks}, .block = {kThreads}, .shared_bytes = sizeof(Addends)},
               ReduceParams{.in = in.data(), .sums = sums.data()});
  outputs.add(sums.contents());
}

/// Where a box begins: x, y, z, w.
struct Corner {
  std::int32_t at[4];
};

constexpr std::uint32_t kCorners = 6;

struct BoxParams {
  ptx::TensorMap map;
  Corner corners[kCorners];
  std::uint32_t box_bytes;
  std::uint32_t* out;
};

constexpr std::uint32_t kLargestBox = 8192;

struct BoxMemory {
  alignas(1024) std::uint32_t words[kLargestBox / 4];
  ptx::Barrier barrier;
};

template <int kDimensions>
FLASHMLA_DEVICE void copy_box(BoxMemory& shared, const BoxParams& params, const std::int32_t (&at)[4]) {
  if constexpr (kDimensions == 2) {
    ptx::copy_box(shared.words, params.map, at[0], at[1], shared.barrier);
  } else if constexpr (kDimensions == 3) {
    ptx::copy_box(shared.words, params.map, at[0], at[1], at[2], shared.barrier);
  } else {
    ptx::copy_box(shared.words, params.map, at[0], at[1], at[2], at[3], shared.barrier);
  }
}

/// One box after the other; shared memory is written out as it lies.
template <int kDimensions>
__global__ void copy_box_kernel(const __grid_constant__ BoxParams params) {
  BoxMemory& shared = ptx::shared_memory<BoxMemory>();
  const std::uint32_t thread = ptx::thread_index().x;
  if (thread == 0) {
    ptx::prefetch_tensor_map(params.map);
    make_barrier(shared.barrier, 1);
  }
  ptx::sync_block();
  for (std::uint32_t i = 0; i < kCorners; ++i) {
    if (thread == 0) {
      shared.barrier.arrive_expect_bytes(params.box_bytes);
      copy_box<kDimensions>(shared, params, params.corners[i].at);
    }
    const bool good = phase_ended(shared.barrier, i & 1);
    std::uint32_t* const out = params.out + i * (params.box_bytes / 4 + kThreads);
    write_out(out, shared.words, params.box_bytes / 4);
    out[params.box_bytes / 4 + thread] = good;
    ptx::sync_block();
  }
}

/// Copies boxes of a random tensor: `kCorners` that lie inside and over each of its ends. Strides leave gaps.
/// Rows of boxes begin at multiples of 16 bytes.
template <int kDimensions>
void copy_boxes(Outputs& outputs, cuda::BoxedTensor tensor, std::uint64_t seed) {
  Random random(seed);
  // Each stride is a multiple of the one before, as the driver wants it.
  std::uint64_t stride = (tensor.sizes[0] * tensor.element_bytes + 15) / 16 * 16 + 16;
  std::uint32_t box_bytes = tensor.box[0] * tensor.element_bytes;
  for (std::size_t i = 1; i < kDimensions; ++i) {
    tensor.stride_bytes[i - 1] = stride;
    stride *= tensor.sizes[i] + 1;
    box_bytes *= tensor.box[i];
  }
  const Buffer<std::uint32_t> in(random_words(stride / 4, seed));
  tensor.data = in.data();
  tensor.dimensions = kDimensions;
  const Buffer<std::uint32_t> out(kCorners * (box_bytes / 4 + kThreads));
  BoxParams params{
      .map = cuda::make_tensor_map(tensor), .corners = {}, .box_bytes = box_bytes, .out = out.data()};
  for (std::uint32_t i = 1; i < kCorners; ++i) {
    for (std::size_t k = 0; k < kDimensions; ++k) {
      const int size = static_cast<int>(tensor.sizes[k]), box = static_cast<int>(tensor.box[k]);
      const int at = i == 1   ? random.between(0, size - box)
                     : i == 2 ? -random.between(0, box)
                     : i == 3 ? size - random.between(0, box)
                              : random.between(-box, size);
      const int step = k == 0 ? 16 / static_cast<int>(tensor.element_bytes) : 1;
      params.corners[i].at[k] = at / step * step;
    }
  }
  cuda::launch(copy_box_kernel<kDimensions>, "copy_box",
               {.block = {kThreads}, .shared_bytes = sizeof(BoxMemory)}, params);
  outputs.add(out.contents());
}

template <ptx::Swizzle kSwizzle, std::uint32_t kRowElements>
void copy_box_2d(Outputs& outputs) {
  copy_boxes<2>(outputs, {.sizes = {200, 50}, .box = {kRowElements, 24}, .swizzle = kSwizzle}, 6);
}

/// Only whole rows are outside.
void copy_box_rows(Outputs& outputs) {
  copy_boxes<2>(outputs, {.sizes = {64, 50}, .box = {64, 24}, .swizzle = ptx::Swizzle::k128}, 14);
}

/// The last 16 bytes of a row are in part outside.
void copy_box_odd_width(Outputs& outputs) {
  copy_boxes<2>(outputs, {.sizes = {125, 50}, .box = {64, 24}, .swizzle = ptx::Swizzle::k128}, 15);
}

void copy_box_bytes(Outputs& outputs) {
  copy_boxes<2>(outputs,
                {.element_bytes = 1, .sizes = {304, 50}, .box = {128, 24}, .swizzle = ptx::Swizzle::k128}, 7);
}

void copy_box_floats(Outputs& outputs) {
  copy_boxes<2>(outputs, {.element_bytes = 4, .sizes = {76, 50}, .box = {8, 33}}, 8);
}

void copy_box_3d(Outputs& outputs) {
  copy_boxes<3>(outputs, {.sizes = {104, 20, 7}, .box = {64, 8, 3}, .swizzle = ptx::Swizzle::k128}, 9);
}

void copy_box_4d(Outputs& outputs) {
  copy_boxes<4>(outputs, {.sizes = {72, 9, 5, 4}, .box = {32, 4, 3, 2}, .swizzle = ptx::Swizzle::k64}, 10);
}

struct StoreBoxParams {
  ptx::TensorMap map;
  Corner corners[3];
  const std::uint32_t* in;
};

/// Each block stores a box of 2048 bytes; they do not overlap.
__global__ void store_box_kernel(const __grid_constant__ StoreBoxParams params) {
  BoxMemory& shared = ptx::shared_memory<BoxMemory>();
  const std::uint32_t thread = ptx::thread_index().x, block = ptx::block_index().x;
  for (std::uint32_t i = thread; i < 512; i += kThreads) shared.words[i] = params.in[block * 512 + i];
  ptx::fence_async_proxy();
  ptx::sync_block();
  if (thread == 0) {
    const Corner& corner = params.corners[block];
    ptx::store_box(params.map, corner.at[0], corner.at[1], shared.words);
    ptx::store_bulk_commit();
    ptx::store_bulk_wait<0>();
  }
}

template <ptx::Swizzle kSwizzle, std::uint32_t kColumns>
void store_box(Outputs& outputs) {
  constexpr std::uint32_t kRows = 40, kStride = 144;
  const Buffer<std::uint32_t> in(random_words(3 * 512, 12));
  const Buffer<std::uint32_t> tensor(random_words(kRows * kStride / 2, 13));
  const std::uint32_t row = kSwizzle == ptx::Swizzle::k32 ? 16 : 64;
  const ptx::TensorMap map = cuda::make_tensor_map({.data = tensor.data(),
                                                    .sizes = {kColumns, kRows},
                                                    .stride_bytes = {kStride * 2},
                                                    .box = {row, 1024 / row},
                                                    .swizzle = kSwizzle});
  // With rows of 16 elements a box is 64 rows high. Boxes reach over the ends of the tensor, and none begins
  // in front of it.
  cuda::launch(store_box_kernel, "store_box",
               {.grid = {3}, .block = {kThreads}, .shared_bytes = sizeof(BoxMemory)},
               StoreBoxParams{.map = map, .corners = {{{8, 18}}, {{80, 30}}, {{64, 0}}}, .in = in.data()});
  outputs.add(tensor.contents());
}

}  // namespace

std::vector<WrapperTest> bulk_copy_tests() {
  return {{"bulk_copy", Needs::kSm90, copy_bulk},
          {"bulk_copy_to_peer", Needs::kSm90, to_peer},
          {"bulk_store", Needs::kSm90, store_bulk},
          {"bulk_reduce_add", Needs::kSm90, reduce_add_bulk},
          {"box_2d", Needs::kSm90, copy_box_2d<ptx::Swizzle::kNone, 72>},
          {"box_2d_swizzle_32", Needs::kSm90, copy_box_2d<ptx::Swizzle::k32, 16>},
          {"box_2d_swizzle_64", Needs::kSm90, copy_box_2d<ptx::Swizzle::k64, 32>},
          {"box_2d_swizzle_128", Needs::kSm90, copy_box_2d<ptx::Swizzle::k128, 64>},
          {"box_2d_rows", Needs::kSm90, copy_box_rows},
          {"box_2d_odd_width", Needs::kSm90, copy_box_odd_width},
          {"box_2d_bytes", Needs::kSm90, copy_box_bytes},
          {"box_2d_floats", Needs::kSm90, copy_box_floats},
          {"box_3d", Needs::kSm90, copy_box_3d},
          {"box_4d", Needs::kSm90, copy_box_4d},
          {"box_store", Needs::kSm90, store_box<ptx::Swizzle::kNone, 120>},
          {"box_store_odd_width", Needs::kSm90, store_box<ptx::Swizzle::kNone, 125>},
          {"box_store_swizzle_32", Needs::kSm90, store_box<ptx::Swizzle::k32, 120>},
          {"box_store_swizzle_128", Needs::kSm90, store_box<ptx::Swizzle::k128, 120>}};
}

}  // namespace flashmla::wrappers
