// Cases from files become operations with the right tensors, and broken cases say what is wrong.
#include "cases/case.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "cases/compare.h"
#include "cases/random.h"
#include "cases/safetensors.h"
#include "expect_error.h"
#include "temporary_folder.h"

namespace flashmla::cases {
namespace {

const Execution kReference{.backend = "reference"};

std::string golden(const std::string& name) {
  return std::string(FLASHMLA_GOLDEN_DIR) + "/" + name + ".safetensors";
}

Case small_dense() {
  return make_dense_decode({.h_q = 2, .d_qk = 16, .d_v = 8, .page = 4, .seqlens = {5, 9}}, 1);
}

Case small_sparse(KvFormat format) {
  SparseDecodeKnobs knobs;
  knobs.h_q = 2;
  knobs.format = format;
  knobs.page = 3;
  knobs.blocks = 4;
  knobs.topk = 5;
  return make_sparse_decode(knobs, 2);
}

Case small_mha() {
  MhaKnobs knobs;
  knobs.seqlens_q = {2, 1};
  knobs.seqlens_k = {3, 2};
  return make_mha(knobs, 3);
}

class CaseFile : public TemporaryFolder {};

TEST(GoldenFiles, AllBecomeOperationsWithExpectedOutputs) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(FLASHMLA_GOLDEN_DIR)) {
    if (entry.path().extension() != ".safetensors") continue;
    const Case what = read_case(entry.path());
    for (const Step& step : prepare(what)) {
      EXPECT_EQ(step.outputs.size(), step.expected.size()) << what.source;
      for (const auto& [name, expected] : step.expected) {
        EXPECT_EQ(step.outputs.at(name).view().shape, expected.shape) << what.source << " " << name;
      }
    }
    ++files;
  }
  EXPECT_EQ(files, 14);
}

TEST(GoldenFiles, FillTheFieldsOfTheOperation) {
  const Case what = read_case(golden("dense_decode_causal_bf16"));
  const std::vector<Step> steps = prepare(what);
  ASSERT_EQ(steps.size(), 1u);
  const auto& op = std::get<DenseDecode>(steps[0].operation);
  EXPECT_EQ(op.q.data, what.tensors.at("q").view().data);
  EXPECT_EQ(op.kv_cache.type, DataType::kBf16);
  EXPECT_TRUE(op.causal);
  EXPECT_FLOAT_EQ(op.softmax_scale.value(), 1.0f / 24);
  EXPECT_FALSE(op.schedule.given());
  EXPECT_EQ(op.out.type, DataType::kBf16);
  EXPECT_EQ(steps[0].outputs.at("out").shape(), (std::vector<std::int64_t>{3, 2, 16, 512}));
}

TEST(GoldenFiles, MhaRunsForwardAndThenBackwardOnItsOutputs) {
  const Case what = read_case(golden("mha_128_128_gqa"));
  const std::vector<Step> steps = prepare(what);
  ASSERT_EQ(steps.size(), 2u);
  const auto& forward = std::get<MhaForward>(steps[0].operation);
  const auto& backward = std::get<MhaBackward>(steps[1].operation);
  EXPECT_EQ(backward.out.data, forward.out.data);
  EXPECT_EQ(backward.lse.data, forward.lse.data);
  EXPECT_EQ(forward.out.type, DataType::kBf16);  // the type of q, though the file expects f32
  EXPECT_EQ(steps[0].expected.at("out").type, DataType::kF32);
}

TEST(GoldenFiles, QuantizationAlsoDequantizesTheExpectedCache) {
  const Case what = read_case(golden("quantize_model1"));
  const std::vector<Step> steps = prepare(what);
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_EQ(std::get<DequantizeKv>(steps[1].operation).kv_cache.data,
            what.tensors.at("kv_cache").view().data);
  EXPECT_EQ(steps[1].expected.at("kv").data, what.tensors.at("dequantized").view().data);
}

TEST(GoldenFiles, ExtraCachesKeepTheirOwnBlockStride) {
  const Case what = read_case(golden("sparse_decode_model1_extra"));
  EXPECT_EQ(what.tensors.at("kv_cache").view().strides[0], 37440);
  EXPECT_EQ(what.tensors.at("extra_kv_cache").view().strides[0], 1728);
}

