// Finds the block of an address in shared memory, and the addresses that instructions take.
#include "cuda/emulator/shared_memory.h"

#include <optional>
#include <string>

#include "cuda/emulator/failure.h"
#include "cuda/emulator/instructions.h"
#include "cuda/emulator/scheduler.h"

namespace flashmla::emulator {
namespace {

void fail_if(const std::optional<std::string>& complaint, const Thread& thread, const Location& place) {
  if (complaint) fail(thread, place, *complaint);
}

}  // namespace

std::uint32_t offset_in(const Block& block, const void* address) {
  return static_cast<std::uint32_t>(static_cast<const std::byte*>(address) - block.shared);
}

Block& check_shared(const Thread& thread, const void* address, std::size_t bytes, const Location& place) {
  Block* block = thread.cluster->block_at(address);
  if (block == nullptr) fail(thread, place, "this address must be in shared memory");
  const std::size_t limit = thread.cluster->launch().config.shared_bytes;
  if (offset_in(*block, address) + bytes > limit) {
    fail(thread, place,
         std::to_string(bytes) + " bytes at " + std::to_string(offset_in(*block, address)) +
             " of shared memory, of which there are " + std::to_string(limit));
  }
  if (block->ended == block->size)
    fail(thread, place, "shared memory of a block whose threads have all ended");
  return *block;
}

void check_aligned(const Thread& thread, const void* address, std::size_t alignment, const Location& place) {
  if (reinterpret_cast<std::uintptr_t>(address) % alignment != 0) {
    fail(thread, place, "this address must be a multiple of " + std::to_string(alignment));
  }
}

void check_access(const Thread& thread, const void* address, std::size_t bytes, Access access,
                  const Location& place) {
  const Block& block = check_shared(thread, address, bytes, place);
  RaceChecks* races = thread.cluster->races();
  if (races == nullptr) return;
  fail_if(races->access(thread, block, address, bytes, access, races->sites().site_of(place)), thread, place);
}

void check_access(const Thread& thread, const Engine& engine, const void* address, std::size_t bytes,
                  Access access, const Location& place) {
  const Block& block = check_shared(thread, address, bytes, place);
  RaceChecks* races = thread.cluster->races();
  if (races == nullptr) return;
  fail_if(races->access(thread, engine, block, address, bytes, access, races->sites().site_of(place)), thread,
          place);
}

void check_global(const Thread& thread, const void* address, std::size_t bytes, const Location& place) {
  fail_if(thread.cluster->launch().memory.complaint(address, bytes), thread, place);
}

void* shared_memory() { return current_thread().block->shared; }

std::uint32_t shared_address(const void* shared) {
  const Thread& thread = current_thread();
  if (thread.cluster->block_at(shared) != thread.block) {
    throw std::logic_error("shared_address of memory that is not this block's shared memory");
  }
  return offset_in(*thread.block, shared);
}

void* peer_shared(const void* shared, std::uint32_t rank) {
  Thread& thread = current_thread();
  Cluster& cluster = *thread.cluster;
  if (rank >= cluster.size()) throw std::logic_error("peer_shared of a block that the cluster does not have");
  return cluster.block(rank).shared + shared_address(shared);
}

}  // namespace flashmla::emulator
