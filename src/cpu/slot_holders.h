// Finds the last of all tokens that go to the same slot, on many threads at once.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>

#include "api/workspace.h"

namespace flashmla::cpu {

/// A hash table from slots to token numbers, with linear probing. An entry is a token's number alone: its
/// slot is looked up with `slot_of(token)`. First all threads clear, then all claim, then all ask.
class SlotHolders {
 public:
  SlotHolders(Workspace& workspace, std::int64_t tokens)
      : mask_(std::bit_ceil(2 * static_cast<std::uint64_t>(tokens)) - 1),
        entries_(workspace.take<std::int64_t>(mask_ + 1)) {}

  /// Clears part number `part` of `parts` equal ones.
  void clear(std::int64_t part, std::int64_t parts) const {
    const std::uint64_t length = mask_ / static_cast<std::uint64_t>(parts) + 1;
    const std::uint64_t begin = std::min(mask_ + 1, length * static_cast<std::uint64_t>(part));
    const std::uint64_t end = std::min(mask_ + 1, begin + length);
    std::fill(entries_ + begin, entries_ + end, kNobody);
  }

  /// Makes `token` the holder of `slot` unless a later one is.
  template <class SlotOf>
  void claim(std::int64_t slot, std::int64_t token, SlotOf&& slot_of) const {
    for (std::uint64_t at = first_place(slot);; at = next_place(at)) {
      std::atomic_ref<std::int64_t> entry(entries_[at]);
      std::int64_t holder = entry.load(std::memory_order_relaxed);
      while (holder == kNobody || slot_of(holder) == slot) {
        if (holder > token || entry.compare_exchange_weak(holder, token, std::memory_order_relaxed)) return;
      }
    }
  }

  /// Has the entry of a slot fetched that is claimed or asked for soon.
  void fetch(std::int64_t slot) const { __builtin_prefetch(entries_ + first_place(slot), 1); }

  /// The last token that claimed `slot`; there must be one.
  template <class SlotOf>
  std::int64_t holder(std::int64_t slot, SlotOf&& slot_of) const {
    std::uint64_t at = first_place(slot);
    while (slot_of(entries_[at]) != slot) at = next_place(at);
    return entries_[at];
  }

 private:
  static constexpr std::int64_t kNobody = -1;

  // Slots come in runs: a run of 16 has neighbouring entries, two lines of the caches.
  static constexpr std::uint64_t kRun = 16;

  std::uint64_t first_place(std::int64_t slot) const {
    const auto number = static_cast<std::uint64_t>(slot);
    const std::uint64_t mixed = (number / kRun * 0x9e3779b97f4a7c15u) >> 32;  // 2^64 over the golden ratio
    return (mixed * kRun + number % kRun) & mask_;
  }

  /// An odd step comes to all places, and out of the run.
  std::uint64_t next_place(std::uint64_t at) const { return (at + kRun + 1) & mask_; }

  std::uint64_t mask_;
  std::int64_t* entries_;
};

}  // namespace flashmla::cpu
