// flashmla run.
#include <gtest/gtest.h>

#include "cases/compare.h"
#include "cases/safetensors.h"
#include "command.h"
#include "flashmla/tensor.h"

namespace flashmla::test {
namespace {

/// An entry of a file in memory of its own, as files know no alignment.
cases::Tensor tensor_of(const cases::SafetensorsEntry& entry) {
  cases::Tensor tensor(entry.type, entry.shape);
  std::copy(entry.data.begin(), entry.data.end(), tensor.memory().begin());
  return tensor;
}

TEST(Run, WritesTheOutputsOfACase) {
  const std::string out = fresh_folder() / "out.safetensors";
  const Outcome outcome = run_tool({"run", golden("dense_decode_causal_bf16"), "-o", out});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("[3, 2, 16, 512]"), std::string::npos) << outcome.out;
  const cases::SafetensorsFile got(out);
  const cases::SafetensorsFile expected(golden("dense_decode_causal_bf16"));
  ASSERT_EQ(got.content().tensors.size(), 2U);
  for (const auto& [name, entry] : got.content().tensors) {
    const cases::Comparison found = cases::compare("dense_decode", name, tensor_of(entry).view(),
                                                   tensor_of(expected.content().tensors.at(name)).view());
    EXPECT_TRUE(found.passed) << found.description;
  }
}

TEST(Run, NeedsNoPlaceForTheOutputs) {
  const Outcome outcome =
      run_tool({"run", golden("quantize_v32"), "--backend", "reference", "--threads", "1"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("reference"), std::string::npos) << outcome.out;
}

TEST(Run, SeveralCasesGoIntoAFolder) {
  const std::filesystem::path folder = fresh_folder() / "new";
  const Outcome outcome =
      run_tool({"run", golden("mha_128_128_gqa"), golden("quantize_model1"), "--out", folder});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const cases::SafetensorsFile mha(folder / "mha_128_128_gqa.safetensors");
  for (const char* output : {"out", "lse", "d_q", "d_k", "d_v"})
    EXPECT_TRUE(mha.content().tensors.contains(output)) << output;
  const cases::SafetensorsFile quantized(folder / "quantize_model1.safetensors");
  EXPECT_TRUE(quantized.content().tensors.contains("kv_cache"));
}

}  // namespace
}  // namespace flashmla::test
