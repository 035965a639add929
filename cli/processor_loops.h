// The loops of which the ceilings are measured: the instructions of this processor that multiply and add,
// each on registers alone, and its widest way to read memory.
#pragma once

#include <cstdint>
#include <vector>

namespace flashmla::cli {

/// Runs a loop that many times on the calling thread; the result means nothing.
using DotLoop = float (*)(std::int64_t iterations);

/// Sums a range of words, in vectors; the result means nothing.
using ReadLoop = std::uint64_t (*)(const std::uint64_t* begin, const std::uint64_t* end);

/// A way of this processor to multiply and add.
struct DotInstruction {
  const char* name;
  const char* instruction_set;  ///< of the `cpu` backend, the least that has it
  bool bf16_only;               ///< the factors are bf16; otherwise f32
  double flops_per_iteration;
  DotLoop loop;
};

/// Those that this processor has and the system allows, best instruction set first.
std::vector<DotInstruction> dot_instructions();

ReadLoop read_loop();

}  // namespace flashmla::cli
