// Keeps the clocks, and says which two accesses conflict.
#include "cuda/emulator/race_checks.h"

#include <sstream>
#include <stdexcept>

#include "cuda/emulator/failure.h"
#include "cuda/emulator/scheduler.h"

namespace flashmla::emulator {
namespace {

const char* verb(Access access) {
  switch (access) {
    case Access::kRead:
      return "reads";
    case Access::kWrite:
      return "writes";
    case Access::kAtomic:
      return "changes";
  }
  return "";
}

const char* noun(Access access) {
  switch (access) {
    case Access::kRead:
      return "read";
    case Access::kWrite:
      return "write";
    case Access::kAtomic:
      return "atomic operation";
  }
  return "";
}

RaceChecks* races_of(const Thread& thread) { return thread.cluster->races(); }

}  // namespace

RaceChecks::RaceChecks(Cluster& cluster) {
  for (std::uint32_t rank = 0; rank < cluster.size(); ++rank) {
    const Block& block = cluster.block(rank);
    first_owner_.push_back(owners_.size());
    shadows_.emplace_back(cluster.launch().config.shared_bytes);
    for (std::uint32_t i = 0; i < block.size; ++i) {
      clocks_.emplace_back(static_cast<Owner>(owners_.size()));
      owners_.push_back({&block.threads[i], nullptr});
    }
  }
}

ThreadClock& RaceChecks::clock(const Thread& thread) {
  return clocks_[first_owner_[thread.block->rank] + thread.index];
}

Owner RaceChecks::add_engine(const Thread& thread, const char* what) {
  if (owners_.size() == kNoOwner)
    throw std::length_error("an emulated cluster has too many barriers and copies");
  owners_.push_back({&thread, what});
  return static_cast<Owner>(owners_.size() - 1);
}

std::optional<std::string> RaceChecks::access(const Thread& thread, const Block& block, const void* address,
                                              std::size_t bytes, Access access, Site site) {
  return this->access(Accessor::thread(clock(thread), site), block, address, bytes, access);
}

std::optional<std::string> RaceChecks::access(const Thread& thread, const Engine& engine, const Block& block,
                                              const void* address, std::size_t bytes, Access access,
                                              Site site) {
  const Accessor by{.owner = engine.owner,
                    .time = engine.time,
                    .knowledge = &clock(thread).knowledge(),
                    .proxy = engine.proxy,
                    .site = site};
  return this->access(by, block, address, bytes, access);
}

std::optional<std::string> RaceChecks::access(const Accessor& by, const Block& block, const void* address,
                                              std::size_t bytes, Access access) {
  ShadowMemory& shadow = shadows_[block.rank];
  const auto offset = static_cast<std::size_t>(static_cast<const std::byte*>(address) - block.shared);
  const auto conflict = access == Access::kRead    ? shadow.read(by, offset, bytes)
                        : access == Access::kWrite ? shadow.write(by, offset, bytes)
                                                   : shadow.atomic(by, offset, bytes);
  if (!conflict) return std::nullopt;
  return describe(*conflict, block, bytes);
}

std::string RaceChecks::describe(const Conflict& conflict, const Block& block, std::size_t bytes) const {
  std::ostringstream out;
  out << verb(conflict.access) << ' ' << bytes << " bytes of shared memory of block (" << block.index.x << ','
      << block.index.y << ',' << block.index.z << "); the byte at " << conflict.offset;
  if (conflict.kind == Conflict::Kind::kUninitialized) {
    out << " was never written";
    return out.str();
  }
  out << (conflict.kind == Conflict::Kind::kMissingProxyFence
              ? " comes, without a fence_async_proxy, from the "
              : " is in a race with the ")
      << noun(conflict.other_access) << " by ";
  const OwnerName& owner = owners_[conflict.other.owner()];
  if (owner.what != nullptr) out << owner.what << " of ";
  out << emulator::describe(*owner.thread) << " at "
      << emulator::describe(sites_.source_line_of(conflict.other.site()));
  return out.str();
}

void release(Thread& thread, SyncPoint& into) {
  if (RaceChecks* races = races_of(thread)) races->clock(thread).release(into);
}

void acquire(Thread& thread, const SyncPoint& from) {
  if (RaceChecks* races = races_of(thread)) races->clock(thread).acquire(from);
}

void acquire(Thread& thread, Owner engine, Time time) {
  RaceChecks* races = races_of(thread);
  if (races != nullptr && engine != kNoOwner) races->clock(thread).acquire(engine, time);
}

void join(SyncPoint& into, const SyncPoint& from) { into.join(from); }

void publish(Thread& thread, Owner source) {
  RaceChecks* races = races_of(thread);
  if (races != nullptr && source != kNoOwner) races->clock(thread).publish(source);
}

Owner add_engine(const Thread& thread, const char* what) {
  RaceChecks* races = races_of(thread);
  return races == nullptr ? kNoOwner : races->add_engine(thread, what);
}

}  // namespace flashmla::emulator
