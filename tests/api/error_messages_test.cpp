// Every message of the checks, word by word; a call that fails has written nothing.
#include <gtest/gtest.h>

#include <cstddef>
#include <limits>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "valid_operations.h"

namespace flashmla {
namespace {

/// The message of the error that a call throws, and its kind. A failed call must not have written.
template <class Op>
std::string message_of(const Valid<Op>& valid, ErrorKind kind, const Execution& on = {}) {
  std::vector<std::vector<std::byte>> before;
  for (const auto& [name, tensor] : valid.outputs()) {
    before.emplace_back(tensor.memory().begin(), tensor.memory().end());
  }
  std::string message = "no error";
  try {
    run_with_workspace(valid.op, on);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind);
    message = error.what();
  }
  std::size_t i = 0;
  for (const auto& [name, tensor] : valid.outputs()) {
    EXPECT_TRUE(std::equal(before[i].begin(), before[i].end(), tensor.memory().begin()))
        << name << " was written";
    ++i;
  }
  return message;
}

constexpr ErrorKind kValue = ErrorKind::kValue;
constexpr ErrorKind kType = ErrorKind::kType;

TEST(ErrorMessage, ThatIsNotNeededIsNotThere) {
  Operations::for_each([]<class Op>() {
    const Valid<Op> valid;
    EXPECT_NO_THROW(run_with_workspace(valid.op)) << Op::fields().operation;
  });
}

TEST(ErrorMessage, NamesAMissingTensor) {
  Valid<DenseDecode> valid;
  valid.op.block_table = {};
  EXPECT_EQ(message_of(valid, kValue),
            "dense_decode: block_table must be i32 [batch=2, max_blocks], but is missing");
}

TEST(ErrorMessage, NamesAMissingOutput) {
  Valid<SparsePrefill> valid;
  valid.op.max_logits = {};
  EXPECT_EQ(message_of(valid, kValue),
            "sparse_prefill: max_logits must be f32 [s_q=3, h_q=4], but is missing");
}

TEST(ErrorMessage, NamesAWrongType) {
  Valid<DenseDecode> valid;
  valid.op.q.type = DataType::kF32;
  EXPECT_EQ(message_of(valid, kType),
            "dense_decode: q must be bf16|f16 [batch, s_q, h_q, d_qk], got f32 [2, 1, 4, 16]");
}

TEST(ErrorMessage, NamesTheTypeOfAnotherField) {
  Valid<DenseDecode> valid;
  valid.op.kv_cache.type = DataType::kF16;
  const std::string blocks = std::to_string(valid.op.kv_cache.shape[0]);
  EXPECT_EQ(message_of(valid, kType),
            "dense_decode: kv_cache must be bf16|u8 [blocks, page, h_kv, d_qk=16], got f16 [" + blocks +
                ", 4, 2, 16]");
}

TEST(ErrorMessage, NamesAWrongShapeWithTheSizesItFollowsFrom) {
  Valid<DenseDecode> valid;
  valid.op.lse.shape[1] = 3;
  EXPECT_EQ(message_of(valid, kValue),
            "dense_decode: lse must be f32 [batch=2, h_q=4, s_q=1], got f32 [2, 3, 1]");
}

TEST(ErrorMessage, NamesAWrongNumberOfDimensions) {
  Valid<MhaForward> valid;
  valid.op.k.ndim = 2;
  EXPECT_EQ(message_of(valid, kValue),
            "mha_forward: k must be bf16 [total_k=9, h_kv=2, d_qk=16], got bf16 [9, 2]");
}

TEST(ErrorMessage, NamesASizeThatIsOneMore) {
  Valid<MhaForward> valid;
  valid.op.cu_seqlens_k.shape[0] = 2;
  EXPECT_EQ(message_of(valid, kValue), "mha_forward: cu_seqlens_k must be i32 [batch+1=3], got i32 [2]");
}

TEST(ErrorMessage, NamesAFixedSize) {
  Valid<QuantizeKv> valid;
  valid.op.kv_cache.shape[2] = 2;
  EXPECT_EQ(message_of(valid, kValue),
            "quantize_kv: kv_cache must be u8 [blocks=2, page=3, 1, row], got u8 [2, 3, 2, 656]");
}

TEST(ErrorMessage, NamesANegativeSize) {
  Valid<MhaForward> valid;
  valid.op.q.shape[0] = -1;
  EXPECT_EQ(message_of(valid, kValue),
            "mha_forward: q must be bf16|f16 [total_q, h_q, d_qk], got bf16 [-1, 4, 16]");
}

TEST(ErrorMessage, NamesTheElementOfAList) {
  Valid<MergeStates> valid;
  std::vector<TensorView> lses(valid.op.lses.begin(), valid.op.lses.end());
  lses[1].shape[1] = 2;
  valid.op.lses = lses;
  EXPECT_EQ(message_of(valid, kValue),
            "merge_states: lses[1] must be f32 [batch=2, h_q=3, s_q=1], got f32 [2, 2, 1]");
}

TEST(ErrorMessage, NamesAWrongDevice) {
  Valid<DenseDecode> valid;
  valid.op.cache_seqlens.device = {DeviceType::kCuda, 1};
  EXPECT_EQ(message_of(valid, kValue), "dense_decode: cache_seqlens must be on cpu, got cuda:1");
}

TEST(ErrorMessage, NamesTheDeviceOfTheCall) {
  const Valid<DenseDecode> valid;
  Execution on;
  on.device = {DeviceType::kCuda, 0};
  EXPECT_EQ(message_of(valid, kValue, on), "dense_decode: q must be on cuda:0, got cpu");
}

TEST(ErrorMessage, NamesANullPointer) {
  Valid<SparsePrefill> valid;
  valid.op.indices.data = nullptr;
  EXPECT_EQ(message_of(valid, kValue),
            "sparse_prefill: indices must be i32 [s_q=3, h_kv=2, topk=5], got a null pointer");
}

TEST(ErrorMessage, NamesALastDimensionWithAStride) {
  Valid<SparsePrefill> valid;
  valid.op.indices.strides[2] = 2;
  EXPECT_EQ(message_of(valid, kValue),
            "sparse_prefill: indices must have a contiguous last dimension, got strides [10, 5, 2]");
}

TEST(ErrorMessage, NamesAMisalignedAddress) {
  Valid<MhaForward> valid;
  valid.op.v.data = valid.op.v.as<std::uint16_t>() + 1;
  std::ostringstream expected;
  expected << "mha_forward: v must be aligned to 16 bytes, its rows too, got address " << valid.op.v.data
           << " and strides of [16, 8, 1] elements of 2 bytes";
  EXPECT_EQ(message_of(valid, kValue), expected.str());
}

TEST(ErrorMessage, NamesAMisalignedStride) {
  Valid<MhaForward> valid;
  valid.op.q.strides[0] = 63;
  std::ostringstream expected;
  expected << "mha_forward: q must be aligned to 16 bytes, its rows too, got address " << valid.op.q.data
           << " and strides of [63, 16, 1] elements of 2 bytes";
  EXPECT_EQ(message_of(valid, kValue), expected.str());
}

TEST(ErrorMessage, NamesAnOutputThatOverlapsItself) {
  Valid<MhaForward> valid;
  valid.op.out.strides[0] = 24;
  EXPECT_EQ(message_of(valid, kValue),
            "mha_forward: out is written, so its elements must not overlap, got shape [5, 4, 8] with strides "
            "[24, 8, 1]");
}

TEST(ErrorMessage, NamesAnUpdatedTensorThatOverlapsItself) {
  Valid<AppendKv> valid;
  valid.op.kv_cache.strides[0] = 0;
  EXPECT_EQ(message_of(valid, kValue),
            "append_kv: kv_cache is written, so its elements must not overlap, got shape [3, 4, 1, 656] with "
            "strides [0, 656, 656, 1]");
}

TEST(ErrorMessage, NamesATokenStrideOfModel1) {
  cases::QuantizeKnobs knobs = valid_quantize_knobs();
  knobs.format = KvFormat::kFp8Model1;
  ValidOperation<DequantizeKv> valid(cases::make_dequantize_kv(knobs, 1));
  valid.op.kv_cache.strides[1] = 592;
  try {
    run_with_workspace(valid.op);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(
        std::string(error.what()),
        "dequantize_kv: kv_cache in format fp8_model1 must have token stride 584, got strides [2304, 592, "
        "584, 1]");
  }
}

TEST(ErrorMessage, NamesHeadsThatDoNotDivide) {
  Valid<MhaForward> valid;
  for (TensorView* view : {&valid.op.q, &valid.op.out, &valid.op.lse}) view->shape[1] = 3;
  EXPECT_EQ(message_of(valid, kValue), "mha_forward: h_q must be a multiple of h_kv, got h_q=3, h_kv=2");
}

TEST(ErrorMessage, NamesHeadsThatAreNone) {
  Valid<MhaForward> valid;
  for (TensorView* view : {&valid.op.k, &valid.op.v}) view->shape[1] = 0;
  EXPECT_EQ(message_of(valid, kValue), "mha_forward: h_kv must be at least 1, got 0");
}

TEST(ErrorMessage, NamesAWidthThatIsNoMultipleOfEight) {
  Valid<SparsePrefill> valid;
  valid.op.out.shape[2] = 4;
  EXPECT_EQ(message_of(valid, kValue), "sparse_prefill: d_v must be a multiple of 8, got 4");
}

TEST(ErrorMessage, NamesAFactorOfACacheThatHoldsNoCodes) {
  const cases::Tensor factors(DataType::kF32, {2});
  for (const auto& [name, member] :
       {std::pair("descale_q", &DenseDecode::descale_q), {"descale_k", &DenseDecode::descale_k}}) {
    Valid<DenseDecode> valid;
    valid.op.*member = factors.view();
    EXPECT_EQ(message_of(valid, kValue),
              std::string("dense_decode: ") + name +
                  " must be given with a kv_cache of u8 (e4m3 codes) only, got bf16");
  }
}

TEST(ErrorMessage, NamesAWidthOfCodesThatIsNoMultipleOfSixteen) {
  Valid<DenseDecode> valid;
  const cases::Tensor q(DataType::kBf16, {2, 1, 4, 24});
  const cases::Tensor codes(DataType::kU8, {8, 4, 2, 24}, {256, 64, 32, 1});
  valid.op.q = q.view();
  valid.op.kv_cache = codes.view();
  EXPECT_EQ(message_of(valid, kValue),
            "dense_decode: d_qk must be a multiple of 16 for a kv_cache of u8, got 24");
}

TEST(ErrorMessage, NamesValuesWiderThanKeys) {
  Valid<DenseDecode> valid;
  const cases::Tensor out(DataType::kBf16, {2, 1, 4, 24});
  valid.op.out = out.view();
  EXPECT_EQ(message_of(valid, kValue), "dense_decode: d_v must be at most d_qk, got d_v=24, d_qk=16");
}

TEST(ErrorMessage, NamesAPageWithoutTokens) {
  Valid<DenseDecode> valid;
  valid.op.kv_cache.shape[1] = 0;
  EXPECT_EQ(message_of(valid, kValue), "dense_decode: page must be at least 1, got 0");
}

TEST(ErrorMessage, NamesAnExtraPageWithoutTokens) {
  Valid<SparseDecode> valid;
  valid.op.extra_kv_cache.shape[1] = 0;
  EXPECT_EQ(message_of(valid, kValue), "sparse_decode: extra_page must be at least 1, got 0");
}

TEST(ErrorMessage, NamesARowThatIsNoFormat) {
  Valid<DequantizeKv> valid;
  valid.op.kv_cache.shape[3] = 640;
  EXPECT_EQ(message_of(valid, kValue),
            "dequantize_kv: kv_cache rows must be 656 bytes (fp8_v32) or 584 bytes (fp8_model1), got 640");
}

TEST(ErrorMessage, NamesAFormatOfAnotherWidth) {
  Valid<QuantizeKv> valid;
  valid.op.kv.shape[3] = 512;
  EXPECT_EQ(message_of(valid, kValue),
            "quantize_kv: kv_cache in format fp8_v32 holds rows of 576 values, but d_qk is 512");
}

TEST(ErrorMessage, NamesAnFp8CacheWithSeveralKvHeads) {
  Valid<SparseDecode> valid;
  valid.op.kv_cache.shape[2] = 2;
  valid.op.extra_kv_cache.shape[2] = 2;
  EXPECT_EQ(message_of(valid, kValue), "sparse_decode: kv_cache in format fp8_v32 must have h_kv=1, got 2");
}

TEST(ErrorMessage, NamesTheMissingHalfOfTheExtraCache) {
  Valid<SparseDecode> valid;
  valid.op.extra_kv_cache = {};
  EXPECT_EQ(message_of(valid, kValue),
            "sparse_decode: extra_indices and extra_kv_cache must be given together, but extra_kv_cache is "
            "missing");
}

TEST(ErrorMessage, NamesAnExtraLengthWithoutExtraCache) {
  Valid<SparseDecode> valid;
  valid.op.extra_kv_cache = {};
  valid.op.extra_indices = {};
  EXPECT_EQ(message_of(valid, kValue),
            "sparse_decode: extra_topk_length needs extra_kv_cache and extra_indices, which are missing");
}

TEST(ErrorMessage, NamesTheMissingHalfOfASchedule) {
  Valid<DenseDecode> valid;
  const cases::Tensor schedule(DataType::kI32, {4, 8});
  valid.op.schedule = schedule.view();
  EXPECT_EQ(message_of(valid, kValue),
            "dense_decode: schedule and num_splits must be given together, but num_splits is missing");
}

TEST(ErrorMessage, NamesAScheduleWithoutRows) {
  Valid<SparseDecode> valid;
  const cases::Tensor schedule(DataType::kI32, {0, 8});
  const cases::Tensor num_splits(DataType::kI32, {3});
  valid.op.schedule = schedule.view();
  valid.op.num_splits = num_splits.view();
  EXPECT_EQ(message_of(valid, kValue), "sparse_decode: schedule rows must be at least 1, got 0");
}

TEST(ErrorMessage, NamesANegativeSplitSize) {
  Valid<DenseDecode> valid;
  valid.op.split_size = -1;
  EXPECT_EQ(message_of(valid, kValue), "dense_decode: split_size must be 0 or more, got -1");
}

TEST(ErrorMessage, NamesAScaleThatIsNotFinite) {
  Valid<MhaBackward> valid;
  valid.op.softmax_scale = std::numeric_limits<float>::infinity();
  EXPECT_EQ(message_of(valid, kValue),
            "mha_backward: softmax_scale must be finite and at most 1e+38, got inf");
}

TEST(ErrorMessage, NamesALatentOfTheWrongTypeForFp8) {
  Valid<AppendKv> valid;
  valid.op.latent.type = valid.op.rope.type = DataType::kF16;
  EXPECT_EQ(message_of(valid, kType), "append_kv: latent must be bf16 for format fp8_v32, got f16");
}

TEST(ErrorMessage, NamesARopeWidthThatTheFormatDoesNotHave) {
  Valid<AppendKv> valid;
  const cases::Tensor latent(DataType::kBf16, {5, 544});
  const cases::Tensor rope(DataType::kBf16, {5, 32});
  valid.op.latent = latent.view();
  valid.op.rope = rope.view();
  EXPECT_EQ(message_of(valid, kValue), "append_kv: d_rope must be 64 for format fp8_v32, got 32");
}

TEST(ErrorMessage, NamesListsOfDifferentLength) {
  Valid<MergeStates> valid;
  valid.op.lses = valid.op.lses.first(1);
  EXPECT_EQ(message_of(valid, kValue),
            "merge_states: outs and lses must hold the same number of tensors, at least 2, got 2 and 1");
  valid.op.outs = valid.op.outs.first(1);
  EXPECT_EQ(message_of(valid, kValue),
            "merge_states: outs and lses must hold the same number of tensors, at least 2, got 1 and 1");
}

TEST(ErrorMessage, NamesStatesOfDifferentTypes) {
  Valid<MergeStates> valid;
  std::vector<TensorView> outs(valid.op.outs.begin(), valid.op.outs.end());
  outs[1].type = DataType::kF16;
  valid.op.outs = outs;
  EXPECT_EQ(message_of(valid, kType), "merge_states: outs[1] must be bf16 like outs[0], got f16");
}

TEST(ErrorMessage, NamesLengthsOfBothKindsOfSchedule) {
  Valid<MakeSchedule> valid;
  valid.op.topk = 64;
  EXPECT_EQ(
      message_of(valid, kValue),
      "make_schedule: cache_seqlens (dense) and topk or topk_length (sparse) must not be given together");
}

TEST(ErrorMessage, NamesAScheduleToMakeWithoutRows) {
  Valid<MakeSchedule> valid;
  valid.op.schedule.shape[0] = 0;
  EXPECT_EQ(message_of(valid, kValue), "make_schedule: schedule rows must be at least 1, got 0");
}

TEST(ErrorMessage, NamesANegativeNumberOfAScheduleToMake) {
  Valid<MakeSchedule> valid;
  valid.op.max_seqlen = -5;
  EXPECT_EQ(
      message_of(valid, kValue),
      "make_schedule: cache_seqlens and max_seqlen (0 or more) must be given together, got a tensor and -5");
}

TEST(ErrorMessage, NamesAnInputOfAScheduleForADecodeOperation) {
  Valid<DenseDecode> valid;
  valid.op.block_table.ndim = 1;
  try {
    make_schedule(valid.op, {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()), "make_schedule: block_table must have 2 dimensions, got 1");
  }
}

TEST(ErrorMessage, NamesAnImpossibleNumberOfThreads) {
  const Valid<DenseDecode> valid;
  Execution on;
  for (const int threads : {-1, 1025}) {
    on.threads = threads;
    EXPECT_EQ(message_of(valid, kValue, on),
              "dense_decode: Execution.threads must be in [0, 1024], got " + std::to_string(threads));
  }
}

TEST(ErrorMessage, NamesACacheWithMoreTokensThanCanBeCounted) {
  Valid<DenseDecode> valid;
  for (const int dim : {0, 1}) {
    valid.op.kv_cache.shape[dim] = std::int64_t{1} << 40;
    valid.op.kv_cache.strides[dim] = 0;
  }
  EXPECT_EQ(message_of(valid, kValue),
            "dense_decode: blocks * page must be below 2^63, got 1099511627776 * 1099511627776");
}

TEST(ErrorMessage, NamesALengthWithoutItsBound) {
  Valid<DenseDecode> valid;
  valid.op.cache_seqlens = {};
  try {
    make_schedule(valid.op, {});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()), "make_schedule: cache_seqlens must have 1 dimensions, got 0");
  }
}

