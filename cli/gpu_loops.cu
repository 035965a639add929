// Kernels whose rates are the ceilings of a GPU: what mma.sync reaches in a matrix product, and in registers.
#include "cli/gpu_loops.h"
#include "cuda/launch.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/math.h"
#include "cuda/ptx/matrix.h"
#include "cuda/ptx/threads.h"

namespace flashmla::cli {
namespace {

using ptx::Bf16;

// A block computes 128 x 256 elements with 2 x 4 warps of 64 x 64: 128 f32 accumulators a thread, and half as
// many bytes from shared memory for each product as with tiles of 32 x 64.
constexpr int kWarpM = 64;
constexpr int kWarpN = 64;
constexpr int kWarpsAlongM = kMmaProductM / kWarpM;
constexpr int kThreads = ptx::kWarpSize * kWarpsAlongM * (kMmaProductN / kWarpN);
constexpr int kStepK = 16;  // of one instruction
constexpr int kSteps = kMmaProductK / kStepK;
constexpr int kChunk = 8;  // elements of 16 bytes
constexpr int kChunksInRow = kMmaProductK / kChunk;
/// Blocks that run together share rows of `b`, so that they stay in the L2 cache.
constexpr int kGroup = 8;

struct ProductParams {
  const Bf16* a;
  const Bf16* b;
  Bf16* c;
  int m;
  int n;
  int k;
};

template <int kStages>
struct SharedMemory {
  Bf16 a[kStages][kMmaProductM * kMmaProductK];
  Bf16 b[kStages][kMmaProductN * kMmaProductK];
};

/// Place of 8 elements in a tile. Eight rows below each other lie in eight different groups of banks.
FLASHMLA_DEVICE int place_of(int row, int chunk) {
  return row * kMmaProductK + (chunk ^ (row % kChunksInRow)) * kChunk;
}

/// One thread's part of copying tiles of `kRows` rows: the same column of every 32nd row.
template <int kRows>
class TileCopy {
 public:
  FLASHMLA_DEVICE TileCopy(const Bf16* from, int k) : stride_(static_cast<std::int64_t>(kRowsAtOnce) * k) {
    const int thread = static_cast<int>(ptx::thread_index().x);
    const int row = thread / kChunksInRow;
    const int chunk = thread % kChunksInRow;
    from_ = from + static_cast<std::int64_t>(row) * k + chunk * kChunk;
    place_ = place_of(row, chunk);
  }

  /// Starts the copy of the next 64 columns.
  FLASHMLA_DEVICE void start(Bf16* tile) {
    const Bf16* from = from_;
#pragma unroll
    for (int i = 0; i < kRows / kRowsAtOnce; ++i) {
      ptx::copy_async_16(tile + place_ + i * kRowsAtOnce * kMmaProductK, from, 16);
      from += stride_;
    }
    from_ += kMmaProductK;
  }

 private:
  static constexpr int kRowsAtOnce = kThreads / kChunksInRow;
  const Bf16* from_;
  std::int64_t stride_;
  int place_;
};

/// What a warp multiplies in one step: 64 rows of `a` and 64 rows of `b`, 16 columns.
struct Fragments {
  std::uint32_t a[kWarpM / 16][4];
  std::uint32_t b[kWarpN / 16][4];  // two tiles of 8 rows each

  FLASHMLA_DEVICE void load(const Bf16* a_tile, const Bf16* b_tile, int step) {
    const int lane = ptx::lane_index();
    const int a_row = ptx::warp_index() % kWarpsAlongM * kWarpM + lane % 16;
    const int b_row = ptx::warp_index() / kWarpsAlongM * kWarpN + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int i = 0; i < kWarpM / 16; ++i) {
      ptx::load_matrix(a[i], a_tile + place_of(a_row + 16 * i, 2 * step + lane / 16));
    }
#pragma unroll
    for (int j = 0; j < kWarpN / 16; ++j) {
      ptx::load_matrix(b[j], b_tile + place_of(b_row + 16 * j, 2 * step + lane / 8 % 2));
    }
  }
};

using Accumulators = float[kWarpM / 16][kWarpN / 8][4];

FLASHMLA_DEVICE void multiply(Accumulators& sums, const Fragments& factors) {
#pragma unroll
  for (int i = 0; i < kWarpM / 16; ++i) {
#pragma unroll
    for (int j = 0; j < kWarpN / 8; ++j) {
      const std::uint32_t* b = factors.b[j / 2] + j % 2 * 2;
      ptx::mma_16x8x16<Bf16>(sums[i][j], factors.a[i], b[0], b[1]);
    }
  }
}

/// First row and column of the block's tile: blocks go down `kGroup` tiles, then one to the right.
struct Tile {
  int row;
  int column;

  FLASHMLA_DEVICE explicit Tile(const ProductParams& p) {
    const int rows = p.m / kMmaProductM;
    const int columns = p.n / kMmaProductN;
    const int block = static_cast<int>(ptx::block_index().x);
    const int first = block / (kGroup * columns) * kGroup;
    const int height = rows - first < kGroup ? rows - first : kGroup;
    const int within = block % (kGroup * columns);
    row = (first + within % height) * kMmaProductM;
    column = within / height * kMmaProductN;
  }
};

FLASHMLA_DEVICE void store(const ProductParams& p, const Tile& tile, const Accumulators& sums) {
  const int lane = ptx::lane_index();
  const int row = tile.row + ptx::warp_index() % kWarpsAlongM * kWarpM + lane / 4;
  const int column = tile.column + ptx::warp_index() / kWarpsAlongM * kWarpN + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < kWarpM / 16; ++i) {
#pragma unroll
    for (int j = 0; j < kWarpN / 8; ++j) {
      Bf16* upper = p.c + static_cast<std::int64_t>(row + 16 * i) * p.n + column + 8 * j;
      Bf16* lower = upper + static_cast<std::int64_t>(8) * p.n;
      *reinterpret_cast<std::uint32_t*>(upper) = ptx::pack_bf16(sums[i][j][0], sums[i][j][1]);
      *reinterpret_cast<std::uint32_t*>(lower) = ptx::pack_bf16(sums[i][j][2], sums[i][j][3]);
    }
  }
}

