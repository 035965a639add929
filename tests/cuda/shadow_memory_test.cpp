// The emulator's race detection: vector clocks and shadow memory, rule by rule and against whole histories.
#include "cuda/emulator/shadow_memory.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <random>
#include <stdexcept>
#include <vector>

#include "cuda/emulator/vector_clock.h"

namespace flashmla::emulator {
namespace {

using Kind = Conflict::Kind;

constexpr std::size_t kBytes = 256;
constexpr Owner kEngine = 40;

/// Some threads, one engine that works for them, and the memory that they share.
class SharedMemoryTest : public testing::Test {
 protected:
  static Accessor by(const ThreadClock& thread, Site site = 0) { return Accessor::thread(thread, site); }

  /// The engine, working for `issuer` through the async proxy.
  Accessor engine(const ThreadClock& issuer, Site site = 0) const {
    return {kEngine, engine_time, &issuer.knowledge(), Proxy::kAsync, site};
  }

  static void barrier(std::initializer_list<ThreadClock*> threads) {
    Knowledge all;
    for (ThreadClock* thread : threads) thread->release(all);
    for (ThreadClock* thread : threads) thread->acquire(all);
  }

  void expect_unordered(const std::optional<Conflict>& conflict, Owner other, Access other_access) {
    ASSERT_TRUE(conflict.has_value());
    EXPECT_EQ(conflict->kind, Kind::kUnordered);
    EXPECT_EQ(conflict->other.owner(), other);
    EXPECT_EQ(conflict->other_access, other_access);
  }