TEST(WorkspaceBytes, NeedsShapesAlone) {
  Valid<DenseDecode> valid;
  const std::size_t bytes = workspace_bytes(valid.op, {});
  for (TensorView* tensor : {&valid.op.q, &valid.op.kv_cache, &valid.op.out, &valid.op.lse})
    tensor->data = nullptr;
  EXPECT_EQ(workspace_bytes(valid.op, {}), bytes);
}

TEST(ErrorMessage, NamesTheBackendsThatThereAre) {
  const Valid<MergeStates> valid;
  std::string known;
  for (const KernelInfo& kernel : kernels()) {
    if (kernel.operation != "merge_states") continue;
    known += (known.empty() ? "" : ", ");
    known += kernel.backend;
  }
  Execution on;
  on.backend = "abacus";
  EXPECT_EQ(message_of(valid, kValue, on),
            "merge_states: Execution.backend must be one of " + known + ", got \"abacus\"");
}

TEST(ErrorMessage, NamesWhyNoKernelSupportsACase) {
  Valid<MergeStates> valid;
  Execution on;
  on.device = {DeviceType::kCuda, 0};
  on.backend = "reference";
  std::vector<TensorView> outs(valid.op.outs.begin(), valid.op.outs.end());
  std::vector<TensorView> lses(valid.op.lses.begin(), valid.op.lses.end());
  for (TensorView& view : outs) view.device = on.device;
  for (TensorView& view : lses) view.device = on.device;
  valid.op.outs = outs;
  valid.op.lses = lses;
  valid.op.out.device = valid.op.lse.device = on.device;
  EXPECT_EQ(message_of(valid, ErrorKind::kUnsupported, on),
            "merge_states: no kernel supports this case: reference/float64 needs tensors in CPU memory");
}