/// Each step loads the fragments of the next one first. Before the last step of a tile all threads meet: the
/// next tile is there then, and the tile before is free to be overwritten.
template <int kStages>
__global__ void __launch_bounds__(kThreads, 1) mma_product(const __grid_constant__ ProductParams p) {
  auto& shared = ptx::shared_memory<SharedMemory<kStages>>();
  const Tile tile(p);
  TileCopy<kMmaProductM> a(p.a + static_cast<std::int64_t>(tile.row) * p.k, p.k);
  TileCopy<kMmaProductN> b(p.b + static_cast<std::int64_t>(tile.column) * p.k, p.k);
  const int tiles = p.k / kMmaProductK;
  const auto start_copy = [&](int number) {
    if (number < tiles) {
      a.start(shared.a[number % kStages]);
      b.start(shared.b[number % kStages]);
    }
    ptx::copy_async_commit();
  };

  for (int number = 0; number < kStages - 1; ++number) start_copy(number);
  ptx::copy_async_wait<kStages - 2>();
  ptx::sync_block();
  Accumulators sums = {};
  Fragments factors[2];
  factors[0].load(shared.a[0], shared.b[0], 0);
#pragma unroll 1
  for (int number = 0; number < tiles; ++number) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const bool last = step + 1 == kSteps;
      if (last) {
        ptx::copy_async_wait<kStages - 2>();
        ptx::sync_block();
      }
      const int next = (number + (last ? 1 : 0)) % kStages;
      if (!last || number + 1 < tiles) {
        factors[(step + 1) % 2].load(shared.a[next], shared.b[next], (step + 1) % kSteps);
      }
      if (step == 0) start_copy(number + kStages - 1);
      multiply(sums, factors[step % 2]);
    }
  }
  store(p, tile, sums);
}

template <int kStages>
void launch_product(const MmaProduct& product, void* stream) {
  const auto blocks = static_cast<std::uint32_t>((product.m / kMmaProductM) * (product.n / kMmaProductN));
  cuda::launch(mma_product<kStages>, "mma_product",
               {.grid = {blocks},
                .block = {kThreads},
                .shared_bytes = sizeof(SharedMemory<kStages>),
                .stream = stream},
               ProductParams{static_cast<const Bf16*>(product.a), static_cast<const Bf16*>(product.b),
                             static_cast<Bf16*>(product.c), product.m, product.n, product.k});
}

struct PeakParams {
  float* out;
  int rounds;
};

constexpr int kPeakFragments = 4;

/// Two random bf16 numbers with magnitudes from 1 to 2.
FLASHMLA_DEVICE std::uint32_t random_pair(std::uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return (state & 0x807f807fu) | 0x3f803f80u;
}

__global__ void __launch_bounds__(kMmaPeakThreads, 2) mma_peak(const __grid_constant__ PeakParams p) {
  const std::uint32_t thread = ptx::block_index().x * kMmaPeakThreads + ptx::thread_index().x;
  std::uint32_t state = thread;
  std::uint32_t a[kPeakFragments][4];
  std::uint32_t b[kPeakFragments][2];
#pragma unroll
  for (int i = 0; i < kPeakFragments; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) a[i][j] = random_pair(state);
    for (int j = 0; j < 2; ++j) b[i][j] = random_pair(state);
  }
  float sums[kPeakFragments][kPeakFragments][4] = {};
  for (int round = 0; round < p.rounds; ++round) {
#pragma unroll
    for (int i = 0; i < kPeakFragments; ++i) {
#pragma unroll
      for (int j = 0; j < kPeakFragments; ++j) ptx::mma_16x8x16<Bf16>(sums[i][j], a[i], b[j][0], b[j][1]);
    }
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPeakFragments; ++i) {
#pragma unroll
    for (int j = 0; j < kPeakFragments; ++j) sum += sums[i][j][0] + sums[i][j][3];
  }
  p.out[thread] = sum;
}

}  // namespace

void launch_mma_product(const MmaProduct& product, int shared_memory, void* stream) {
  if (shared_memory >= static_cast<int>(sizeof(SharedMemory<4>))) {
    launch_product<4>(product, stream);
  } else {
    launch_product<2>(product, stream);
  }
}

void launch_mma_peak(float* out, int blocks, int rounds, void* stream) {
  cuda::launch(mma_peak, "mma_peak",
               {.grid = {static_cast<std::uint32_t>(blocks)}, .block = {kMmaPeakThreads}, .stream = stream},
               PeakParams{out, rounds});
}

double mma_peak_flops() {
  constexpr double kFlops = 2.0 * 16 * 8 * 16;
  return kFlops * kPeakFragments * kPeakFragments * (kMmaPeakThreads / ptx::kWarpSize);
}

}  // namespace flashmla::cli