TEST_F(CaseFile, SpreadsAnFp8CacheAndFillsTheGapsWithNan) {
  Case what = small_sparse(KvFormat::kFp8Model1);
  what.tensors["kv_cache"] = fp8_cache(KvFormat::kFp8Model1, 2, 3, 576 * 7);
  for_each_index(what.tensors["kv_cache"].view(),
                 [&](auto index) { set_element(what.tensors["kv_cache"].view(), index, 5); });
  write_case(path("a"), what);
  EXPECT_EQ(SafetensorsFile(path("a")).content().tensors.at("kv_cache").data.size(), 2u * 3 * 584);

  const Case back = read_case(path("a"));
  const Tensor& cache = back.tensors.at("kv_cache");
  EXPECT_EQ(cache.view().strides[0], 576 * 7);
  EXPECT_EQ(cache.view().strides[1], 584);
  for (std::size_t byte = 0; byte < cache.memory().size(); ++byte) {
    const int expected = byte % (576 * 7) < 3 * 584 ? 5 : 0xff;
    ASSERT_EQ(std::to_integer<int>(cache.memory()[byte]), expected) << byte;
  }
}

TEST_F(CaseFile, WithoutABlockStrideTakesTheSmallest) {
  for (const KvFormat format : {KvFormat::kFp8V32, KvFormat::kFp8Model1}) {
    Case what = small_sparse(format);
    write_case(path("a"), what);
    std::map<std::string, TensorView> views;
    for (const auto& [name, tensor] : what.tensors) views[name] = tensor.view();
    write_safetensors(path("b"), {{"op", "sparse_decode"}, {"block_stride_bytes", "0"}}, views);
    const std::int64_t expected = format == KvFormat::kFp8V32 ? 3 * 656 : 4 * 576;  // 3 * 584 rounded up
    EXPECT_EQ(read_case(path("b")).tensors.at("kv_cache").view().strides[0], expected);
  }
}

TEST_F(CaseFile, CodesOfDenseDecodeStayRowsWhateverTheirWidth) {
  for (const std::int64_t width : {656, 576}) {
    DenseDecodeKnobs knobs{.h_q = 2, .d_qk = width, .d_v = 8, .page = 3, .seqlens = {5, 9}};
    knobs.e4m3 = true;
    const Case what = make_dense_decode(knobs, 1);
    write_case(path("a"), what);
    EXPECT_FALSE(SafetensorsFile(path("a")).content().metadata.contains("block_stride_bytes"));
    const Case back = read_case(path("a"));
    EXPECT_EQ(back.tensors.at("kv_cache").view().strides[0], 3 * width);
    EXPECT_TRUE(
        std::ranges::equal(back.tensors.at("kv_cache").memory(), what.tensors.at("kv_cache").memory()));
    EXPECT_EQ(run_case(back, kReference).size(), 2u);
  }
}

TEST_F(CaseFile, EveryOperationSurvivesAFile) {
  for (const std::string& operation : operation_names()) {
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
      Random random(seed);
      const Case what = random_case(operation, random);
      write_case(path("a"), what);
      const Case back = read_case(path("a"));
      EXPECT_EQ(back.operation, operation);
      ASSERT_EQ(back.tensors.size(), what.tensors.size());
      for (const auto& [name, tensor] : what.tensors) {
        EXPECT_TRUE(
            compare(operation, name, back.tensors.at(name).view(), tensor.view(), {.exact = true}).passed)
            << operation << " " << name << " seed " << seed;
      }
      const std::vector<Result> first = run_case(what, kReference);
      const std::vector<Result> second = run_case(back, kReference);
      ASSERT_EQ(first.size(), second.size());
      for (std::size_t i = 0; i < first.size(); ++i) {
        EXPECT_TRUE(
            compare(operation, first[i].output, second[i].got.view(), first[i].got.view(), {.exact = true})
                .passed)
            << operation << " " << first[i].output << " seed " << seed;
      }
    }
  }
}