  ShadowMemory memory{kBytes};
  ThreadClock a{0};
  ThreadClock b{1};
  ThreadClock c{2};
  Time engine_time = 1;
};

TEST_F(SharedMemoryTest, ReadOfWhatNobodyWroteIsFoundAtItsByte) {
  EXPECT_FALSE(memory.write(by(a), 8, 24));
  const std::optional<Conflict> conflict = memory.read(by(a), 24, 16);
  ASSERT_TRUE(conflict.has_value());
  EXPECT_EQ(conflict->kind, Kind::kUninitialized);
  EXPECT_EQ(conflict->offset, 32u);
  EXPECT_FALSE(memory.read(by(a), 8, 24));
  EXPECT_EQ(memory.atomic(by(a), 0, 4)->kind, Kind::kUninitialized);
}

TEST_F(SharedMemoryTest, ClearedMemoryIsUnwritten) {
  EXPECT_FALSE(memory.write(by(a), 0, kBytes));
  barrier({&a, &b});
  EXPECT_FALSE(memory.read(by(a), 0, 40));
  EXPECT_FALSE(memory.read(by(b), 0, 40));
  memory.clear();
  EXPECT_EQ(memory.read(by(a), 0, 1)->kind, Kind::kUninitialized);
  EXPECT_FALSE(memory.write(by(b), 0, kBytes));
}

TEST_F(SharedMemoryTest, WriteAndReadOfTwoThreadsNeedABarrier) {
  EXPECT_FALSE(memory.write(by(a, 11), 64, 4));
  const std::optional<Conflict> conflict = memory.read(by(b, 12), 60 + 4, 16);
  expect_unordered(conflict, 0, Access::kWrite);
  EXPECT_EQ(conflict->other.site(), 11);
  EXPECT_EQ(conflict->offset, 64u);
  EXPECT_EQ(conflict->access, Access::kRead);
  EXPECT_FALSE(memory.write(by(a, 11), 64, 16));
  barrier({&a, &b});
  EXPECT_FALSE(memory.read(by(b, 12), 64, 16));
}

TEST_F(SharedMemoryTest, TwoWritesNeedABarrier) {
  EXPECT_FALSE(memory.write(by(a), 0, 16));
  expect_unordered(memory.write(by(b), 15, 1), 0, Access::kWrite);
  barrier({&a, &b});
  EXPECT_FALSE(memory.write(by(b), 15, 1));
  EXPECT_FALSE(memory.write(by(b), 0, 16));
}

TEST_F(SharedMemoryTest, OverwritingNeedsABarrierAfterEachReader) {
  EXPECT_FALSE(memory.write(by(a), 0, 16));
  barrier({&a, &b, &c});
  EXPECT_FALSE(memory.read(by(b), 0, 16));
  EXPECT_FALSE(memory.read(by(c), 4, 4));
  barrier({&a, &b});
  EXPECT_FALSE(memory.write(by(a), 0, 4));
  expect_unordered(memory.write(by(a), 0, 16), 2, Access::kRead);
  barrier({&a, &c});
  EXPECT_FALSE(memory.write(by(a), 0, 16));
}

TEST_F(SharedMemoryTest, NeighbouringBytesAreIndependent) {
  EXPECT_FALSE(memory.write(by(a), 0, 1));
  EXPECT_FALSE(memory.write(by(b), 1, 1));
  EXPECT_FALSE(memory.write(by(c), 2, 14));
  expect_unordered(memory.read(by(c), 0, 1), 0, Access::kWrite);
  expect_unordered(memory.read(by(c), 1, 15), 1, Access::kWrite);
}

TEST_F(SharedMemoryTest, WhatFollowsAReleaseIsNotHandedOn) {
  Knowledge flag;
  EXPECT_FALSE(memory.write(by(a), 0, 4));
  a.release(flag);
  EXPECT_FALSE(memory.write(by(a), 4, 4));
  b.acquire(flag);
  EXPECT_FALSE(memory.read(by(b), 0, 4));
  expect_unordered(memory.read(by(b), 4, 4), 0, Access::kWrite);
}

TEST_F(SharedMemoryTest, OrderIsHandedOnFromThreadToThread) {
  Knowledge first;
  Knowledge second;
  EXPECT_FALSE(memory.write(by(a), 0, 4));
  a.release(first);
  b.acquire(first);
  b.release(second);
  c.acquire(second);
  EXPECT_FALSE(memory.write(by(c), 0, 4));
}

TEST_F(SharedMemoryTest, AtomicsNeedNoOrderAmongEachOtherButWithAnythingElse) {
  EXPECT_FALSE(memory.write(by(a), 0, 4));
  expect_unordered(memory.atomic(by(b), 0, 4), 0, Access::kWrite);
  barrier({&a, &b, &c});
  EXPECT_FALSE(memory.atomic(by(a), 0, 4));
  EXPECT_FALSE(memory.atomic(by(b), 0, 4));
  EXPECT_FALSE(memory.atomic(by(a), 0, 4));
  expect_unordered(memory.read(by(b), 0, 4), 0, Access::kAtomic);
  expect_unordered(memory.write(by(a), 0, 4), 1, Access::kAtomic);
  barrier({&a, &b});
  EXPECT_FALSE(memory.read(by(b), 0, 4));
  expect_unordered(memory.atomic(by(c), 0, 4), 1, Access::kRead);
}

TEST_F(SharedMemoryTest, AnAtomicDoesNotHideAnUnorderedInitialization) {
  EXPECT_FALSE(memory.write(by(a), 0, 8));
  EXPECT_FALSE(memory.atomic(by(a), 0, 8));
  expect_unordered(memory.atomic(by(b), 0, 8), 0, Access::kWrite);
}

TEST_F(SharedMemoryTest, AsyncProxySeesOnlyWhatTheWriterPublished) {
  EXPECT_FALSE(memory.write(by(a), 0, 16));
  barrier({&a, &b});
  EXPECT_EQ(memory.read(engine(b), 0, 16)->kind, Kind::kMissingProxyFence);
  EXPECT_EQ(memory.write(engine(b), 0, 16)->kind, Kind::kMissingProxyFence);
  b.publish(b.owner());
  EXPECT_EQ(memory.read(engine(b), 0, 16)->kind, Kind::kMissingProxyFence) << "not the writer's fence";
  a.publish(a.owner());
  EXPECT_EQ(memory.read(engine(b), 0, 16)->kind, Kind::kMissingProxyFence) << "b does not know of it";
  barrier({&a, &b});
  EXPECT_FALSE(memory.read(engine(b), 0, 16));
}

TEST_F(SharedMemoryTest, WritesAfterTheFenceAreNotPublished) {
  a.publish(a.owner());
  EXPECT_FALSE(memory.write(by(a), 0, 16));
  EXPECT_EQ(memory.read(engine(a), 0, 16)->kind, Kind::kMissingProxyFence);
  a.publish(a.owner());
  EXPECT_FALSE(memory.read(engine(a), 0, 16));
}

TEST_F(SharedMemoryTest, AFencePublishesTheCopiesThatTheThreadWaitedFor) {
  constexpr Owner kCopies = 41;
  EXPECT_FALSE(memory.write({kCopies, 1, &a.knowledge(), Proxy::kGeneric, 0}, 0, 16));
  a.publish(kCopies);
  a.acquire(kCopies, 1);
  EXPECT_EQ(memory.read(engine(a), 0, 16)->kind, Kind::kMissingProxyFence);
  a.publish(kCopies);
  EXPECT_FALSE(memory.read(engine(a), 0, 16));
}

TEST_F(SharedMemoryTest, AnEnginesWorkIsUnorderedUntilItIsWaitedFor) {
  EXPECT_FALSE(memory.write(engine(a), 0, 64));
  expect_unordered(memory.read(by(a), 48, 4), kEngine, Access::kWrite);
  expect_unordered(memory.write(engine(a), 0, 16), kEngine, Access::kWrite);
  a.acquire(kEngine, engine_time);
  ++engine_time;
  EXPECT_FALSE(memory.read(by(a), 48, 4)) << "the wait makes it visible to the generic proxy";
  EXPECT_FALSE(memory.read(engine(a), 0, 64));
  expect_unordered(memory.write(by(a), 0, 4), kEngine, Access::kRead);
  a.acquire(kEngine, engine_time);
  EXPECT_FALSE(memory.write(by(a), 0, 4));
}

TEST_F(SharedMemoryTest, AnEngineMayOverwriteWhatWasReadWithoutAFence) {
  EXPECT_FALSE(memory.write(engine(a), 0, 16));
  a.acquire(kEngine, engine_time++);
  barrier({&a, &b});
  EXPECT_FALSE(memory.read(by(b), 0, 16));
  expect_unordered(memory.write(engine(a), 0, 16), 1, Access::kRead);
  barrier({&a, &b});
  EXPECT_FALSE(memory.write(engine(a), 0, 16));
}

TEST_F(SharedMemoryTest, AnEngineKnowsOnlyWhatTheIssuerKnows) {
  EXPECT_FALSE(memory.write(by(a), 0, 16));
  a.publish(a.owner());
  EXPECT_FALSE(memory.read(engine(a), 0, 16));
  expect_unordered(memory.read(engine(b), 0, 16), 0, Access::kWrite);
}

TEST(ThreadClock, RefusesTimesThatARecordCannotHold) {
  ThreadClock thread(0);
  thread.acquire(0, kLastTime);
  Knowledge flag;
  EXPECT_THROW(thread.release(flag), std::length_error);
}

TEST(AccessRecord, KeepsTheLargestValues) {
  const Knowledge nothing;
  const AccessRecord record({65535, kLastTime, &nothing, Proxy::kAsync, 65535}, Access::kAtomic);
  EXPECT_EQ(record.owner(), 65535);
  EXPECT_EQ(record.time(), kLastTime);
  EXPECT_EQ(record.site(), 65535);
  EXPECT_EQ(record.proxy(), Proxy::kAsync);
  EXPECT_TRUE(record.is_atomic());
  EXPECT_FALSE(record.is_reference());
}

/// Every access to every byte since its last write, and the rules in their plain form.
class Histories {
 public:
  /// The first byte in conflict, or nothing; then the access becomes part of the histories.
  std::optional<std::size_t> access(const Accessor& by, Access access, std::size_t offset, std::size_t size) {
    for (std::size_t i = offset; i < offset + size; ++i) {
      if (!allowed(by, access, i)) return i;
    }
    for (std::size_t i = offset; i < offset + size; ++i) {
      if (access == Access::kWrite) histories_[i].clear();
      histories_[i].push_back({by.owner, by.time, by.proxy, access});
    }
    return std::nullopt;
  }

