// Vector clocks: which accesses of others come before what a thread does next.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace flashmla::emulator {

/// Who accesses memory: a thread, or an engine that works for threads beside them, such as a thread's
/// cp.async copies, a warpgroup's wgmma, or the bulk copies that an mbarrier counts. Numbered by the caller,
/// from 0.
using Owner = std::uint16_t;

/// Counts an owner's steps from 1; 0 is before all of them.
using Time = std::int32_t;

inline constexpr Time kLastTime = (Time{1} << 28) - 1;  // what a record of the shadow memory can hold

/// A time for each owner. Owners are added as they are met.
class VectorClock {
 public:
  Time operator[](Owner owner) const { return owner < times_.size() ? times_[owner] : 0; }

  void raise(Owner owner, Time time) {
    hold(std::size_t{owner} + 1);
    times_[owner] = std::max(times_[owner], time);
  }

  /// Takes the later time of each owner.
  void join(const VectorClock& other) {
    hold(other.times_.size());
    // A barrier joins hundreds of clocks: whole blocks, which compilers turn into vector instructions.
    for (std::size_t block = 0; block < other.times_.size(); block += kBlock) {
      for (std::size_t i = 0; i < kBlock; ++i) {
        times_[block + i] = std::max(times_[block + i], other.times_[block + i]);
      }
    }
  }

 private:
  static constexpr std::size_t kBlock = 16;

  void hold(std::size_t owners) {
    if (owners > times_.size()) times_.resize((owners + kBlock - 1) / kBlock * kBlock);
  }

  std::vector<Time> times_;
};

/// What synchronization hands on: by a barrier, a flag, or from an issuing thread to an engine.
struct Knowledge {
  /// Everything that an owner did up to this time comes before.
  VectorClock seen;
  /// Of that, what the owner wrote through the generic proxy and a proxy fence made visible to the async
  /// proxy.
  VectorClock published;

  void join(const Knowledge& other) {
    seen.join(other.seen);
    published.join(other.published);
  }
};

/// A thread's own knowledge and time.
class ThreadClock {
 public:
  explicit ThreadClock(Owner owner) : owner_(owner) { knowledge_.seen.raise(owner, 1); }

  Owner owner() const { return owner_; }
  Time now() const { return knowledge_.seen[owner_]; }
  const Knowledge& knowledge() const { return knowledge_; }

  /// Synchronizes with whoever released into `from`.
  void acquire(const Knowledge& from) { knowledge_.join(from); }

  /// Waits for an engine: what it did up to `time` comes before.
  void acquire(Owner engine, Time time) { knowledge_.seen.raise(engine, time); }

  /// Hands on what this thread knows and did. What it does next is not part of it.
  void release(Knowledge& into) {
    into.join(knowledge_);
    tick();
  }

  /// A proxy fence: makes visible to the async proxy what this thread wrote, and what an engine that it has
  /// waited for wrote for it (`source`: cp.async writes through the generic proxy too). The fence of another
  /// thread does not: the CUDA Programming Guide has each writer fence before the barrier.
  void publish(Owner source) {
    knowledge_.published.raise(source, knowledge_.seen[source]);
    if (source == owner_) tick();
  }

 private:
  void tick() {
    if (now() == kLastTime) throw std::length_error("a thread of an emulated kernel synchronizes too often");
    knowledge_.seen.raise(owner_, now() + 1);
  }

  Owner owner_;
  Knowledge knowledge_;
};

}  // namespace flashmla::emulator
