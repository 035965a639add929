// Decodes one token for each of two sequences whose latent rows lie in a paged cache.
#include <flashmla/flashmla.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

int main() {
  using flashmla::DataType, flashmla::TensorView;
  constexpr std::int64_t batch = 2, s_q = 1, heads = 128, d_qk = 576, d_v = 512;
  constexpr std::int64_t blocks = 4, page = 64, max_blocks = 2;
  constexpr std::uint16_t one = 0x3f80;  // bf16

  std::vector<std::uint16_t> q(batch * s_q * heads * d_qk, one);
  std::vector<std::uint16_t> cache(blocks * page * d_qk, one);
  std::vector<std::int32_t> block_table{0, 2, 3, 1};  // blocks of sequence 0, of sequence 1
  std::vector<std::int32_t> lengths{100, 70};
  std::vector<std::uint16_t> out(batch * s_q * heads * d_v);
  std::vector<float> lse(batch * heads * s_q);

  flashmla::DenseDecode op{
      .q = TensorView::contiguous(q.data(), DataType::kBf16, {batch, s_q, heads, d_qk}),
      .kv_cache = TensorView::contiguous(cache.data(), DataType::kBf16, {blocks, page, 1, d_qk}),
      .block_table = TensorView::contiguous(block_table.data(), DataType::kI32, {batch, max_blocks}),
      .cache_seqlens = TensorView::contiguous(lengths.data(), DataType::kI32, {batch}),
      .causal = true,
      .out = TensorView::contiguous(out.data(), DataType::kBf16, {batch, s_q, heads, d_v}),
      .lse = TensorView::contiguous(lse.data(), DataType::kF32, {batch, heads, s_q}),
  };
  flashmla::Execution on;
  try {
    std::vector<std::byte> workspace(flashmla::workspace_bytes(op, on));
    on.workspace = workspace.data();
    on.workspace_size = workspace.size();
    flashmla::run(op, on);
  } catch (const flashmla::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }

  // All rows are one: out is one, and lse is 576 / sqrt(576) + log(length).
  for (std::int64_t b = 0; b < batch; ++b) {
    std::printf("sequence %d: out is bf16 0x%04x, lse is %.4f\n", int(b), out[b * heads * d_v],
                lse[b * heads]);
  }
}