TEST_F(CaseFile, NamesTheFileInErrors) {
  Case what = small_dense();
  what.metadata["causal"] = "perhaps";
  write_case(path("a"), what);
  const Case back = read_case(path("a"));
  expect_error(path("a") + ": metadata causal must be 0 or 1, got 'perhaps'", [&] { prepare(back); });

  write_safetensors(path("b"), {}, {});
  expect_error(path("b") + ": metadata 'op', the operation, is missing", [&] { read_case(path("b")); });
  write_safetensors(path("b"), {{"op", "guess"}}, {});
  expect_error(path("b") + ": unknown operation 'guess', must be one of dense_decode, ",
               [&] { read_case(path("b")); });
  write_safetensors(path("b"), {{"op", "mha"}}, {{"kv", back.tensors.at("q").view()}});
  expect_error(path("b") + ": mha has no tensor 'kv'", [&] { read_case(path("b")); });
}

TEST_F(CaseFile, RefusesACacheThatIsNotWhatTheMetadataSays) {
  Case what = small_sparse(KvFormat::kFp8V32);
  const auto expect = [&](const std::string& name, const std::string& value, const std::string& message) {
    std::map<std::string, TensorView> views;
    for (const auto& [tensor, memory] : what.tensors) views[tensor] = memory.view();
    auto metadata = what.metadata;
    metadata["op"] = what.operation;
    metadata[name] = value;
    write_safetensors(path("a"), metadata, views);
    expect_error(message, [&] { read_case(path("a")); });
  };
  expect("kv_format", "fp8_model1", "metadata kv_format is fp8_model1, but kv_cache is u8 [4, 3, 1, 656]");
  expect("kv_format", "e4m3", "metadata kv_format is e4m3, but kv_cache is u8 [4, 3, 1, 656]");
  expect("kv_format", "fp4", "metadata kv_format must be bf16, f16, e4m3, fp8_v32 or fp8_model1, got 'fp4'");
  expect("block_stride_bytes", "x", "metadata block_stride_bytes must be a whole number, 0 or more, got 'x'");
  expect("block_stride_bytes", "-1",
         "metadata block_stride_bytes must be a whole number, 0 or more, got '-1'");
  expect("block_stride_bytes", "1967",
         "metadata block_stride_bytes must be between 1968 (a block of kv_cache)");
  expect("block_stride_bytes", "9223372036854775807", "and 64 times that, got 9223372036854775807");
}

TEST(CaseErrors, SayWhatIsMissing) {
  Case what = small_dense();
  what.tensors.erase("q");
  expect_error("dense_decode needs a tensor 'q'", [&] { prepare(what); });
  what = small_dense();
  what.metadata.erase("head_dim_v");
  expect_error("dense_decode cannot tell size d_v of output out: metadata 'head_dim_v' is missing",
               [&] { prepare(what); });
  what = make_quantize_kv({.blocks = 1, .page = 1}, 1);
  what.metadata.erase("kv_format");
  expect_error("quantize_kv cannot tell size row of output kv_cache: metadata 'kv_format' is missing",
               [&] { prepare(what); });
  what = make_make_schedule({}, 1);
  what.metadata.erase("parts");
  expect_error("make_schedule cannot tell size parts of output schedule: metadata 'parts' is missing",
               [&] { prepare(what); });
  what = make_merge_states({.h_q = 1, .d_v = 8}, 1);
  what.tensors.erase("outs.0");
  expect_error("merge_states has a tensor 'outs.1', but no 'outs.0'", [&] { prepare(what); });
  what.tensors.erase("outs.1");
  expect_error("merge_states needs a tensor 'outs.0'", [&] { prepare(what); });
  what = small_mha();
  what.tensors["d_q"] = what.tensors.at("q");
  what.tensors.erase("d_out");
  expect_error("mha_backward needs a tensor 'd_out'", [&] { prepare(what); });
}

