// Accesses of instructions to shared memory: that they are in range, in order, and aligned.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/emulator/race_checks.h"

namespace flashmla::emulator {

struct Block;
struct Thread;

/// The block that has these bytes in its shared memory; fails if there is none or it has ended.
Block& check_shared(const Thread& thread, const void* address, std::size_t bytes, const Location& place);
void check_aligned(const Thread& thread, const void* address, std::size_t alignment, const Location& place);

/// Of an address in the shared memory of any block of the cluster.
std::uint32_t offset_in(const Block& block, const void* address);

/// Range and order of an access by a thread, and by an engine that it starts.
void check_access(const Thread& thread, const void* address, std::size_t bytes, Access access,
                  const Location& place);
void check_access(const Thread& thread, const Engine& engine, const void* address, std::size_t bytes,
                  Access access, const Location& place);

/// Whether the launch has registered these bytes of global memory.
void check_global(const Thread& thread, const void* address, std::size_t bytes, const Location& place);

}  // namespace flashmla::emulator
