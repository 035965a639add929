// Carries out copies, in any order within what their thread has not waited for.
#include "cuda/emulator/copies.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <utility>

#include "cuda/emulator/failure.h"
#include "cuda/emulator/instructions.h"
#include "cuda/emulator/scheduler.h"
#include "cuda/emulator/shared_memory.h"

namespace flashmla::emulator {
namespace {

constexpr std::uint32_t kBulkAlignment = 16;
constexpr std::uint32_t kBoxAlignment = 128;

/// Removes one element, in no order.
template <class T>
T take(std::vector<T>& from, std::size_t i) {
  T taken = std::exchange(from[i], from.back());
  from.pop_back();
  return taken;
}

template <class T>
T take_any(std::vector<T>& from, Random& random) {
  return take(from, random.below(static_cast<std::uint32_t>(from.size())));
}

/// Carries out all operations up to a time, in any order.
template <class T, class Perform>
void finish(std::vector<T>& pending, Time done, Random& random, Perform&& perform) {
  const auto later =
      std::partition(pending.begin(), pending.end(), [&](const T& op) { return op.time <= done; });
  std::vector<T> due(pending.begin(), later);
  pending.erase(pending.begin(), later);
  while (!due.empty()) perform(take_any(due, random));
}

/// Work that was just issued, as the mode wants it.
void schedule(Agent& agent, Cluster& cluster) {
  cluster.agenda().add(agent);
  if (cluster.launch().settings.mode == Mode::kEarly) agent.perform_one(cluster.random());
}

/// Where byte `byte` of a box's image is, counted from its begin at `shared`.
std::byte* box_byte(std::byte* shared, std::uint32_t window_offset, std::uint32_t byte, Swizzle swizzle) {
  return shared + (swizzled(window_offset + byte, swizzle) - window_offset);
}

/// Calls `visit(image, global)` for each element of the box; `global` is null outside of the tensor.
template <class Visit>
void for_each_element(const Box& box, std::byte* shared, std::uint32_t window_offset, Visit&& visit) {
  const TensorLayout& layout = box.layout;
  for (std::uint32_t i = 0; i < box.rows(); ++i) {
    const Box::Row row = box.row(i);
    for (std::uint32_t at = 0; at < layout.row_bytes(); at += layout.element_bytes) {
      const bool inside = at >= row.skipped && at < row.skipped + row.bytes;
      std::byte* const image = box_byte(shared, window_offset, i * layout.row_bytes() + at, layout.swizzle);
      visit(image, inside ? row.global + (at - row.skipped) : nullptr);
    }
  }
}

void check_box(const Box& box, const Origin& origin) {
  for (std::uint32_t i = 0; i < box.rows(); ++i) {
    const Box::Row row = box.row(i);
    if (row.bytes > 0) check_global(*origin.thread, row.global, row.bytes, origin.place);
  }
}

void add_floats(std::byte* to, const std::byte* from, std::uint32_t bytes) {
  for (std::uint32_t i = 0; i < bytes; i += sizeof(float)) {
    float term;
    std::memcpy(&term, from + i, sizeof(term));
    std::atomic_ref(*reinterpret_cast<float*>(to + i)).fetch_add(term);
  }
}

}  // namespace

Engine Groups::engine(const Thread& thread, const char* what, Proxy proxy) {
  if (owner_ == kNoOwner) owner_ = add_engine(thread, what);
  return {.owner = owner_, .time = now_, .proxy = proxy};
}

Time Groups::over(int pending) const {
  const auto groups = static_cast<int>(ends_.size()) - pending;
  return groups <= 0 ? 0 : ends_[static_cast<std::size_t>(groups) - 1];
}

// --- cp.async ---

void ThreadCopies::issue(Thread& thread, void* shared, const void* global, std::uint32_t size,
                         std::uint32_t bytes, const Location& place) {
  if (bytes > size) {
    fail(thread, place,
         "cp.async of " + std::to_string(bytes) + " out of " + std::to_string(size) + " bytes");
  }
  check_aligned(thread, shared, size, place);
  check_aligned(thread, global, size, place);
  check_global(thread, global, bytes, place);
  check_access(thread, groups_.engine(thread, "cp.async", Proxy::kGeneric), shared, size, Access::kWrite,
               place);
  pending_.push_back({.shared = static_cast<std::byte*>(shared),
                      .global = static_cast<const std::byte*>(global),
                      .size = size,
                      .bytes = bytes,
                      .time = groups_.now()});
  agenda_ = &thread.cluster->agenda();
  schedule(*this, *thread.cluster);
}

void ThreadCopies::perform(const Copy& copy) {
  if (copy.bytes > 0) std::memcpy(copy.shared, copy.global, copy.bytes);  // of nothing may come from nowhere
  std::memset(copy.shared + copy.bytes, 0, copy.size - copy.bytes);
}

void ThreadCopies::perform_one(Random& random) {
  perform(take_any(pending_, random));
  if (pending_.empty()) agenda_->remove(*this);
  arrive_where_due();
}

void ThreadCopies::arrive_after(Thread& thread, void* barrier, const Location& place) {
  barrier_at(thread, barrier, Proxy::kGeneric, place);
  arrivals_.push_back({.barrier = barrier, .origin = {&thread, place}, .time = groups_.step()});
  arrive_where_due();
}

void ThreadCopies::arrive_where_due() {
  std::erase_if(arrivals_, [&](const Arrival& arrival) {
    if (std::ranges::any_of(pending_, [&](const Copy& copy) { return copy.time <= arrival.time; }))
      return false;
    count_arrival(arrival.barrier, groups_.owner(), arrival.time, arrival.origin);
    return true;
  });
}

void ThreadCopies::wait(Thread& thread, int pending) {
  if (agenda_ == nullptr) return;
  const Time done = groups_.over(pending);
  finish(pending_, done, thread.cluster->random(), perform);
  if (pending_.empty()) agenda_->remove(*this);
  acquire(thread, groups_.owner(), done);
  arrive_where_due();
}

void copy_async(void* shared, const void* global, int size, int bytes, Location place) {
  Thread& thread = current_thread();
  thread.copies.issue(thread, shared, global, static_cast<std::uint32_t>(size),
                      static_cast<std::uint32_t>(bytes), place);
}

void barrier_arrive_after_copies(void* barrier, Location place) {
  Thread& thread = current_thread();
  thread.copies.arrive_after(thread, barrier, place);
}

void copy_async_commit(Location) { current_thread().copies.commit(); }

void copy_async_wait(int pending, Location) {
  Thread& thread = current_thread();
  thread.copies.wait(thread, pending);
}

// --- bulk stores ---

void ThreadStores::issue(const Store& store) {
  Thread& thread = *store.origin.thread;
  const Location& place = store.origin.place;
  if (store.kind == Kind::kBox) {
    check_aligned(thread, store.shared, kBoxAlignment, place);
    check_box(store.box, store.origin);
  } else {
    check_aligned(thread, store.shared, kBulkAlignment, place);
    check_aligned(thread, store.global, kBulkAlignment, place);
    if (store.bytes % kBulkAlignment != 0)
      fail(thread, place, "a bulk copy of a number of bytes that 16 does not divide");
    check_global(thread, store.global, store.bytes, place);
  }
  check_access(thread, groups_.engine(thread, "bulk store", Proxy::kAsync), store.shared, store.bytes,
               Access::kRead, place);
  pending_.push_back(store);
  pending_.back().time = groups_.now();
  last_place_ = place;
  last_time_ = groups_.now();
  agenda_ = &thread.cluster->agenda();
  schedule(*this, *thread.cluster);
}

void ThreadStores::perform(const Store& store) {
  switch (store.kind) {
    case Kind::kCopy:
      std::memcpy(store.global, store.shared, store.bytes);
      break;
    case Kind::kAddFloats:
      add_floats(store.global, store.shared, store.bytes);
      break;
    case Kind::kBox:
      for_each_element(store.box, const_cast<std::byte*>(store.shared),
                       offset_in(*store.origin.thread->block, store.shared),
                       [&](const std::byte* image, std::byte* global) {
                         if (global != nullptr) std::memcpy(global, image, store.box.layout.element_bytes);
                       });
      break;
  }
}

void ThreadStores::perform_one(Random& random) {
  perform(take_any(pending_, random));
  if (pending_.empty()) agenda_->remove(*this);
}

void ThreadStores::wait(Thread& thread, int pending) {
  if (agenda_ == nullptr) return;
  const Time done = groups_.over(pending);
  finish(pending_, done, thread.cluster->random(), perform);
  if (pending_.empty()) agenda_->remove(*this);
  waited_ = done;
  acquire(thread, groups_.owner(), done);
}

void ThreadStores::check_exit(const Thread& thread) const {
  if (last_time_ <= waited_) return;
  fail(thread, last_place_,
       "this thread ends without a wait for its bulk store, which may still read shared memory");
}

void store_bulk(void* global, const void* shared, std::uint32_t bytes, Location place) {
  Thread& thread = current_thread();
  thread.stores.issue({.kind = ThreadStores::Kind::kCopy,
                       .shared = static_cast<const std::byte*>(shared),
                       .global = static_cast<std::byte*>(global),
                       .bytes = bytes,
                       .box = {},
                       .origin = {&thread, place}});
}

void reduce_add_bulk(float* global, const float* shared, std::uint32_t bytes, Location place) {
  Thread& thread = current_thread();
  thread.stores.issue({.kind = ThreadStores::Kind::kAddFloats,
                       .shared = reinterpret_cast<const std::byte*>(shared),
                       .global = reinterpret_cast<std::byte*>(global),
                       .bytes = bytes,
                       .box = {},
                       .origin = {&thread, place}});
}

void store_box(const ptx::TensorMap& map, const std::int32_t* corner, int dimensions, const void* shared,
               Location place) {
  Thread& thread = current_thread();
  const Box box = stored_box_of(thread, map, corner, dimensions, place);
  thread.stores.issue({.kind = ThreadStores::Kind::kBox,
                       .shared = static_cast<const std::byte*>(shared),
                       .global = nullptr,
                       .bytes = box.layout.box_bytes(),
                       .box = box,
                       .origin = {&thread, place}});
}

void store_bulk_commit(Location) { current_thread().stores.commit(); }

// Bytes are read and written in one go here, so both waits are the same.
void store_bulk_wait(int pending, bool, Location) {
  Thread& thread = current_thread();
  thread.stores.wait(thread, pending);
}

// --- bulk copies into shared memory ---

void BulkCopies::issue(const Copy& copy) {
  Thread& thread = *copy.origin.thread;
  const Location& place = copy.origin.place;
  check_aligned(thread, copy.shared, copy.source == nullptr ? kBoxAlignment : kBulkAlignment, place);
  check_aligned(thread, copy.source, kBulkAlignment, place);
  if (copy.bytes % kBulkAlignment != 0)
    fail(thread, place, "a bulk copy of a number of bytes that 16 does not divide");
  MemoryBarrier& barrier = barrier_at(thread, copy.barrier, Proxy::kAsync, place);
  const Engine engine{
      .owner = barrier.copies_owner, .time = ++barrier.copies_started, .proxy = Proxy::kAsync};
  if (copy.source == nullptr) {
    check_box(copy.box, copy.origin);
  } else if (thread.cluster->block_at(copy.source) != nullptr) {
    check_access(thread, engine, copy.source, copy.bytes, Access::kRead, place);
  } else {
    check_global(thread, copy.source, copy.bytes, place);
  }
  check_access(thread, engine, copy.shared, copy.bytes, Access::kWrite, place);
  pending_.push_back(copy);
  pending_.back().time = engine.time;
  barrier.copies_pending.push_back(engine.time);
  agenda_ = &thread.cluster->agenda();
  schedule(*this, *thread.cluster);
}

void BulkCopies::perform_one(Random& random) {
  const Copy copy = take_any(pending_, random);
  if (pending_.empty()) agenda_->remove(*this);
  Thread& thread = *copy.origin.thread;
  Block& block = *thread.cluster->block_at(copy.shared);
  if (block.ended == block.size) {
    fail(thread, copy.origin.place, "the threads of the block that these bytes are copied to have all ended");
  }
  if (copy.source != nullptr) {
    std::memcpy(copy.shared, copy.source, copy.bytes);
  } else {
    const std::uint32_t bytes = copy.box.layout.element_bytes;
    for_each_element(copy.box, copy.shared, offset_in(block, copy.shared),
                     [&](std::byte* image, std::byte* global) {
                       if (global != nullptr) {
                         std::memcpy(image, global, bytes);
                       } else {
                         std::memset(image, 0, bytes);
                       }
                     });
  }
  count_copy(block, copy.barrier, copy.time, copy.bytes, copy.origin);
}

void copy_bulk(void* shared, const void* global, std::uint32_t bytes, void* barrier, Location place) {
  Thread& thread = current_thread();
  thread.cluster->bulk_copies().issue({.shared = static_cast<std::byte*>(shared),
                                       .source = static_cast<const std::byte*>(global),
                                       .bytes = bytes,
                                       .box = {},
                                       .barrier = barrier,
                                       .origin = {&thread, place}});
}

void copy_bulk_to_peer(void* shared_of_peer, const void* shared, std::uint32_t bytes, void* barrier,
                       std::uint32_t rank, Location place) {
  Thread& thread = current_thread();
  thread.cluster->bulk_copies().issue(
      {.shared = static_cast<std::byte*>(in_block(thread, shared_of_peer, rank, place)),
       .source = static_cast<const std::byte*>(shared),
       .bytes = bytes,
       .box = {},
       .barrier = in_block(thread, barrier, rank, place),
       .origin = {&thread, place}});
}

void copy_box(void* shared, const ptx::TensorMap& map, const std::int32_t* corner, int dimensions,
              void* barrier, std::uint16_t ranks, Location place) {
  Thread& thread = current_thread();
  const Box box = box_of(thread, map, corner, dimensions, place);
  const std::uint32_t targets = ranks == 0 ? 1u << thread.block->rank : ranks;
  for (std::uint32_t rank = 0; rank < 16; ++rank) {
    if ((targets >> rank & 1) == 0) continue;
    thread.cluster->bulk_copies().issue(
        {.shared = static_cast<std::byte*>(in_block(thread, shared, rank, place)),
         .source = nullptr,
         .bytes = box.layout.box_bytes(),
         .box = box,
         .barrier = in_block(thread, barrier, rank, place),
         .origin = {&thread, place}});
  }
}

}  // namespace flashmla::emulator
