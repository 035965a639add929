// Instructions that all lanes of a warp execute together: the last lane to come does the work for all.
#pragma once

#include <array>
#include <cstdint>

#include "cuda/emulator/origin.h"

namespace flashmla::emulator {

struct Thread;
struct Warp;

/// Lanes of a warp that wait for the others in a collective.
struct Rendezvous {
  const char* name;
  Location place;
  std::uint32_t arrived = 0;            // a bit for each lane
  std::array<void*, 32> operands = {};  // of each lane, on its stack
};

/// What is computed when all lanes have come, from operands that lanes gave.
using Combine = void (*)(Warp& warp, const std::array<void*, 32>& operands, const Location& place);

/// Waits until all lanes of the running thread's warp have called this with the same name and place; the last
/// one calls `combine`. Lanes that come to different places are a failure.
void meet_in_warp(const char* name, const Location& place, void* operand, Combine combine);

/// Fails if other lanes wait for this thread, which is about to end.
void check_exit_of_warp(Thread& thread);

}  // namespace flashmla::emulator
