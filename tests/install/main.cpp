// Uses an installed flashmla: two cached tokens of equal weight give their mean.
#include <flashmla/flashmla.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

constexpr std::int64_t kWidth = 64;
constexpr std::uint16_t kOne = 0x3f80;    // bf16
constexpr std::uint16_t kTwo = 0x4000;    // bf16
constexpr std::uint16_t kThree = 0x4040;  // bf16

}  // namespace

int main() {
  using flashmla::DataType;
  using flashmla::TensorView;

  const std::vector<std::uint16_t> q(kWidth, 0);  // every logit is 0
  std::vector<std::uint16_t> cache(2 * kWidth, kOne);
  for (std::int64_t i = kWidth; i < 2 * kWidth; ++i) cache[i] = kThree;
  const std::array<std::int32_t, 1> block_table{0};
  const std::array<std::int32_t, 1> lengths{2};
  std::vector<std::uint16_t> out(kWidth);
  float lse = 0;

  const flashmla::DenseDecode op{
      .q = TensorView::contiguous(q.data(), DataType::kBf16, {1, 1, 1, kWidth}),
      .kv_cache = TensorView::contiguous(cache.data(), DataType::kBf16, {1, 2, 1, kWidth}),
      .block_table = TensorView::contiguous(block_table.data(), DataType::kI32, {1, 1}),
      .cache_seqlens = TensorView::contiguous(lengths.data(), DataType::kI32, {1}),
      .out = TensorView::contiguous(out.data(), DataType::kBf16, {1, 1, 1, kWidth}),
      .lse = TensorView::contiguous(&lse, DataType::kF32, {1, 1, 1}),
  };
  flashmla::Execution on;
  std::vector<std::byte> workspace(flashmla::workspace_bytes(op, on));
  on.workspace = workspace.data();
  on.workspace_size = workspace.size();
  flashmla::run(op, on);

  for (const std::uint16_t value : out) {
    if (value != kTwo) {
      std::printf("out is bf16 0x%04x, expected 2\n", value);
      return 1;
    }
  }
  if (std::abs(lse - std::log(2.0F)) > 1e-6F) {
    std::printf("lse is %g, expected log 2\n", lse);
    return 1;
  }
  std::printf("out = 2, lse = log 2\n");
  return 0;
}