TEST(ErrorMessage, NamesTheWorkspaceThatIsNeeded) {
  Operations::for_each([]<class Op>() {
    const Valid<Op> valid;
    for (const KernelInfo& kernel : kernels()) {
      if (kernel.operation != Op::fields().operation || !kernel.available) continue;
      Execution on;
      on.backend = kernel.backend;
      const std::size_t needed = workspace_bytes(valid.op, on);
      if (needed == 0) continue;
      std::vector<std::byte> small(needed - 1);
      on.workspace = small.data();
      on.workspace_size = small.size();
      const std::string expected = std::string(Op::fields().operation) + ": Execution.workspace must hold " +
                                   std::to_string(needed) + " bytes, got ";
      try {
        run(valid.op, on);
        ADD_FAILURE() << kernel.name;
      } catch (const Error& error) {
        EXPECT_EQ(std::string(error.what()), expected + std::to_string(needed - 1));
      }
      on.workspace = nullptr;  // with a size that would do
      on.workspace_size = needed;
      try {
        run(valid.op, on);
        ADD_FAILURE() << kernel.name;
      } catch (const Error& error) {
        EXPECT_EQ(std::string(error.what()), expected + "0");
      }
    }
  });
}

TEST(ErrorMessage, OfWorkspaceBytesIsThatOfRun) {
  Valid<DenseDecode> valid;
  valid.op.lse = {};
  try {
    (void)workspace_bytes(valid.op, {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()),
              "dense_decode: lse must be f32 [batch=2, h_q=4, s_q=1], but is missing");
  }
}

TEST(ErrorMessage, StatesAnUnknownElementType) {
  try {
    (void)size_of(static_cast<DataType>(99));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()), "size_of: unknown element type 99");
  }
}

}  // namespace
}  // namespace flashmla
