// The loops of which the ceilings are measured.
#include "cli/processor_loops.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace flashmla::cli {
namespace {

// Enough independent chains to hide the latency of two units, few enough for the registers.
constexpr int kWideChains = 24;    // of 32 registers
constexpr int kNarrowChains = 12;  // of 16 registers

using Floats = float __attribute__((vector_size(16)));
using Words = std::uint64_t __attribute__((vector_size(16)));

// In all of these loops the chains begin with different values, or the compiler would see that they are one.
// Where the multiplication is an instruction of its own to the compiler, the running value is a factor: the
// product of two constants would be taken out of the loop.
float dot_portable(std::int64_t iterations) {
  Floats sums[kNarrowChains];
  for (int i = 0; i < kNarrowChains; ++i) sums[i] = Floats{} + static_cast<float>(i);
  const Floats factor = {0.5F, 0.25F, 0.125F, 0.5F};
  const Floats term = {1, 2, 3, 4};
  for (std::int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (Floats& sum : sums) sum = sum * factor + term;
  }
  for (int i = 1; i < kNarrowChains; ++i) sums[0] += sums[i];
  return sums[0][0];
}

std::uint64_t read_portable(const std::uint64_t* begin, const std::uint64_t* end) {
  Words sums[4] = {};
  for (const std::uint64_t* word = begin; word < end; word += 8) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums[i] += *reinterpret_cast<const Words*>(word + 2 * i);
  }
  const Words sum = sums[0] + sums[1] + sums[2] + sums[3];
  return sum[0] + sum[1];
}

constexpr DotInstruction kPortableDot = {.name = "128-bit multiply and add",
                                         .instruction_set = "portable",
                                         .bf16_only = false,
                                         .flops_per_iteration = kNarrowChains * 4 * 2,
                                         .loop = dot_portable};

#if defined(__x86_64__)

__attribute__((target("avx2,fma"))) float dot_avx2(std::int64_t iterations) {
  __m256 sums[kNarrowChains];
  for (int i = 0; i < kNarrowChains; ++i) sums[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 factor = _mm256_set1_ps(0.5F);
  const __m256 term = _mm256_set1_ps(3);
  for (std::int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(sum, factor, term);
  }
  for (int i = 1; i < kNarrowChains; ++i) sums[0] = _mm256_add_ps(sums[0], sums[i]);
  return sums[0][0];
}

__attribute__((target("avx2"))) std::uint64_t read_avx2(const std::uint64_t* begin,
                                                        const std::uint64_t* end) {
  __m256i sums[2] = {};
  for (const std::uint64_t* word = begin; word < end; word += 8) {
    sums[0] = _mm256_add_epi64(sums[0], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(word)));
    sums[1] = _mm256_add_epi64(sums[1], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(word + 4)));
  }
  return static_cast<std::uint64_t>(_mm256_add_epi64(sums[0], sums[1])[0]);
}

