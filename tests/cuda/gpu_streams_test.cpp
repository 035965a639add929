// Operations of a GPU in graphs and on several streams.
#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <variant>
#include <vector>

#include "../operations/backends.h"
#include "cases/case.h"
#include "cases/on_device.h"
#include "cases/random.h"
#include "cuda/memory.h"
#include "cuda/timing.h"

namespace flashmla {
namespace {

class OnGpuBackend : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(, OnGpuBackend, testing::ValuesIn(backends_on({DeviceType::kCuda, 0})),
                         backend_name);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(OnGpuBackend);

/// A decode step whose tensors lie on the GPU, with a workspace of its own.
class DecodeStep {
 public:
  DecodeStep(const std::string& backend, const cases::DenseDecodeKnobs& knobs, std::uint64_t seed)
      : case_(cases::make_dense_decode(knobs, seed)),
        steps_(cases::prepare(case_)),
        copies_(steps_.front().operation, kGpu),
        on_{.device = kGpu, .backend = backend},
        workspace_(kGpu, workspace_bytes(op(), on_)) {
    workspace_.give_to(on_);
  }

  void enqueue(const cuda::Stream& stream) const {
    Execution on = on_;
    on.stream = stream.handle();
    run(op(), on);
  }

  void forget_outputs() const { copies_.copy_again(); }

  void set_lengths(const std::vector<std::int32_t>& lengths) const {
    cuda::copy(op().cache_seqlens.data, lengths.data(), lengths.size() * sizeof(std::int32_t));
  }

  /// Bytes of `out` and `lse`, as they are on the GPU. Does not touch the host's own, so that
  /// forget_outputs() still forgets.
  std::vector<std::byte> outputs() const {
    std::vector<std::byte> all;
    for (const TensorView& view : {op().out, op().lse}) {
      std::vector<std::byte> bytes(static_cast<std::size_t>(view.size()) * size_of(view.type));
      cuda::copy(bytes.data(), view.data, bytes.size());
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }

 private:
  static constexpr Device kGpu{DeviceType::kCuda, 0};
  const DenseDecode& op() const { return std::get<DenseDecode>(copies_.operation()); }

  cases::Case case_;
  std::vector<cases::Step> steps_;
  cases::OnGpu copies_;
  Execution on_;
  cases::Workspace workspace_;
};

constexpr int kLong = 3000;

TEST_P(OnGpuBackend, GraphOfADecodeStepFollowsTheLengthsInMemory) {
  const DecodeStep step(GetParam(), {.batch = 3, .s_q = 2, .seqlens = {kLong, 17, 900}, .causal = true}, 1);
  const cuda::Stream stream(0);
  const cuda::Graph graph(stream, [&] { step.enqueue(stream); });
  for (const std::vector<std::int32_t>& lengths :
       {std::vector<std::int32_t>{kLong, 17, 900}, {64, 0, 1}, {1, 17, 5}, {2999, 3, 900}}) {
    step.set_lengths(lengths);
    step.enqueue(stream);
    stream.synchronize();
    const std::vector<std::byte> expected = step.outputs();
    step.forget_outputs();
    step.set_lengths(lengths);
    EXPECT_NE(step.outputs(), expected);
    graph.launch();
    graph.launch();
    stream.synchronize();
    EXPECT_EQ(step.outputs(), expected);
  }
}

TEST_P(OnGpuBackend, TwoStreamsAtOnceDoNotDisturbEachOther) {
  const DecodeStep first(GetParam(), {.batch = 2, .h_q = 128, .seqlens = {kLong, 1500}}, 1);
  const DecodeStep second(GetParam(), {.batch = 5, .s_q = 3, .h_q = 16, .seqlens = {700, kLong, 3}}, 2);
  const cuda::Stream one(0);
  const cuda::Stream two(0);
  first.enqueue(one);
  one.synchronize();
  const std::vector<std::byte> first_alone = first.outputs();
  second.enqueue(two);
  two.synchronize();
  const std::vector<std::byte> second_alone = second.outputs();
  for (int round = 0; round < 20; ++round) {
    first.forget_outputs();
    second.forget_outputs();
    for (int i = 0; i < 10; ++i) {
      first.enqueue(one);
      second.enqueue(two);
    }
    one.synchronize();
    two.synchronize();
    ASSERT_EQ(first.outputs(), first_alone) << round;
    ASSERT_EQ(second.outputs(), second_alone) << round;
  }
}

TEST_P(OnGpuBackend, EveryRunGivesTheSameBits) {
  const DecodeStep step(GetParam(), {.batch = 7, .h_q = 128, .seqlens = {kLong, 1, 0, 64, 777}}, 3);
  const cuda::Stream stream(0);
  step.enqueue(stream);
  stream.synchronize();
  const std::vector<std::byte> expected = step.outputs();
  for (int round = 0; round < 50; ++round) {
    step.forget_outputs();
    step.enqueue(stream);
    stream.synchronize();
    ASSERT_EQ(step.outputs(), expected) << round;
  }
}

}  // namespace
}  // namespace flashmla
