// Tests of ptx/threads.h.
#include "buffer.h"
#include "cuda/launch.h"
#include "cuda/ptx/threads.h"
#include "values.h"
#include "wrapper_test.h"

namespace flashmla::wrappers {
namespace {

struct IndicesParams {
  ptx::Index3* out;  // 4 a thread
};

__global__ void indices_kernel(const __grid_constant__ IndicesParams params) {
  const ptx::Index3 thread = ptx::thread_index(), block = ptx::block_index();
  const ptx::Index3 threads = ptx::block_size(), blocks = ptx::grid_size();
  const std::uint32_t in_block = (thread.z * threads.y + thread.y) * threads.x + thread.x;
  const std::uint32_t in_grid = (block.z * blocks.y + block.y) * blocks.x + block.x;
  ptx::Index3* const out = params.out + 4 * (in_grid * threads.x * threads.y * threads.z + in_block);
  out[0] = thread;
  out[1] = block;
  out[2] = threads;
  out[3] = blocks;
}

void indices(Outputs& outputs) {
  const Buffer<ptx::Index3> out(4 * 12 * 64);
  cuda::launch(indices_kernel, "indices", {.grid = {3, 2, 2}, .block = {8, 4, 2}},
               IndicesParams{.out = out.data()});
  outputs.add(out.contents());
}

struct WordsParams {
  const std::uint32_t* in;
  std::uint32_t* out;
};

__global__ void lanes_kernel(const __grid_constant__ WordsParams params) {
  const std::uint32_t thread = ptx::thread_index().x;
  params.out[3 * thread] = static_cast<std::uint32_t>(ptx::lane_index());
  params.out[3 * thread + 1] = static_cast<std::uint32_t>(ptx::warp_index());
  params.out[3 * thread + 2] = static_cast<std::uint32_t>(ptx::reread_thread_index());
}

void lanes(Outputs& outputs) {
  const Buffer<std::uint32_t> out(3 * 160);
  cuda::launch(lanes_kernel, "lanes", {.block = {160}}, WordsParams{.in = nullptr, .out = out.data()});
  outputs.add(out.contents());
}

struct Fields {
  std::uint32_t first[3];
  alignas(16) std::uint32_t second[61];
  std::uint16_t third;
};

/// Where the window begins is not said; it is a multiple of 1024.
__global__ void shared_addresses_kernel(const __grid_constant__ WordsParams params) {
  Fields& shared = ptx::shared_memory<Fields>();
  const std::uint32_t begin = ptx::shared_address(&shared);
  params.out[0] = begin % 1024;
  params.out[1] = ptx::shared_address(&shared.first[2]) - begin;
  params.out[2] = ptx::shared_address(&shared.second[60]) - begin;
  params.out[3] = ptx::shared_address(&shared.third) - begin;
}

void shared_addresses(Outputs& outputs) {
  const Buffer<std::uint32_t> out(4);
  cuda::launch(shared_addresses_kernel, "shared_addresses", {.shared_bytes = sizeof(Fields)},
               WordsParams{.in = nullptr, .out = out.data()});
  outputs.add(out.contents());
}

constexpr std::uint32_t kThreads = 256;

struct Exchange {
  std::uint32_t words[kThreads];
};

/// Each thread takes the word of the opposite one, several times.
__global__ void sync_block_kernel(const __grid_constant__ WordsParams params) {
  Exchange& shared = ptx::shared_memory<Exchange>();
  const std::uint32_t thread = ptx::thread_index().x;
  std::uint32_t word = params.in[thread];
  for (std::uint32_t round = 0; round < 4; ++round) {
    shared.words[thread] = word + round;
    ptx::sync_block();
    word ^= shared.words[kThreads - 1 - thread] * 3;
    ptx::sync_block();
  }
  params.out[thread] = word;
}

/// The two halves of the block meet on their own.
__global__ void barrier_sync_kernel(const __grid_constant__ WordsParams params) {
  Exchange& shared = ptx::shared_memory<Exchange>();
  const std::uint32_t thread = ptx::thread_index().x;
  const std::uint32_t half = thread / (kThreads / 2), base = half * (kThreads / 2);
  const int id = half == 0 ? 1 : 15;
  std::uint32_t word = params.in[thread];
  for (std::uint32_t round = 0; round < 4; ++round) {
    shared.words[thread] = word + round;
    ptx::barrier_sync(id, kThreads / 2);
    word ^= shared.words[base + (kThreads / 2 - 1 - (thread - base))] * 3;
    ptx::barrier_sync(id, kThreads / 2);
  }
  params.out[thread] = word;
}

/// The upper half writes, counts itself, and goes on; the lower half waits for it.
__global__ void barrier_arrive_kernel(const __grid_constant__ WordsParams params) {
  Exchange& shared = ptx::shared_memory<Exchange>();
  const std::uint32_t thread = ptx::thread_index().x;
  if (thread >= kThreads / 2) {
    shared.words[thread] = params.in[thread] * 5;
    ptx::barrier_arrive(3, kThreads);
    params.out[thread] = params.in[thread] + 1;
  } else {
    ptx::barrier_sync(3, kThreads);
    params.out[thread] = shared.words[kThreads - 1 - thread] ^ params.in[thread];
  }
}

__global__ void sync_warp_kernel(const __grid_constant__ WordsParams params) {
  Exchange& shared = ptx::shared_memory<Exchange>();
  const std::uint32_t thread = ptx::thread_index().x;
  std::uint32_t word = params.in[thread];
  for (std::uint32_t round = 0; round < 4; ++round) {
    shared.words[thread] = word + round;
    ptx::sync_warp();
    word ^= shared.words[thread ^ 21] * 3;
    ptx::sync_warp();
  }
  params.out[thread] = word;
}

/// Runs a kernel of one block of kThreads threads that takes and gives a word a thread.
template <void (*kKernel)(WordsParams)>
void exchange(Outputs& outputs) {
  const Buffer<std::uint32_t> in(random_words(kThreads, 1));
  const Buffer<std::uint32_t> out(kThreads);
  cuda::launch(kKernel, "exchange", {.block = {kThreads}, .shared_bytes = sizeof(Exchange)},
               WordsParams{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

constexpr std::uint32_t kShuffles = 64;

__global__ void shuffle_kernel(const __grid_constant__ WordsParams params) {
  const std::uint32_t thread = ptx::thread_index().x;
  for (std::uint32_t i = 0; i < kShuffles; ++i) {
    const std::uint32_t word = params.in[i * kThreads + thread];
    const int lane = static_cast<int>(word >> 27);
    // Half of the words are no NaN; shuffles keep the bits of each.
    const float moved = ptx::shuffle(__builtin_bit_cast(float, word), lane);
    std::uint32_t* const out = params.out + 3 * (i * kThreads + thread);
    out[0] = __builtin_bit_cast(std::uint32_t, moved);
    out[1] = ptx::shuffle(word, static_cast<int>(i % ptx::kWarpSize));
    out[2] = ptx::shuffle_xor(word, static_cast<int>(i % ptx::kWarpSize));
  }
}

void shuffle(Outputs& outputs) {
  const Buffer<std::uint32_t> in(random_words(kShuffles * kThreads, 2));
  const Buffer<std::uint32_t> out(3 * kShuffles * kThreads);
  cuda::launch(shuffle_kernel, "shuffle", {.block = {kThreads}},
               WordsParams{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

/// Votes in which no lane, some, and every lane says yes.
constexpr std::uint32_t kVotes = 32;

__global__ void votes_kernel(const __grid_constant__ WordsParams params) {
  const std::uint32_t thread = ptx::thread_index().x;
  for (std::uint32_t i = 0; i < kVotes; ++i) {
    const bool yes = params.in[i * kThreads + thread] != 0;
    std::uint32_t* const out = params.out + 3 * (i * kThreads + thread);
    out[0] = ptx::warp_ballot(yes);
    out[1] = ptx::warp_any(yes);
    out[2] = ptx::sync_block_or(yes);
  }
}

void votes(Outputs& outputs) {
  Random random(3);
  std::vector<std::uint32_t> predicates(kVotes * kThreads);
  for (std::uint32_t i = 0; i < kVotes; ++i) {
    const int percent = i % 4 == 0 ? 0 : i % 4 == 1 ? 1 : i % 4 == 2 ? 50 : 100;
    for (std::uint32_t thread = 0; thread < kThreads; ++thread) {
      predicates[i * kThreads + thread] = random.percent(percent);
    }
  }
  const Buffer<std::uint32_t> in(predicates);
  const Buffer<std::uint32_t> out(3 * kVotes * kThreads);
  cuda::launch(votes_kernel, "votes", {.block = {kThreads}}, WordsParams{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

/// Which lane is elected is not said, but it is one.
__global__ void elect_one_kernel(const __grid_constant__ WordsParams params) {
  const std::uint32_t elected = ptx::warp_ballot(ptx::elect_one());
  params.out[ptx::thread_index().x] = elected != 0 && (elected & (elected - 1)) == 0;
}

void elect_one(Outputs& outputs) {
  const Buffer<std::uint32_t> out(kThreads);
  cuda::launch(elect_one_kernel, "elect_one", {.block = {kThreads}},
               WordsParams{.in = nullptr, .out = out.data()});
  outputs.add(out.contents());
}

}  // namespace

std::vector<WrapperTest> thread_tests() {
  return {{"threads_indices", Needs::kSm80, indices},
          {"threads_lanes", Needs::kSm80, lanes},
          {"threads_shared_addresses", Needs::kSm80, shared_addresses},
          {"threads_sync_block", Needs::kSm80, exchange<sync_block_kernel>},
          {"threads_barrier_sync", Needs::kSm80, exchange<barrier_sync_kernel>},
          {"threads_barrier_arrive", Needs::kSm80, exchange<barrier_arrive_kernel>},
          {"threads_sync_warp", Needs::kSm80, exchange<sync_warp_kernel>},
          {"threads_shuffle", Needs::kSm80, shuffle},
          {"threads_votes", Needs::kSm80, votes},
          {"threads_elect_one", Needs::kSm80, elect_one}};
}

}  // namespace flashmla::wrappers