__attribute__((target("avx512f"))) float dot_avx512(std::int64_t iterations) {
  __m512 sums[kWideChains];
  for (int i = 0; i < kWideChains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 factor = _mm512_set1_ps(0.5F);
  const __m512 term = _mm512_set1_ps(3);
  for (std::int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 24
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(sum, factor, term);
  }
  for (int i = 1; i < kWideChains; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  return sums[0][0];
}

__attribute__((target("avx512f,avx512bf16,avx512bw,avx512vl"))) float dot_avx512_bf16(
    std::int64_t iterations) {
  __m512 sums[kWideChains];
  for (int i = 0; i < kWideChains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  const auto a = (__m512bh)_mm512_set1_epi16(0x3f80);  // 1.0
  const auto b = (__m512bh)_mm512_set1_epi16(0x3f00);  // 0.5
  for (std::int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 24
    for (__m512& sum : sums) sum = _mm512_dpbf16_ps(sum, a, b);
  }
  for (int i = 1; i < kWideChains; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  return sums[0][0];
}

__attribute__((target("avx512f"))) std::uint64_t read_avx512(const std::uint64_t* begin,
                                                             const std::uint64_t* end) {
  __m512i sums[4] = {};
  for (const std::uint64_t* word = begin; word < end; word += 32) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums[i] = _mm512_add_epi64(sums[i], _mm512_loadu_si512(word + 8 * i));
  }
  const __m512i sum =
      _mm512_add_epi64(_mm512_add_epi64(sums[0], sums[1]), _mm512_add_epi64(sums[2], sums[3]));
  return static_cast<std::uint64_t>(sum[0]);
}

#if defined(__linux__)

constexpr int kTileRows = 16;     ///< of every tile
constexpr int kTileBytes = 64;    ///< of a row: 16 sums, or 16 pairs of bf16
constexpr int kTileProducts = 6;  ///< a step; two of the eight tiles are factors

/// What `ldtilecfg` loads.
struct TileShapes {
  std::uint8_t palette;
  std::uint8_t start_row;
  std::uint8_t reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};

alignas(64) constexpr TileShapes kTileShapes = {
    .palette = 1,
    .start_row = 0,
    .reserved = {},
    .row_bytes = {kTileBytes, kTileBytes, kTileBytes, kTileBytes, kTileBytes, kTileBytes, kTileBytes,
                  kTileBytes},
    .rows = {kTileRows, kTileRows, kTileRows, kTileRows, kTileRows, kTileRows, kTileRows, kTileRows}};

/// A tile of bf16 ones.
struct OnesTile {
  std::uint16_t numbers[kTileRows * kTileBytes / 2];
  constexpr OnesTile() : numbers() {
    for (std::uint16_t& number : numbers) number = 0x3f80;
  }
};

alignas(64) constexpr OnesTile kOnes;

// The sums stay in their tiles: the compiler cannot look into these instructions, so it removes none.
__attribute__((target("amx-tile,amx-bf16"))) float dot_amx_bf16(std::int64_t iterations) {
  _tile_loadconfig(&kTileShapes);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_loadd(6, kOnes.numbers, kTileBytes);
  _tile_loadd(7, kOnes.numbers, kTileBytes);
  for (std::int64_t i = 0; i < iterations; ++i) {
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(1, 6, 7);
    _tile_dpbf16ps(2, 6, 7);
    _tile_dpbf16ps(3, 6, 7);
    _tile_dpbf16ps(4, 6, 7);
    _tile_dpbf16ps(5, 6, 7);
  }
  _tile_release();
  return 0;
}

/// Linux gives a process the registers of tiles when it asks for them.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

void add_tiles(std::vector<DotInstruction>& all) {
  if (!may_use_tiles()) return;
  constexpr int kSums = kTileRows * (kTileBytes / 4);
  constexpr int kFlops = 2 * kSums * (kTileBytes / 2);
  all.push_back({.name = "tdpbf16ps",
                 .instruction_set = "amx_bf16",
                 .bf16_only = true,
                 .flops_per_iteration = kTileProducts * kFlops,
                 .loop = dot_amx_bf16});
}

#else

void add_tiles(std::vector<DotInstruction>&) {}

#endif

#endif

}  // namespace

#if defined(__x86_64__)

// Which one is the fastest differs: `vdpbf16ps` has half the rate of f32 FMA on some processors,
/// so that both do the same work in the same time.
std::vector<DotInstruction> dot_instructions() {
  std::vector<DotInstruction> all;
  add_tiles(all);
  const bool avx512 = __builtin_cpu_supports("avx512f");
  if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl")) {
    all.push_back({.name = "vdpbf16ps",
                   .instruction_set = "avx512_bf16",
                   .bf16_only = true,
                   .flops_per_iteration = kWideChains * 32 * 2,
                   .loop = dot_avx512_bf16});
  }
  if (avx512) {
    all.push_back({.name = "vfmadd231ps zmm",
                   .instruction_set = "avx512",
                   .bf16_only = false,
                   .flops_per_iteration = kWideChains * 16 * 2,
                   .loop = dot_avx512});
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    all.push_back({.name = "vfmadd231ps ymm",
                   .instruction_set = "avx2",
                   .bf16_only = false,
                   .flops_per_iteration = kNarrowChains * 8 * 2,
                   .loop = dot_avx2});
  }
  all.push_back(kPortableDot);
  return all;
}

ReadLoop read_loop() {
  if (__builtin_cpu_supports("avx512f")) return read_avx512;
  return __builtin_cpu_supports("avx2") ? read_avx2 : read_portable;
}

#else

std::vector<DotInstruction> dot_instructions() { return {kPortableDot}; }

ReadLoop read_loop() { return read_portable; }

#endif

}  // namespace flashmla::cli
