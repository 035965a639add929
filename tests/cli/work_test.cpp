// What an operation has to compute and to move.
#include "cli/work.h"

#include <gtest/gtest.h>

#include "cases/random.h"

namespace flashmla::test {
namespace {

TEST(Work, EachKvHeadOfSparsePrefillReadsItsOwnRows) {
  cases::SparsePrefillKnobs knobs;
  knobs.s_q = 3;
  knobs.s_kv = 50;
  knobs.h_q = 4;
  knobs.h_kv = 2;
  knobs.topk = 7;
  cases::Case what = cases::make_sparse_prefill(knobs, 1);
  cases::Tensor& indices = what.tensors.at("indices");
  cases::for_each_index(
      indices.view(), [&](auto index) { cases::set_element(indices.view(), index, index[1] == 0 ? 5 : 9); });
  const cli::Work work = cli::work_of(cases::prepare(what).front().operation);
  EXPECT_EQ(work.bytes, 2 * 576 * 2);  // one row for each kv head
  EXPECT_EQ(work.flops, 2.0 * 3 * 4 * 7 * (576 + 512));
}

}  // namespace
}  // namespace flashmla::test
