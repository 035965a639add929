// cp.async and bulk copies: checked when a thread starts them, carried out later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/emulator/agenda.h"
#include "cuda/emulator/origin.h"
#include "cuda/emulator/race_checks.h"
#include "cuda/emulator/tensor_map.h"

namespace flashmla::emulator {

/// The groups of operations that a thread waits for, and their clock, which goes one step at the end of a
/// group.
class Groups {
 public:
  /// The operations that come next are checked as those of `what`.
  Engine engine(const Thread& thread, const char* what, Proxy proxy);
  Owner owner() const { return owner_; }
  Time now() const { return now_; }
  /// One step that is not the end of a group: the time before it.
  Time step() { return now_++; }
  void commit() { ends_.push_back(step()); }
  /// What is over, if at most `pending` groups are under way.
  Time over(int pending) const;

 private:
  Owner owner_ = kNoOwner;
  Time now_ = 1;
  std::vector<Time> ends_;  // of the groups
};

/// The cp.async of one thread.
class ThreadCopies final : public Agent {
 public:
  void issue(Thread& thread, void* shared, const void* global, std::uint32_t size, std::uint32_t bytes,
             const Location& place);
  void commit() { groups_.commit(); }
  /// Carries out all but the last `pending` groups.
  void wait(Thread& thread, int pending);
  void perform_one(Random& random) override;
  /// One arrival at the barrier when all copies up to now are over.
  void arrive_after(Thread& thread, void* barrier, const Location& place);
  Owner owner() const { return groups_.owner(); }

 private:
  struct Copy {
    std::byte* shared;
    const std::byte* global;
    std::uint32_t size;
    std::uint32_t bytes;
    Time time;
  };
  struct Arrival {
    void* barrier;
    Origin origin;
    Time time;  // of the copies before it
  };

  static void perform(const Copy& copy);
  void arrive_where_due();

  Groups groups_;
  std::vector<Copy> pending_;
  std::vector<Arrival> arrivals_;
  Agenda* agenda_ = nullptr;
};

/// Bulk copies of one thread from shared to global memory.
class ThreadStores final : public Agent {
 public:
  enum class Kind { kCopy, kAddFloats, kBox };
  struct Store {
    Kind kind;
    const std::byte* shared;
    std::byte* global;  // unless it is a box
    std::uint32_t bytes;
    Box box;
    Origin origin;
    Time time = 0;
  };

  void issue(const Store& store);
  void commit() { groups_.commit(); }
  void wait(Thread& thread, int pending);
  void perform_one(Random& random) override;
  /// Fails if the thread has not waited until its stores have read shared memory, which goes away with the
  /// block.
  void check_exit(const Thread& thread) const;

 private:
  static void perform(const Store& store);

  Groups groups_;
  std::vector<Store> pending_;
  Location last_place_;
  Time last_time_ = 0;
  Time waited_ = 0;
  Agenda* agenda_ = nullptr;
};

/// Bulk copies of a cluster into shared memory, whose bytes are counted at a barrier.
class BulkCopies final : public Agent {
 public:
  struct Copy {
    std::byte* shared;
    const std::byte* source;  // null for a box
    std::uint32_t bytes;
    Box box;
    void* barrier;
    Origin origin;
    Time time = 0;  // on the barrier's clock
  };

  void issue(const Copy& copy);
  void perform_one(Random& random) override;

 private:
  std::vector<Copy> pending_;
  Agenda* agenda_ = nullptr;
};

}  // namespace flashmla::emulator
