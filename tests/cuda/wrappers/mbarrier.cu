// Tests of ptx/mbarrier.h. Where bytes of bulk copies are counted: bulk_copy.cu.
#include "buffer.h"
#include "cuda/launch.h"
#include "cuda/ptx/cluster.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/threads.h"
#include "kernel_steps.h"
#include "values.h"
#include "wrapper_test.h"

namespace flashmla::wrappers {
namespace {

struct Params {
  const std::uint32_t* in;
  std::uint32_t* out;
};

constexpr std::uint32_t kObservations = 7;

/// One thread alone ends one phase after the other.
__global__ void phases_kernel(const __grid_constant__ Params params) {
  ptx::Barrier& barrier = ptx::shared_memory<ptx::Barrier>();
  std::uint32_t* const out = params.out;
  make_barrier(barrier, 2);
  // The phase before the first counts as ended.
  out[0] = phase_ended(barrier, 1);
  for (std::uint32_t phase = 0; phase < 4; ++phase) {
    barrier.arrive();
    barrier.arrive();
    out[1 + phase] = phase_ended(barrier, phase & 1);
  }
  barrier.invalidate();

  auto& word = *reinterpret_cast<std::uint64_t*>(&barrier);
  word = params.in[0];
  out[5] = static_cast<std::uint32_t>(word + 1);

  barrier.init(1);
  barrier.arrive_expect_bytes(0);
  out[6] = phase_ended(barrier, 0);
}

void phases(Outputs& outputs) {
  const Buffer<std::uint32_t> in(random_words(1, 1));
  const Buffer<std::uint32_t> out(kObservations);
  cuda::launch(phases_kernel, "phases", {.shared_bytes = sizeof(ptx::Barrier)},
               Params{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

constexpr std::uint32_t kStages = 2;
constexpr std::uint32_t kTiles = 9;
constexpr std::uint32_t kProducers = 64;  // and as many consumers

struct Ring {
  ptx::Barrier full[kStages];
  ptx::Barrier empty[kStages];
  std::uint32_t words[kStages][kProducers];
};

FLASHMLA_DEVICE void produce(Ring& shared, const Params& params, std::uint32_t thread) {
  bool good = true;
  for (std::uint32_t tile = 0; tile < kTiles; ++tile) {
    const std::uint32_t stage = tile % kStages, round = tile / kStages;
    good = phase_ended(shared.empty[stage], (round & 1) ^ 1) && good;
    shared.words[stage][thread] = params.in[tile * kProducers + thread];
    shared.full[stage].arrive();
  }
  params.out[thread] = good;
}

FLASHMLA_DEVICE void consume(Ring& shared, const Params& params, std::uint32_t thread) {
  std::uint32_t hash = 1;
  for (std::uint32_t tile = 0; tile < kTiles; ++tile) {
    const std::uint32_t stage = tile % kStages, round = tile / kStages;
    const bool good = phase_ended(shared.full[stage], round & 1);
    hash = hash * 31 + good;
    for (std::uint32_t i = 0; i < 3; ++i) {
      hash = hash * 31 + shared.words[stage][(thread * 5 + i * 23) % kProducers];
    }
    shared.empty[stage].arrive();
  }
  params.out[kProducers + thread] = hash;
}

__global__ void ring_kernel(const __grid_constant__ Params params) {
  Ring& shared = ptx::shared_memory<Ring>();
  const std::uint32_t thread = ptx::thread_index().x;
  if (thread == 0) {
    for (std::uint32_t stage = 0; stage < kStages; ++stage) {
      shared.full[stage].init(kProducers);
      shared.empty[stage].init(kProducers);
    }
    ptx::fence_barrier_init();
  }
  ptx::sync_block();
  if (thread < kProducers) {
    produce(shared, params, thread);
  } else {
    consume(shared, params, thread - kProducers);
  }
}

void ring(Outputs& outputs) {
  const Buffer<std::uint32_t> in(random_words(kTiles * kProducers, 2));
  const Buffer<std::uint32_t> out(2 * kProducers);
  cuda::launch(ring_kernel, "ring", {.block = {2 * kProducers}, .shared_bytes = sizeof(Ring)},
               Params{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

constexpr std::uint32_t kCopiers = 128;

struct Copied {
  ptx::Barrier barrier;
  ptx::Bytes16 wide[kCopiers];
  std::uint32_t narrow[kCopiers];
};

/// Each thread's arrival comes with the last of its two copies.
__global__ void after_copies_kernel(const __grid_constant__ Params params) {
  Copied& shared = ptx::shared_memory<Copied>();
  const std::uint32_t thread = ptx::thread_index().x;
  if (thread == 0) {
    make_barrier(shared.barrier, kCopiers);
  }
  ptx::sync_block();
  std::uint32_t hash = 1;
  for (std::uint32_t round = 0; round < 3; ++round) {
    const std::uint32_t* const in = params.in + 5 * kCopiers * round;
    ptx::copy_async_16(&shared.wide[thread], in + 4 * thread, 16);
    ptx::copy_async_4(&shared.narrow[thread], in + 4 * kCopiers + thread, 4);
    shared.barrier.arrive_after_copies();
    hash = hash * 31 + phase_ended(shared.barrier, round & 1);
    const std::uint32_t other = (thread * 7 + 50) % kCopiers;
    for (std::uint32_t i = 0; i < 4; ++i) hash = hash * 31 + shared.wide[other].words[i];
    hash = hash * 31 + shared.narrow[other];
    ptx::sync_block();
  }
  params.out[thread] = hash;
}

void after_copies(Outputs& outputs) {
  const Buffer<std::uint32_t> in(random_words(3 * 5 * kCopiers, 3));
  const Buffer<std::uint32_t> out(kCopiers);
  cuda::launch(after_copies_kernel, "after_copies", {.block = {kCopiers}, .shared_bytes = sizeof(Copied)},
               Params{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

constexpr std::uint32_t kClusterBlocks = 4;
constexpr std::uint32_t kPeers = 64;  // threads of a block

struct Mailbox {
  ptx::Barrier barrier;
  std::uint32_t words[kPeers];
};

/// Words go around: each block writes to the next one and arrives there.
__global__ void arrive_at_kernel(const __grid_constant__ Params params) {
  Mailbox& shared = ptx::shared_memory<Mailbox>();
  const std::uint32_t thread = ptx::thread_index().x, rank = ptx::cluster_rank();
  const std::uint32_t in_grid = ptx::block_index().x * kPeers + thread;
  if (thread == 0) {
    make_barrier(shared.barrier, kPeers);
  }
  ptx::cluster_arrive();
  ptx::cluster_wait();
  std::uint32_t word = params.in[in_grid];
  for (std::uint32_t round = 0; round < 3; ++round) {
    const std::uint32_t next = (rank + 1) % kClusterBlocks;
    *ptx::peer_shared(&shared.words[kPeers - 1 - thread], next) = word + round;
    shared.barrier.arrive_at(next);
    const bool good = phase_ended_in_cluster(shared.barrier, round & 1);
    word = word * 31 + shared.words[thread] + good;
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
  params.out[in_grid] = word;
}

void arrive_at(Outputs& outputs) {
  const Buffer<std::uint32_t> in(random_words(2 * kClusterBlocks * kPeers, 4));
  const Buffer<std::uint32_t> out(2 * kClusterBlocks * kPeers);
  cuda::launch(arrive_at_kernel, "arrive_at",
               {.grid = {2 * kClusterBlocks},
                .block = {kPeers},
                .shared_bytes = sizeof(Mailbox),
                .cluster = kClusterBlocks},
               Params{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

}  // namespace

std::vector<WrapperTest> mbarrier_tests() {
  return {{"mbarrier_phases", Needs::kSm90, phases},
          {"mbarrier_ring", Needs::kSm90, ring},
          {"mbarrier_after_copies", Needs::kSm90, after_copies},
          {"mbarrier_arrive_at", Needs::kSm90, arrive_at}};
}

}  // namespace flashmla::wrappers
