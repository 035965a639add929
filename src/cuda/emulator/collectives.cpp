// The rendezvous of a warp, and the collectives that only move registers.
#include "cuda/emulator/collectives.h"

#include <string>
#include <utility>

#include "cuda/emulator/failure.h"
#include "cuda/emulator/instructions.h"
#include "cuda/emulator/race_checks.h"
#include "cuda/emulator/scheduler.h"

namespace flashmla::emulator {
namespace {

bool same_place(const Location& a, const Location& b) {
  if (a.line() != b.line() || a.column() != b.column()) return false;
  return a.file_name() == b.file_name() || std::string_view(a.file_name()) == b.file_name();
}

std::uint32_t all_lanes(const Warp& warp) { return warp.size == kWarpSize ? ~0u : (1u << warp.size) - 1; }

/// One of the lanes that have come.
const Thread& waiting_lane(const Warp& warp, const Rendezvous& rendezvous) {
  return warp.threads[std::countr_zero(rendezvous.arrived)];
}

void check_arrival(const Thread& thread, const char* name, const Location& place) {
  const Warp& warp = *thread.warp;
  if (warp.ended != 0) {
    fail(thread, place,
         std::string(name) + " needs the whole warp, but " +
             describe(warp.threads[std::countr_zero(warp.ended)]) + " has ended");
  }
  if (!warp.rendezvous) return;
  const Rendezvous& open = *warp.rendezvous;
  if (name == open.name && same_place(place, open.place)) return;
  fail(thread, place,
       std::string(name) + " while " + describe(waiting_lane(warp, open)) + " of the same warp waits in " +
           open.name + " at " + describe(open.place) + ": lanes have diverged");
}

struct Shuffle {
  std::uint32_t value;
  int from;
  std::uint32_t result;
};

void combine_shuffle(Warp& warp, const std::array<void*, 32>& operands, const Location& place) {
  for (std::uint32_t i = 0; i < warp.size; ++i) {
    auto& operand = *static_cast<Shuffle*>(operands[i]);
    const auto from = static_cast<std::uint32_t>(operand.from);
    if (from >= warp.size) {
      fail(warp.threads[i], place, "shuffle from lane " + std::to_string(operand.from));
    }
    operand.result = static_cast<Shuffle*>(operands[from])->value;
  }
}

struct Ballot {
  bool predicate;
  std::uint32_t result;
};

void combine_ballot(Warp& warp, const std::array<void*, 32>& operands, const Location&) {
  std::uint32_t lanes = 0;
  for (std::uint32_t i = 0; i < warp.size; ++i) {
    lanes |= std::uint32_t{static_cast<Ballot*>(operands[i])->predicate} << i;
  }
  for (std::uint32_t i = 0; i < warp.size; ++i) static_cast<Ballot*>(operands[i])->result = lanes;
}

void combine_nothing(Warp&, const std::array<void*, 32>&, const Location&) {}

void combine_sync(Warp& warp, const std::array<void*, 32>&, const Location&) {
  SyncPoint point;
  for (std::uint32_t i = 0; i < warp.size; ++i) release(warp.threads[i], point);
  for (std::uint32_t i = 0; i < warp.size; ++i) acquire(warp.threads[i], point);
}

}  // namespace

void meet_in_warp(const char* name, const Location& place, void* operand, Combine combine) {
  Thread& thread = current_thread();
  Warp& warp = *thread.warp;
  check_arrival(thread, name, place);
  if (!warp.rendezvous) warp.rendezvous.emplace(Rendezvous{.name = name, .place = place});
  warp.rendezvous->arrived |= thread.lane_bit();
  warp.rendezvous->operands[thread.lane] = operand;
  if (warp.rendezvous->arrived != all_lanes(warp)) {
    thread.cluster->park(name, place);
    return;
  }
  const Rendezvous complete = *std::exchange(warp.rendezvous, std::nullopt);
  combine(warp, complete.operands, place);
  for (std::uint32_t i = 0; i < warp.size; ++i) {
    if (i != thread.lane) thread.cluster->wake(warp.threads[i]);
  }
}

void check_exit_of_warp(Thread& thread) {
  const Warp& warp = *thread.warp;
  if (!warp.rendezvous) return;
  const Rendezvous& open = *warp.rendezvous;
  fail(thread, open.place,
       "this thread ends while " + describe(waiting_lane(warp, open)) + " waits for it in " + open.name);
}

void sync_warp(Location place) { meet_in_warp("sync_warp", place, nullptr, combine_sync); }

std::uint32_t shuffle(std::uint32_t value, int lane, Location place) {
  Shuffle operand{.value = value, .from = lane, .result = 0};
  meet_in_warp("shuffle", place, &operand, combine_shuffle);
  return operand.result;
}

std::uint32_t ballot(bool predicate, Location place) {
  Ballot operand{.predicate = predicate, .result = 0};
  meet_in_warp("ballot", place, &operand, combine_ballot);
  return operand.result;
}

// Any lane may be the one, but for one seed always the same: kernels rely on it, and PTX promises it.
bool elect_one(Location place) {
  meet_in_warp("elect_one", place, nullptr, combine_nothing);
  const Thread& thread = current_thread();
  return thread.lane == thread.cluster->launch().settings.seed % thread.warp->size;
}

}  // namespace flashmla::emulator
