// Kernels that show what the emulator does with a launch.
#pragma once

#include <cstdint>

#include "cuda/ptx/bulk_copy.h"

namespace flashmla::emulated {

struct Sizes {
  std::uint32_t* out;  // a word for each thread of the grid
};
/// Writes where each thread is: its number in the grid, along x first.
void number_threads(Sizes params);

struct Sum {
  std::uint32_t* counter;
  std::uint32_t* order;  // of the grid's warps; as many words
};
/// Each warp takes a number, and writes who it is there.
void count_warps(Sum params);

struct Fresh {
  std::uint32_t* out;
  std::uint32_t words;
};
/// Copies shared memory that nobody has written.
void read_fresh_shared_memory(Fresh params);

struct Spin {
  std::uint32_t* flag;
  bool set;
};
/// One thread waits for a flag that another one sets, if `set`.
void spin(Spin params);

struct FailInBlock {
  std::uint32_t block;
  std::uint32_t thread;
};
/// This thread ends while the others wait for it.
void fail_in_one_block(FailInBlock params);

struct Deadlock {
  std::uint32_t unused;
};
/// Each of two warps waits at another barrier, one thread for a third thing.
void wait_for_ever(Deadlock params);

struct Gap {
  const float* in;
  float* out;
  std::int64_t at;
};
/// Copies one number.
void copy_number(Gap params);

struct PartCopy {
  const float* in;  // 4 numbers
  float* out;       // 8 numbers
  int numbers;
};
/// Copies the first `numbers` of four with one cp.async of 16 bytes, and of each of four with one of 4 bytes.
void copy_part(PartCopy params);

struct BoxCopy {
  ptx::TensorMap map;
  std::int32_t corner[3];
  std::uint32_t* out;  // the box's image in shared memory
  std::uint32_t words;
};
void load_box(BoxCopy params);

struct BoxStore {
  ptx::TensorMap map;
  std::int32_t corner[2];
  std::uint32_t words;
};
/// Stores a box whose image is the numbers 1, 2, 3...
void store_box(BoxStore params);

inline constexpr int kChainRows = 64;
inline constexpr int kChainColumns = 16;
inline constexpr int kChainDepth = 64;

struct Chain {
  const float* a;        // [kChainRows][kChainDepth], small whole numbers
  const float* b;        // [2][kChainColumns][kChainDepth], small whole numbers
  float* twice_and_one;  // [kChainRows][kChainColumns]: 2 A B0 + 1
  float* other;          // [kChainRows][kChainColumns]: A B1, with A from registers
};
/// Two chains of four products that overlap; one goes on after its result was changed.
void multiply_in_chains(Chain params);

}  // namespace flashmla::emulated