TEST(CaseErrors, SayWhichValueIsMalformed) {
  const auto expect = [](Case what, const char* name, const char* value, const std::string& message) {
    what.metadata[name] = value;
    expect_error("metadata " + std::string(name) + " must be " + message, [&] { prepare(what); });
  };
  expect(small_dense(), "softmax_scale", "", "a number, got ''");
  expect(small_dense(), "softmax_scale", "0.5x", "a number, got '0.5x'");
  expect(small_dense(), "softmax_scale", "1\n2", "a number, got '1?2'");
  expect(small_dense(), "split_size", "1.5", "a whole number, got '1.5'");
  expect(small_dense(), "split_size", "99999999999999999999", "a whole number, got '99999999999999999999'");
  expect(small_dense(), "causal", "2", "0 or 1, got '2'");
  expect(small_dense(), "head_dim_v", "-8", "a whole number, 0 or more, got '-8'");
  expect(make_merge_states({.h_q = 1, .d_v = 8}, 1), "out_type", "i32", "bf16|f16|f32, got 'i32'");
}

TEST(CaseErrors, RefuseOutputsOutOfProportion) {
  Case what = small_dense();
  what.metadata["head_dim_v"] = "1000000000000";
  expect_error("dense_decode would need out bf16 of shape [2, 1, 2, 1000000000000], out of proportion",
               [&] { prepare(what); });
  what.metadata["head_dim_v"] = "9223372036854775807";
  expect_error("out of proportion to its inputs", [&] { prepare(what); });
}

TEST(CaseErrors, LeaveShapesToTheLibrary) {
  Case what = small_dense();
  what.tensors["cache_seqlens"] = Tensor(DataType::kI32, {7});
  expect_error("dense_decode: cache_seqlens must be i32 [batch=2], got i32 [7]",
               [&] { run_case(what, kReference); });
}

TEST(CaseErrors, RefuseNamesThatTheOperationDoesNotHave) {
  Case what = small_dense();
  what.tensors["extra"] = Tensor(DataType::kI32, {1});
  expect_error("dense_decode has no tensor 'extra'", [&] { prepare(what); });
  what = small_dense();
  what.tensors["expected.q"] = what.tensors.at("q");
  expect_error("dense_decode has no tensor 'expected.q'", [&] { prepare(what); });
  what = small_dense();
  what.operation = "";
  expect_error("unknown operation ''", [&] { prepare(what); });
}

TEST(CaseSteps, UpdatedTensorsStartAsACopy) {
  Case what = make_append_kv({.tokens = 3, .blocks = 2, .page = 2}, 1);
  what.tensors["expected.kv_cache"] = what.tensors.at("kv_cache");
  const Tensor before = what.tensors.at("kv_cache");
  const std::vector<Result> results = run_case(what, kReference);
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(results[0].output, "kv_cache");
  EXPECT_EQ(results[0].expected.data, what.tensors.at("expected.kv_cache").view().data);
  const auto same = [&](const Tensor& tensor) {
    return compare("append_kv", "kv_cache", tensor.view(), before.view()).passed;
  };
  EXPECT_TRUE(same(what.tensors.at("kv_cache")));
  EXPECT_FALSE(same(results[0].got));
}

TEST(CaseSteps, ListsBecomeSpansInOrder) {
  const Case what = make_merge_states({.states = 12, .h_q = 1, .d_v = 8}, 1);
  const std::vector<Step> steps = prepare(what);
  const auto& op = std::get<MergeStates>(steps.at(0).operation);
  ASSERT_EQ(op.outs.size(), 12u);
  ASSERT_EQ(op.lses.size(), 12u);
  for (std::size_t i = 0; i < 12; ++i) {
    EXPECT_EQ(op.outs[i].data, what.tensors.at("outs." + std::to_string(i)).view().data);
  }
}

TEST(CaseSteps, TheMetadataChoosesAmongSeveralOutputTypes) {
  MergeStatesKnobs knobs{.h_q = 1, .d_v = 8};
  knobs.out_type = DataType::kF32;
  Case what = make_merge_states(knobs, 1);
  EXPECT_EQ(prepare(what)[0].outputs.at("out").type(), DataType::kF32);
  what.metadata.erase("out_type");
  EXPECT_EQ(prepare(what)[0].outputs.at("out").type(), DataType::kBf16);  // of the first input
  what.tensors["out"] = Tensor(DataType::kF16, {2, 1, 1, 8});
  EXPECT_EQ(prepare(what)[0].outputs.at("out").type(), DataType::kF16);
}

