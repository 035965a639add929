// Tests of what ptx/matrix.h has from SM90 on: stmatrix.
#include "buffer.h"
#include "cuda/launch.h"
#include "cuda/ptx/matrix.h"
#include "cuda/ptx/threads.h"
#include "values.h"
#include "wrapper_test.h"

namespace flashmla::wrappers {
namespace {

constexpr std::uint32_t kRows = 64;  // of 16 bytes in shared memory

struct Rows {
  ptx::Bytes16 plain[kRows];
  ptx::Bytes16 transposed[kRows];
};

struct Params {
  const std::uint32_t* in;  // 5 a lane: the row that it names, and a fragment
  ptx::Bytes16* out;
};

__global__ void store_matrix_kernel(const __grid_constant__ Params params) {
  Rows& shared = ptx::shared_memory<Rows>();
  const std::uint32_t lane = ptx::thread_index().x;
  for (std::uint32_t row = lane; row < kRows; row += ptx::kWarpSize) {
    shared.plain[row] = {};
    shared.transposed[row] = {};
  }
  ptx::sync_warp();
  const std::uint32_t* const in = params.in + 5 * lane;
  const std::uint32_t fragment[4] = {in[1], in[2], in[3], in[4]};
  ptx::store_matrix(&shared.plain[in[0]], fragment);
  ptx::store_matrix_transposed(&shared.transposed[in[0]], fragment);
  ptx::sync_warp();
  for (std::uint32_t row = lane; row < kRows; row += ptx::kWarpSize) {
    params.out[row] = shared.plain[row];
    params.out[kRows + row] = shared.transposed[row];
  }
}

/// Each lane names a row of its own, in no order.
void store_matrix(Outputs& outputs) {
  std::vector<std::uint32_t> inputs = random_words(5 * ptx::kWarpSize, 1);
  for (std::uint32_t lane = 0; lane < ptx::kWarpSize; ++lane) inputs[5 * lane] = (lane * 37 + 11) % kRows;
  const Buffer<std::uint32_t> in(inputs);
  const Buffer<ptx::Bytes16> out(2 * kRows);
  cuda::launch(store_matrix_kernel, "store_matrix", {.block = {ptx::kWarpSize}, .shared_bytes = sizeof(Rows)},
               Params{.in = in.data(), .out = out.data()});
  outputs.add(out.contents());
}

}  // namespace

std::vector<WrapperTest> store_matrix_tests() { return {{"matrix_store", Needs::kSm90, store_matrix}}; }

}  // namespace flashmla::wrappers
