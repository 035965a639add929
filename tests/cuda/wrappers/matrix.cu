// Tests of what ptx/matrix.h has from SM80 on: ldmatrix and mma.sync.
#include "buffer.h"
#include "cuda/launch.h"
#include "cuda/ptx/matrix.h"
#include "cuda/ptx/threads.h"
#include "matrix_values.h"
#include "values.h"
#include "wrapper_test.h"

namespace flashmla::wrappers {
namespace {

constexpr std::uint32_t kRows = 256;  // of 16 bytes in shared memory
constexpr std::uint32_t kLoads = 16;
constexpr std::uint32_t kRegisters = 12;  // that one load of each kind gives a lane

struct Rows {
  ptx::Bytes16 rows[kRows];
};

struct LoadParams {
  const ptx::Bytes16* contents;
  const std::uint32_t* rows;  // the row that a lane names in each load
  std::uint32_t* out;
};

__global__ void load_matrix_kernel(const __grid_constant__ LoadParams params) {
  Rows& shared = ptx::shared_memory<Rows>();
  const std::uint32_t lane = ptx::thread_index().x;
  for (std::uint32_t row = lane; row < kRows; row += ptx::kWarpSize) shared.rows[row] = params.contents[row];
  ptx::sync_warp();
  for (std::uint32_t i = 0; i < kLoads; ++i) {
    const ptx::Bytes16* const row = &shared.rows[params.rows[i * ptx::kWarpSize + lane]];
    std::uint32_t four[4], four_transposed[4], two[2], two_transposed[2];
    ptx::load_matrix(four, row);
    ptx::load_matrix_transposed(four_transposed, row);
    ptx::load_matrix(two, row);
    ptx::load_matrix_transposed(two_transposed, row);
    std::uint32_t* const out = params.out + kRegisters * (i * ptx::kWarpSize + lane);
    for (int k = 0; k < 4; ++k) out[k] = four[k];
    for (int k = 0; k < 4; ++k) out[4 + k] = four_transposed[k];
    for (int k = 0; k < 2; ++k) out[8 + k] = two[k];
    for (int k = 0; k < 2; ++k) out[10 + k] = two_transposed[k];
  }
}

/// Rows may be anywhere, the same one several times.
void load_matrix(Outputs& outputs) {
  Random random(1);
  std::vector<std::uint32_t> named(kLoads * ptx::kWarpSize);
  for (auto& row : named) row = static_cast<std::uint32_t>(random.between(0, kRows - 1));
  const Buffer<std::uint32_t> contents(random_words(4 * kRows, 2));
  const Buffer<std::uint32_t> rows(named);
  const Buffer<std::uint32_t> out(kRegisters * kLoads * ptx::kWarpSize);
  cuda::launch(load_matrix_kernel, "load_matrix", {.block = {ptx::kWarpSize}, .shared_bytes = sizeof(Rows)},
               LoadParams{.contents = reinterpret_cast<const ptx::Bytes16*>(contents.data()),
                          .rows = rows.data(),
                          .out = out.data()});
  outputs.add(out.contents());
}

constexpr std::uint32_t kWarps = 4;
constexpr std::uint32_t kProducts = 4096;  // one a warp

struct ProductParams {
  const std::uint32_t* a;  // 4 a lane
  const std::uint32_t* b;  // 2 a lane
  const float* c;          // 4 a lane
  float* d;
};

/// `kDepth` products a sum. The registers are taken as they come: the layout of fragments is tested with
/// them.
template <class T, int kDepth>
__global__ void product_kernel(const __grid_constant__ ProductParams params) {
  const std::uint32_t i = ptx::block_index().x * kWarps * ptx::kWarpSize + ptx::thread_index().x;
  const std::uint32_t* const b = params.b + 2 * i;
  float c[4];
  for (int k = 0; k < 4; ++k) c[k] = params.c[4 * i + k];
  if constexpr (kDepth == 16) {
    std::uint32_t a[4];
    for (int k = 0; k < 4; ++k) a[k] = params.a[4 * i + k];
    ptx::mma_16x8x16<T>(c, a, b[0], b[1]);
  } else {
    std::uint32_t a[2];
    for (int k = 0; k < 2; ++k) a[k] = params.a[4 * i + k];
    ptx::mma_16x8x8<T>(c, a, b[0]);
  }
  for (int k = 0; k < 4; ++k) params.d[4 * i + k] = c[k];
}

template <class T, int kDepth>
void products(Outputs& outputs) {
  constexpr Format kFormat = Format::of<T>();
  constexpr std::uint32_t kLanes = kProducts * ptx::kWarpSize;
  Random random(3);
  std::vector<std::uint32_t> a(4 * kLanes), b(2 * kLanes);
  std::vector<float> c(4 * kLanes);
  for (std::uint32_t product = 0; product < kProducts; ++product) {
    const Mix mix = any_mix(random, kFormat);
    for (std::uint32_t lane = product * ptx::kWarpSize; lane < (product + 1) * ptx::kWarpSize; ++lane) {
      for (int k = 0; k < 4; ++k) a[4 * lane + k] = operand_pair(random, kFormat, mix, 0x8000);
      for (int k = 0; k < 2; ++k) b[2 * lane + k] = operand_pair(random, kFormat, mix, 0);
      for (int k = 0; k < 4; ++k) c[4 * lane + k] = accumulator(random, mix);
    }
  }
  const Buffer<std::uint32_t> device_a(a), device_b(b);
  const Buffer<float> device_c(c);
  const Buffer<float> d(4 * kLanes);
  cuda::launch(
      product_kernel<T, kDepth>, "product",
      {.grid = {kProducts / kWarps}, .block = {kWarps * ptx::kWarpSize}},
      ProductParams{.a = device_a.data(), .b = device_b.data(), .c = device_c.data(), .d = d.data()});
  outputs.add(d.contents());
}

}  // namespace

std::vector<WrapperTest> matrix_tests() {
  return {{"matrix_load", Needs::kSm80, load_matrix},
          {"matrix_16x8x16_bf16", Needs::kSm80, products<ptx::Bf16, 16>},
          {"matrix_16x8x16_f16", Needs::kSm80, products<ptx::F16, 16>},
          {"matrix_16x8x8_bf16", Needs::kSm80, products<ptx::Bf16, 8>},
          {"matrix_16x8x8_f16", Needs::kSm80, products<ptx::F16, 8>}};
}

}  // namespace flashmla::wrappers