TEST(CaseSteps, AnExpectedOutputTellsSizesThatNothingElseTells) {
  Case what = small_dense();
  what.metadata.erase("head_dim_v");
  what.tensors["out"] = Tensor(DataType::kBf16, {2, 1, 2, 8});
  EXPECT_EQ(prepare(what)[0].outputs.at("out").shape(), (std::vector<std::int64_t>{2, 1, 2, 8}));
}

TEST(CaseSteps, OutputsCanHaveGaps) {
  Case what = small_dense();
  const std::vector<Result> packed = run_case(what, kReference);
  what.output_gap = 8;
  const std::vector<Result> gaps = run_case(what, kReference);
  for (std::size_t i = 0; i < packed.size(); ++i) {
    EXPECT_NE(gaps[i].got.view().strides, packed[i].got.view().strides);
    EXPECT_TRUE(compare("dense_decode", packed[i].output, gaps[i].got.view(), packed[i].got.view()).passed);
  }
}

TEST(CaseSteps, MhaWithoutGradientRunsForwardOnly) {
  Case what = small_mha();
  what.tensors.erase("d_out");
  EXPECT_EQ(prepare(what).size(), 1u);
}

TEST(CaseSteps, RunAgainGivesTheSameBits) {
  const Case what = small_dense();
  const std::vector<Step> steps = prepare(what);
  steps[0].run(kReference);
  const Tensor first = steps[0].outputs.at("out");
  steps[0].run(kReference);
  EXPECT_TRUE(compare("dense_decode", "out", steps[0].outputs.at("out").view(), first.view(), {.exact = true})
                  .passed);
  EXPECT_EQ(steps[0].name(), "dense_decode");
}

TEST(CaseSteps, OutputsAreNanUntilTheStepRuns) {
  const Case what = small_dense();
  const std::vector<Step> steps = prepare(what);
  for (const auto& [name, tensor] : steps[0].outputs) {
    for (const std::byte byte : tensor.memory()) ASSERT_EQ(byte, std::byte{0xff}) << name;
  }
}

TEST(Tensors, StoreAndLoadEveryType) {
  for (const DataType type :
       {DataType::kBf16, DataType::kF16, DataType::kF32, DataType::kU8, DataType::kI32, DataType::kI64}) {
    Tensor tensor(type, {2, 3}, {10, 2});
    tensor.set({1, 2}, 100);
    EXPECT_EQ(tensor.at({1, 2}), 100) << name_of(type);
    EXPECT_EQ(tensor.memory().size(), 15 * size_of(type));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.view().data) % 64, 0u);
  }
}

TEST(Tensors, CopiesAreDeepAndMovesKeepTheAddress) {
  Tensor a(DataType::kF32, {2});
  a.set({0}, 1);
  Tensor b = a;
  b.set({0}, 2);
  EXPECT_EQ(a.at({0}), 1);
  const void* address = b.view().data;
  const Tensor c = std::move(b);
  EXPECT_EQ(c.view().data, address);
  EXPECT_EQ(c.at({0}), 2);
}

TEST(Tensors, RefuseSizesThatCannotBe) {
  expect_error("must not be negative", [] { Tensor(DataType::kU8, {-1}); });
  expect_error("must not be negative", [] { Tensor(DataType::kU8, {2}, {-1}); });
  expect_error("expected at most 5 dimensions", [] { Tensor(DataType::kU8, {1, 1, 1, 1, 1, 1}); });
  expect_error("expected at most 5 dimensions and as many strides",
               [] { Tensor(DataType::kU8, {1, 1}, {1}); });
  expect_error("does not fit in 64 bits", [] { Tensor(DataType::kI64, {1LL << 62}); });
  expect_error("does not fit in 64 bits", [] { Tensor(DataType::kU8, {1LL << 40, 1LL << 40}); });
  expect_error("bf16 is not an FP8 cache format", [] { fp8_cache(KvFormat::kBf16, 1, 1); });
}

}  // namespace
}  // namespace flashmla::cases
