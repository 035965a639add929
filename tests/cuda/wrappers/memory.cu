// Tests of ptx/memory.h, and of the fence that orders global memory.
#include "buffer.h"
#include "cuda/launch.h"
#include "cuda/ptx/fence.h"
#include "cuda/ptx/memory.h"
#include "cuda/ptx/threads.h"
#include "values.h"
#include "wrapper_test.h"

namespace flashmla::wrappers {
namespace {

constexpr std::uint32_t kThreads = 128;
constexpr std::uint32_t kBlocks = 8;

struct CopyParams {
  const ptx::Bytes16* in;
  ptx::Bytes16* out;
};

__global__ void copy_once_kernel(const __grid_constant__ CopyParams params) {
  const std::uint32_t i = ptx::block_index().x * kThreads + ptx::thread_index().x;
  ptx::prefetch_l2(params.in + i);
  ptx::Bytes16 value = ptx::load_once(params.in + i);
  value.words[0] ^= i;
  value.words[3] += value.words[1];
  ptx::store_once(params.out + kBlocks * kThreads - 1 - i, value);
}

void copy_once(Outputs& outputs) {
  const Buffer<std::uint32_t> in(random_words(4 * kBlocks * kThreads, 1));
  const Buffer<ptx::Bytes16> out(kBlocks * kThreads);
  cuda::launch(copy_once_kernel, "copy_once", {.grid = {kBlocks}, .block = {kThreads}},
               CopyParams{.in = reinterpret_cast<const ptx::Bytes16*>(in.data()), .out = out.data()});
  outputs.add(out.contents());
}

/// What many threads change at once; the results do not depend on their order.
struct Counters {
  std::uint32_t tickets;
  float sum;
  std::int32_t largest;
  std::uint32_t winners;
  std::uint32_t owner;
};

struct AtomicsParams {
  Counters* global;
  Counters* of_block;    // what each block's shared counters were in the end
  std::uint32_t* drawn;  // how often each ticket was drawn
  const float* numbers;  // integers
  const std::int32_t* marks;
};

FLASHMLA_DEVICE void count(Counters& counters, std::uint32_t i, const AtomicsParams& params) {
  const std::uint32_t ticket = ptx::atomic_add(&counters.tickets, 1u);
  ptx::atomic_add(&params.drawn[ticket], 1u);
  ptx::atomic_add(&counters.sum, params.numbers[i]);
  ptx::atomic_max(&counters.largest, params.marks[i]);
  if (ptx::atomic_compare_exchange(&counters.owner, 0, i + 1) == 0) ptx::atomic_add(&counters.winners, 1u);
}

__global__ void atomics_kernel(const __grid_constant__ AtomicsParams params) {
  Counters& shared = ptx::shared_memory<Counters>();
  const std::uint32_t thread = ptx::thread_index().x, block = ptx::block_index().x;
  if (thread == 0) shared = Counters{.tickets = 0, .sum = 0, .largest = -5, .winners = 0, .owner = 0};
  ptx::sync_block();
  count(shared, block * kThreads + thread, params);
  count(*params.global, block * kThreads + thread, params);
  ptx::sync_block();
  if (thread == 0) {
    shared.owner = shared.owner != 0;
    params.of_block[block] = shared;
  }
}

void atomics(Outputs& outputs) {
  Random random(2);
  std::vector<std::int32_t> values(kBlocks * kThreads);
  for (auto& value : values) value = random.between(-1'000'000, 1'000'000);
  const Buffer<float> numbers(random_integers(kBlocks * kThreads, 3));
  const Buffer<std::int32_t> marks(values);
  const Buffer<Counters> global(std::vector<Counters>{{0, 0.0f, -2'000'000, 0, 0}});
  const Buffer<Counters> of_block(kBlocks);
  const Buffer<std::uint32_t> drawn(std::vector<std::uint32_t>(kBlocks * kThreads));
  cuda::launch(atomics_kernel, "atomics",
               {.grid = {kBlocks}, .block = {kThreads}, .shared_bytes = sizeof(Counters)},
               AtomicsParams{.global = global.data(),
                             .of_block = of_block.data(),
                             .drawn = drawn.data(),
                             .numbers = numbers.data(),
                             .marks = marks.data()});
  std::vector<Counters> result = global.contents();
  result[0].owner = result[0].owner != 0;
  outputs.add(result);
  outputs.add(of_block.contents());
  outputs.add(drawn.contents());
}

struct OldValuesParams {
  std::uint32_t* words;  // 3: count, signed maximum, exchanged
  float* sum;
  const std::uint32_t* in;
  const float* numbers;
  std::uint32_t* out;  // 4 a step
  std::uint32_t steps;
};

/// One thread alone: here the old values are known too.
__global__ void old_values_kernel(const __grid_constant__ OldValuesParams params) {
  for (std::uint32_t i = 0; i < params.steps; ++i) {
    std::uint32_t* const out = params.out + 4 * i;
    const std::uint32_t word = params.in[i];
    out[0] = ptx::atomic_add(params.words, word);
    out[1] = __builtin_bit_cast(std::uint32_t, ptx::atomic_add(params.sum, params.numbers[i]));
    out[2] = static_cast<std::uint32_t>(
        ptx::atomic_max(reinterpret_cast<std::int32_t*>(params.words + 1), static_cast<std::int32_t>(word)));
    // Every other exchange finds what it expects.
    const std::uint32_t expected = i % 2 == 0 ? params.words[2] : word;
    out[3] = ptx::atomic_compare_exchange(params.words + 2, expected, word);
  }
}

void old_values(Outputs& outputs) {
  constexpr std::uint32_t kSteps = 64;
  const Buffer<std::uint32_t> words(std::vector<std::uint32_t>{7, 0x80000000u, 9});
  const Buffer<float> sum(std::vector<float>{0.125f});
  const Buffer<std::uint32_t> in(random_words(kSteps, 4));
  const Buffer<float> numbers(random_integers(kSteps, 5));
  const Buffer<std::uint32_t> out(4 * kSteps);
  cuda::launch(old_values_kernel, "old_values", {},
               OldValuesParams{.words = words.data(),
                               .sum = sum.data(),
                               .in = in.data(),
                               .numbers = numbers.data(),
                               .out = out.data(),
                               .steps = kSteps});
  outputs.add(out.contents());
  outputs.add(words.contents());
  outputs.add(sum.contents());
}

constexpr std::uint32_t kSums = 64;  // a block

struct ReduceParams {
  const float* numbers;  // 4 a thread
  float* sums;           // kSums single ones, then kSums in quadruples
};

__global__ void reduce_add_kernel(const __grid_constant__ ReduceParams params) {
  const std::uint32_t thread = ptx::thread_index().x;
  const float* const numbers = params.numbers + 4 * (ptx::block_index().x * kThreads + thread);
  ptx::reduce_add(params.sums + thread % kSums, numbers[0]);
  const float four[4] = {numbers[0], numbers[1], numbers[2], numbers[3]};
  ptx::reduce_add(params.sums + kSums + thread * 4 % kSums, four);
}

void reduce_add(Outputs& outputs) {
  const Buffer<float> numbers(random_integers(4 * kBlocks * kThreads, 6));
  const Buffer<float> sums(random_integers(2 * kSums, 7));
  cuda::launch(reduce_add_kernel, "reduce_add", {.grid = {kBlocks}, .block = {kThreads}},
               ReduceParams{.numbers = numbers.data(), .sums = sums.data()});
  outputs.add(sums.contents());
}

struct PublishParams {
  std::uint32_t* data;    // one a block
  std::uint32_t* flags;   // one a block, 0 at first
  std::uint32_t* wrong;   // how often a block saw a flag and not the data
  std::uint32_t* unseen;  // whether a block did not see its own flag
};

/// Each block publishes a word and looks at all others: those whose flag it sees must be there. Nobody waits.
__global__ void publish_kernel(const __grid_constant__ PublishParams params) {
  const std::uint32_t block = ptx::block_index().x;
  params.data[block] = block * 77 + 5;
  ptx::store_release(&params.flags[block], 1);
  std::uint32_t wrong = 0;
  for (std::uint32_t round = 0; round < 100; ++round) {
    for (std::uint32_t other = 0; other < kBlocks; ++other) {
      if (ptx::load_acquire(&params.flags[other]) == 1) wrong += params.data[other] != other * 77 + 5;
    }
  }
  params.wrong[block] = wrong;
  params.unseen[block] = ptx::load_acquire(&params.flags[block]) != 1;
}

void publish(Outputs& outputs) {
  const Buffer<std::uint32_t> data(kBlocks), wrong(kBlocks), unseen(kBlocks);
  const Buffer<std::uint32_t> flags(std::vector<std::uint32_t>(kBlocks, 0));
  cuda::launch(
      publish_kernel, "publish", {.grid = {kBlocks}},
      PublishParams{
          .data = data.data(), .flags = flags.data(), .wrong = wrong.data(), .unseen = unseen.data()});
  outputs.add(data.contents());
  outputs.add(flags.contents());
  outputs.add(wrong.contents());
  outputs.add(unseen.contents());
}

struct LastBlockParams {
  std::uint32_t* data;     // one a thread
  std::uint32_t* arrived;  // 0 at first
  std::uint32_t* sums;     // one a thread of a block
};

/// The block that comes last adds what all blocks wrote.
__global__ void last_block_kernel(const __grid_constant__ LastBlockParams params) {
  std::uint32_t& ticket = ptx::shared_memory<std::uint32_t>();
  const std::uint32_t thread = ptx::thread_index().x, block = ptx::block_index().x;
  params.data[block * kThreads + thread] = (block + 1) * 1000 + thread;
  ptx::fence_gpu();
  ptx::sync_block();
  if (thread == 0) {
    ticket = ptx::atomic_add(params.arrived, 1u);
    ptx::fence_gpu();
  }
  ptx::sync_block();
  if (ticket != kBlocks - 1) return;
  std::uint32_t sum = 0;
  for (std::uint32_t other = 0; other < kBlocks; ++other) sum += params.data[other * kThreads + thread];
  params.sums[thread] = sum;
}

void last_block(Outputs& outputs) {
  const Buffer<std::uint32_t> data(kBlocks * kThreads), sums(kThreads);
  const Buffer<std::uint32_t> arrived(std::vector<std::uint32_t>{0});
  cuda::launch(last_block_kernel, "last_block",
               {.grid = {kBlocks}, .block = {kThreads}, .shared_bytes = sizeof(std::uint32_t)},
               LastBlockParams{.data = data.data(), .arrived = arrived.data(), .sums = sums.data()});
  outputs.add(sums.contents());
}

}  // namespace

std::vector<WrapperTest> memory_tests() {
  return {{"memory_copy_once", Needs::kSm80, copy_once},   {"memory_atomics", Needs::kSm80, atomics},
          {"memory_old_values", Needs::kSm80, old_values}, {"memory_reduce_add", Needs::kSm80, reduce_add},
          {"memory_publish", Needs::kSm80, publish},       {"fence_last_block", Needs::kSm80, last_block}};
}

}  // namespace flashmla::wrappers