 private:
  struct Past {
    Owner owner;
    Time time;
    Proxy proxy;
    Access access;
  };

  bool allowed(const Accessor& by, Access access, std::size_t byte) const {
    if (histories_[byte].empty() && access != Access::kWrite) return false;
    for (const Past& past : histories_[byte]) {
      if (past.access == Access::kRead && access == Access::kRead) continue;
      if (past.access == Access::kAtomic && access == Access::kAtomic) continue;
      const bool crosses =
          past.access != Access::kRead && past.proxy == Proxy::kGeneric && by.proxy == Proxy::kAsync;
      const VectorClock& clock = crosses ? by.knowledge->published : by.knowledge->seen;
      if (past.time > clock[past.owner]) return false;
    }
    return true;
  }

  std::vector<Past> histories_[kBytes];
};

/// A random program of threads and engines with locks, which are sometimes forgotten.
class RandomProgram {
 public:
  /// `memory` is cleared: programs of blocks that run one after another use the same one.
  RandomProgram(std::uint64_t seed, bool with_atomics, ShadowMemory& memory)
      : random_(seed), with_atomics_(with_atomics), memory_(memory) {
    memory_.clear();
    for (Owner owner = 0; owner < kThreads; ++owner) threads_.emplace_back(owner);
  }

  /// Steps until the first conflict, at most `steps`; false if shadow memory and histories differ.
  bool agree(int steps, int& conflicts) {
    memory_.write(Accessor::thread(threads_[0], 0), 0, kBytes);
    histories_.access(Accessor::thread(threads_[0], 0), Access::kWrite, 0, kBytes);
    threads_[0].publish(0);
    for (ThreadClock& thread : threads_) synchronize(threads_[0], thread);
    for (int i = 0; i < steps; ++i) {
      const std::size_t region = below(kRegions);
      ThreadClock& thread = threads_[below(kThreads)];
      const bool forgets = below(60) == 0;
      if (!forgets) thread.acquire(locks_[region]);
      const std::optional<Conflict> found = access(thread, region);
      if (found.has_value() != expected_.has_value()) return false;
      if (found) {
        ++conflicts;
        return found->offset == *expected_;
      }
      if (below(40) != 0) thread.publish(thread.owner());
      thread.release(locks_[region]);
      // Sometimes readers share the region: the lock then says nothing of this thread.
      if (below(8) == 0) synchronize(thread, threads_[below(kThreads)]);
    }
    return true;
  }

