// FLASHMLA_CHECK=1 and Execution::check_indices: an index out of range is an error with its place.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "valid_operations.h"

namespace flashmla {
namespace {

Execution checking() {
  Execution on;
  on.check_indices = true;
  return on;
}

/// The message of a call with checks, or "no error".
template <class Op>
std::string message_of(const Op& op, const Execution& on = checking()) {
  try {
    run_with_workspace(op, on);
    return "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kValue);
    return error.what();
  }
}

/// Changes one integer of a view, and takes it back when it goes out of scope.
class Changed {
 public:
  Changed(const TensorView& view, std::int64_t offset, std::int64_t value) : view_(view), offset_(offset) {
    old_ = exchange(value);
  }
  ~Changed() { exchange(old_); }
  Changed(const Changed&) = delete;
  Changed& operator=(const Changed&) = delete;

 private:
  std::int64_t exchange(std::int64_t value) {
    if (view_.type == DataType::kI64) return std::exchange(view_.as<std::int64_t>()[offset_], value);
    return std::exchange(view_.as<std::int32_t>()[offset_], static_cast<std::int32_t>(value));
  }

  TensorView view_;
  std::int64_t offset_;
  std::int64_t old_ = 0;
};

TEST(CheckIndices, AcceptsValidIndices) {
  Operations::for_each([]<class Op>() {
    const Valid<Op> valid;
    EXPECT_EQ(message_of(valid.op), "no error") << Op::fields().operation;
  });
}

TEST(CheckIndices, FindsABlockThatDoesNotExist) {
  const Valid<DenseDecode> valid;
  const TensorView& table = valid.op.block_table;
  const std::string blocks = std::to_string(valid.op.kv_cache.shape[0]);
  {
    const Changed changed(table, table.strides[0] + 1, -1);
    EXPECT_EQ(message_of(valid.op), "dense_decode: block_table[1, 1] must be in [0, " + blocks + "), got -1");
  }
  const Changed changed(table, 2, 1000);
  EXPECT_EQ(message_of(valid.op), "dense_decode: block_table[0, 2] must be in [0, " + blocks + "), got 1000");
}

TEST(CheckIndices, FindsABlockThatDoesNotExistInACacheOfCodes) {
  cases::DenseDecodeKnobs knobs{.h_q = 2, .d_qk = 16, .d_v = 8, .page = 4, .seqlens = {9}};
  knobs.e4m3 = true;
  const ValidOperation<DenseDecode> valid(cases::make_dense_decode(knobs, 1));
  EXPECT_EQ(message_of(valid.op), "no error");
  const std::string blocks = std::to_string(valid.op.kv_cache.shape[0]);
  const Changed changed(valid.op.block_table, 2, -1);
  EXPECT_EQ(message_of(valid.op), "dense_decode: block_table[0, 2] must be in [0, " + blocks + "), got -1");
}

TEST(CheckIndices, LeavesUnusedBlocksAlone) {
  cases::Case what = valid_case(static_cast<const DenseDecode*>(nullptr));
  what.tensors.at("cache_seqlens").set({0}, 4);  // one block of four tokens
  const ValidOperation<DenseDecode> valid(std::move(what));
  const Changed changed(valid.op.block_table, 1, -77);
  EXPECT_EQ(message_of(valid.op), "no error");
}

TEST(CheckIndices, FindsALengthOutOfRange) {
  const Valid<DenseDecode> valid;
  const std::string end = std::to_string(valid.op.block_table.shape[1] * 4 + 1);
  {
    const Changed changed(valid.op.cache_seqlens, 1, -2);
    EXPECT_EQ(message_of(valid.op), "dense_decode: cache_seqlens[1] must be in [0, " + end + "), got -2");
  }
  const Changed changed(valid.op.cache_seqlens, 0, 5000);
  EXPECT_EQ(message_of(valid.op), "dense_decode: cache_seqlens[0] must be in [0, " + end + "), got 5000");
}

TEST(CheckIndices, FindsASelectedTokenThatDoesNotExist) {
  const Valid<SparseDecode> valid;
  {
    const Changed changed(valid.op.indices, 4, 12);
    EXPECT_EQ(message_of(valid.op), "sparse_decode: indices[0, 0, 4] must be in [0, 12) or -1, got 12");
  }
  {
    const Changed changed(valid.op.indices, valid.op.indices.strides[0] + 1, -2);
    EXPECT_EQ(message_of(valid.op), "sparse_decode: indices[1, 0, 1] must be in [0, 12) or -1, got -2");
  }
  const Changed changed(valid.op.extra_indices, 2, 4);
  EXPECT_EQ(message_of(valid.op), "sparse_decode: extra_indices[0, 0, 2] must be in [0, 4) or -1, got 4");
}

TEST(CheckIndices, TakesMinusOneAsPadding) {
  const Valid<SparseDecode> decode;
  const Changed first(decode.op.indices, 0, -1);
  const Changed second(decode.op.extra_indices, 0, -1);
  EXPECT_EQ(message_of(decode.op), "no error");

  const Valid<SparsePrefill> prefill;
  const Changed third(prefill.op.indices, 0, -1);
  EXPECT_EQ(message_of(prefill.op), "no error");

  const Valid<AppendKv> append;
  const Changed fourth(append.op.slot_mapping, 3, -1);
  EXPECT_EQ(message_of(append.op), "no error");
}

TEST(CheckIndices, LeavesIndicesBehindTopkLengthAlone) {
  const Valid<SparseDecode> decode;  // topk_length is 6 and 2
  const Changed first(decode.op.indices, decode.op.indices.strides[0] + 2, 99);
  EXPECT_EQ(message_of(decode.op), "no error");

  const Valid<SparsePrefill> prefill;  // topk_length is 5, 2 and 0
  const Changed second(prefill.op.indices, 2 * prefill.op.indices.strides[0], -99);
  EXPECT_EQ(message_of(prefill.op), "no error");
}

TEST(CheckIndices, FindsATopkLengthOutOfRange) {
  const Valid<SparseDecode> decode;
  {
    const Changed changed(decode.op.topk_length, 1, 7);
    EXPECT_EQ(message_of(decode.op), "sparse_decode: topk_length[1] must be in [0, 7), got 7");
  }
  {
    const Changed changed(decode.op.extra_topk_length, 0, -1);
    EXPECT_EQ(message_of(decode.op), "sparse_decode: extra_topk_length[0] must be in [0, 4), got -1");
  }
  const Valid<SparsePrefill> prefill;
  const Changed changed(prefill.op.topk_length, 2, -1);
  EXPECT_EQ(message_of(prefill.op), "sparse_prefill: topk_length[2] must be in [0, 6), got -1");
}

TEST(CheckIndices, FindsARowThatDoesNotExistInPrefill) {
  const Valid<SparsePrefill> valid;
  const Changed changed(valid.op.indices, valid.op.indices.strides[1] + 3, 10);
  EXPECT_EQ(message_of(valid.op), "sparse_prefill: indices[0, 1, 3] must be in [0, 10) or -1, got 10");
}

template <class Mha>
void expect_bounds_checked(const std::string& operation) {
  const Valid<Mha> valid;  // {0, 3, 5} and {0, 4, 9}
  {
    const Changed changed(valid.op.cu_seqlens_q, 0, 1);
    EXPECT_EQ(message_of(valid.op), operation + ": cu_seqlens_q[0] must be in [0, 1), got 1");
  }
  {
    const Changed changed(valid.op.cu_seqlens_q, 2, 6);
    EXPECT_EQ(message_of(valid.op), operation + ": cu_seqlens_q[2] must be in [3, 6), got 6");
  }
  {
    const Changed changed(valid.op.cu_seqlens_k, 2, 3);
    EXPECT_EQ(message_of(valid.op), operation + ": cu_seqlens_k[2] must be in [4, 10), got 3");
  }
  const Changed changed(valid.op.cu_seqlens_k, 1, -4);
  EXPECT_EQ(message_of(valid.op), operation + ": cu_seqlens_k[1] must be in [0, 10), got -4");
}

TEST(CheckIndices, FindsBoundsOfSequencesThatDoNotRiseWithinTheTensors) {
  expect_bounds_checked<MhaForward>("mha_forward");
  expect_bounds_checked<MhaBackward>("mha_backward");
}

TEST(CheckIndices, FindsASlotThatDoesNotExist) {
  const Valid<AppendKv> valid;
  {
    const Changed changed(valid.op.slot_mapping, 4, 12);
    EXPECT_EQ(message_of(valid.op), "append_kv: slot_mapping[4] must be in [0, 12) or -1, got 12");
  }
  const Changed changed(valid.op.slot_mapping, 0, -9000000000);
  EXPECT_EQ(message_of(valid.op), "append_kv: slot_mapping[0] must be in [0, 12) or -1, got -9000000000");
}

TEST(CheckIndices, FindsALengthOutOfRangeOfASchedule) {
  const Valid<MakeSchedule> dense;
  {
    const Changed changed(dense.op.cache_seqlens, 1, 8193);
    EXPECT_EQ(message_of(dense.op), "make_schedule: cache_seqlens[1] must be in [0, 8193), got 8193");
  }
  cases::MakeScheduleKnobs knobs;
  knobs.seqlens = {};
  knobs.batch = 2;
  knobs.topk = 20;
  knobs.extra_topk = 10;
  knobs.topk_length = {20, 1};
  knobs.extra_topk_length = {0, 10};
  const ValidOperation<MakeSchedule> sparse(cases::make_make_schedule(knobs, 1));
  {
    const Changed changed(sparse.op.topk_length, 0, 21);
    EXPECT_EQ(message_of(sparse.op), "make_schedule: topk_length[0] must be in [0, 21), got 21");
  }
  const Changed changed(sparse.op.extra_topk_length, 1, -3);
  EXPECT_EQ(message_of(sparse.op), "make_schedule: extra_topk_length[1] must be in [0, 11), got -3");
}

TEST(CheckIndices, IsOffUnlessAskedFor) {
  const Valid<AppendKv> valid;
  const Changed changed(valid.op.slot_mapping, 4, 12);
  EXPECT_EQ(message_of(valid.op, {}), "no error");
}

TEST(CheckIndices, IsSwitchedOnByTheEnvironment) {
  const Valid<AppendKv> valid;
  const Changed changed(valid.op.slot_mapping, 4, 12);
  setenv("FLASHMLA_CHECK", "1", 1);
  EXPECT_EQ(message_of(valid.op, {}), "append_kv: slot_mapping[4] must be in [0, 12) or -1, got 12");
  setenv("FLASHMLA_CHECK", "0", 1);
  EXPECT_EQ(message_of(valid.op, {}), "no error");
  unsetenv("FLASHMLA_CHECK");
}

TEST(CheckIndices, WritesNothingBeforeItFails) {
  const Valid<DenseDecode> valid;
  const Changed changed(valid.op.cache_seqlens, 1, -2);
  EXPECT_NE(message_of(valid.op), "no error");
  for (const std::byte byte : valid.output("out").memory()) ASSERT_EQ(byte, std::byte{0xff});
  for (const std::byte byte : valid.output("lse").memory()) ASSERT_EQ(byte, std::byte{0xff});
}

}  // namespace
}  // namespace flashmla
