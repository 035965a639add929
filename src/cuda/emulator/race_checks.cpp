// Keeps the clocks, and says which two accesses conflict.
#include "cuda/emulator/race_checks.h"

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
  return describe(*conflict, bytes);
}

std::string RaceChecks::describe(const Conflict& conflict, std::size_t bytes) const {
  const std::string what = std::string(verb(conflict.access)) + " " + std::to_string(bytes) +
                           " bytes of shared memory, and byte " + std::to_string(conflict.offset) + " of it ";
  if (conflict.kind == Conflict::Kind::kUninitialized) return what + "was never written";
  const OwnerName& owner = owners_[conflict.other.owner()];
  const std::string other = std::string("the ") + noun(conflict.other_access) + " by " +
                            (owner.what == nullptr ? "" : owner.what + std::string(" of ")) +
                            emulator::describe(*owner.thread) + " at " +
                            emulator::describe(sites_.source_line_of(conflict.other.site()));
  if (conflict.kind == Conflict::Kind::kMissingProxyFence) {
    return what + "comes, without a fence_async_proxy, from " + other;
  }
  return what + "races with " + other;
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