 private:
  static constexpr Owner kThreads = 5;
  static constexpr std::size_t kRegions = 4;
  static constexpr std::size_t kRegionBytes = kBytes / kRegions;

  std::size_t below(std::size_t count) { return static_cast<std::size_t>(random_() % count); }

  static void synchronize(ThreadClock& from, ThreadClock& to) {
    Knowledge flag;
    from.release(flag);
    to.acquire(flag);
  }

  std::optional<Conflict> access(ThreadClock& thread, std::size_t region) {
    const std::size_t sizes[] = {1, 2, 4, 8, 16, 16, 32, kRegionBytes};
    const std::size_t size = sizes[below(8)];
    const std::size_t offset = region * kRegionBytes + below(kRegionBytes / size) * size;
    Accessor by = Accessor::thread(thread, 0);
    const bool asynchronous = !with_atomics_ && below(4) == 0;
    if (asynchronous) {
      by.owner = static_cast<Owner>(kThreads + thread.owner());
      by.time = ++engine_time_;
      by.proxy = Proxy::kAsync;
    }
    const std::size_t dice = below(10);
    const Access kind = dice < 6                    ? Access::kRead
                        : dice < 8 && with_atomics_ ? Access::kAtomic
                                                    : Access::kWrite;
    expected_ = histories_.access(by, kind, offset, size);
    const std::optional<Conflict> found = kind == Access::kRead    ? memory_.read(by, offset, size)
                                          : kind == Access::kWrite ? memory_.write(by, offset, size)
                                                                   : memory_.atomic(by, offset, size);
    if (asynchronous && below(80) != 0) thread.acquire(by.owner, by.time);
    return found;
  }

  std::mt19937_64 random_;
  bool with_atomics_;
  ShadowMemory& memory_;
  Histories histories_;
  std::vector<ThreadClock> threads_;
  Knowledge locks_[kRegions];
  Time engine_time_ = 0;
  std::optional<std::size_t> expected_;
};

TEST(ShadowMemory, FindsTheFirstConflictOfRandomProgramsThatWholeHistoriesHave) {
  for (const bool with_atomics : {false, true}) {
    ShadowMemory memory(kBytes);
    int conflicts = 0;
    constexpr int kPrograms = 1500;
    for (int seed = 0; seed < kPrograms; ++seed) {
      RandomProgram program(static_cast<std::uint64_t>(seed), with_atomics, memory);
      ASSERT_TRUE(program.agree(150, conflicts)) << "seed " << seed << ", atomics " << with_atomics;
    }
    // Both outcomes must be common, or the comparison says little.
    EXPECT_GT(conflicts, kPrograms / 5);
    EXPECT_LT(conflicts, kPrograms - kPrograms / 20);
  }
}

}  // namespace
}  // namespace flashmla::emulator
