// Shadow memory. A line of 16 bytes has one cell while its bytes are accessed together, as copies and matrix
// loads do, and sixteen from the first access to a part of it until a write of all of it.
#include "cuda/emulator/shadow_memory.h"

#include <algorithm>
#include <numeric>

namespace flashmla::emulator {
namespace {

bool is_seen(const Accessor& by, AccessRecord earlier) {
  return earlier.time() <= by.knowledge->seen[earlier.owner()];
}

/// Whether what `earlier` wrote is there for `by`: it is ordered before, and has crossed to its proxy.
bool is_visible(const Accessor& by, AccessRecord earlier) {
  if (by.proxy == Proxy::kAsync && earlier.proxy() == Proxy::kGeneric) {
    return earlier.time() <= by.knowledge->published[earlier.owner()];
  }
  return is_seen(by, earlier);
}

Conflict conflict_with(const Accessor& by, AccessRecord earlier, Access access, Access earlier_access) {
  const auto kind = is_seen(by, earlier) ? Conflict::Kind::kMissingProxyFence : Conflict::Kind::kUnordered;
  return {.kind = kind, .access = access, .offset = 0, .other_access = earlier_access, .other = earlier};
}

template <Access kAccess>
std::optional<Conflict> check_use(const Accessor& by, AccessRecord use) {
  if (use.is_atomic()) {
    if (kAccess == Access::kAtomic || is_visible(by, use)) return std::nullopt;
    return conflict_with(by, use, kAccess, Access::kAtomic);
  }
  if (kAccess == Access::kRead || is_seen(by, use)) return std::nullopt;
  return conflict_with(by, use, kAccess, Access::kRead);
}

/// Whether `earlier` need not be kept beside `use`: whatever conflicts with it and is found later conflicts
/// with `use` too. A read stands for earlier reads and an atomic access for earlier atomic ones, but not for
/// each other: two atomic accesses do not conflict, and neither do two reads.
bool stands_for(const Accessor& by, AccessRecord use, AccessRecord earlier) {
  return use.is_atomic() == earlier.is_atomic() && (earlier.owner() == use.owner() || is_seen(by, earlier));
}

}  // namespace

std::optional<Conflict> ShadowMemory::read(const Accessor& by, std::size_t offset, std::size_t size) {
  return access<Access::kRead>(by, offset, size);
}

std::optional<Conflict> ShadowMemory::write(const Accessor& by, std::size_t offset, std::size_t size) {
  return access<Access::kWrite>(by, offset, size);
}

std::optional<Conflict> ShadowMemory::atomic(const Accessor& by, std::size_t offset, std::size_t size) {
  return access<Access::kAtomic>(by, offset, size);
}

void ShadowMemory::clear() {
  std::ranges::fill(lines_, Cell{});
  // All sets are free again, with their memory: the next block needs as many.
  free_sets_.resize(sets_.size());
  std::iota(free_sets_.begin(), free_sets_.end(), 0u);
  free_split_lines_.resize(split_lines_.size());
  std::iota(free_split_lines_.begin(), free_split_lines_.end(), 0u);
}

template <Access kAccess>
std::optional<Conflict> ShadowMemory::access(const Accessor& by, std::size_t offset, std::size_t size) {
  const std::size_t end = offset + size;
  while (offset < end) {
    const std::size_t begin = offset % kLineBytes;
    const std::size_t count = std::min(kLineBytes - begin, end - offset);
    Cell& line = lines_[offset / kLineBytes];
    const bool whole = count == kLineBytes && !line.write.is_reference();
    std::optional<Conflict> conflict =
        whole ? update<kAccess>(by, line, 1) : access_bytes<kAccess>(by, line, begin, count);
    if (conflict) {
      conflict->offset += offset;
      return conflict;
    }
    offset += count;
  }
  return std::nullopt;
}

/// An access to a part of a line, or to a line whose bytes differ. A conflict's offset counts from `begin`.
template <Access kAccess>
std::optional<Conflict> ShadowMemory::access_bytes(const Accessor& by, Cell& line, std::size_t begin,
                                                   std::size_t count) {
  if (!line.write.is_reference()) split(line);
  Cell* const cells = split_lines_[line.write.referred()].data() + begin;
  // Bytes in the same state, which are often all of them, are updated at once.
  std::size_t run_end = 0;
  for (std::size_t first = 0; first < count; first = run_end) {
    const Cell before = cells[first];
    run_end = first + 1;
    while (run_end < count && cells[run_end] == before) ++run_end;
    Cell after = before;
    std::optional<Conflict> conflict =
        update<kAccess>(by, after, static_cast<std::uint32_t>(run_end - first));
    if (conflict) {
      conflict->offset = first;
      return conflict;
    }
    std::fill(cells + first, cells + run_end, after);
  }
  if (kAccess == Access::kWrite && count == kLineBytes) merge(line);
  return std::nullopt;
}

/// An access to `count` bytes in the same state, which `cell` is.
template <Access kAccess>
std::optional<Conflict> ShadowMemory::update(const Accessor& by, Cell& cell, std::uint32_t count) {
  if (kAccess != Access::kWrite && cell.write.empty()) {
    return Conflict{.kind = Conflict::Kind::kUninitialized, .access = kAccess, .offset = 0, .other = {}};
  }
  if (!cell.write.empty() && !is_visible(by, cell.write)) {
    return conflict_with(by, cell.write, kAccess, Access::kWrite);
  }
  if (!cell.uses.empty()) {
    if (std::optional<Conflict> conflict = check_uses<kAccess>(by, cell.uses)) return conflict;
  }
  const AccessRecord record(by, kAccess);
  if (kAccess != Access::kWrite) {
    add_use(by, record, cell, count);
  } else {
    if (!cell.uses.empty()) drop_uses(cell, count);
    cell.write = record;
  }
  return std::nullopt;
}

template <Access kAccess>
std::optional<Conflict> ShadowMemory::check_uses(const Accessor& by, AccessRecord uses) const {
  if (!uses.is_reference()) return check_use<kAccess>(by, uses);
  for (const AccessRecord use : sets_[uses.referred()].uses) {
    if (std::optional<Conflict> conflict = check_use<kAccess>(by, use)) return conflict;
  }
  return std::nullopt;
}

void ShadowMemory::add_use(const Accessor& by, AccessRecord use, Cell& cell, std::uint32_t count) {
  if (cell.uses.empty() || (!cell.uses.is_reference() && stands_for(by, use, cell.uses))) {
    cell.uses = use;
    return;
  }
  const std::uint32_t number = own_set(cell.uses, count);
  std::vector<AccessRecord>& uses = sets_[number].uses;
  std::erase_if(uses, [&](AccessRecord earlier) { return stands_for(by, use, earlier); });
  uses.push_back(use);
  cell.uses = AccessRecord::reference(number);
}

/// A set with `uses` that belongs to `count` cells, which had `uses`, alone.
std::uint32_t ShadowMemory::own_set(AccessRecord uses, std::uint32_t count) {
  if (uses.is_reference() && sets_[uses.referred()].cells == count) return uses.referred();
  if (free_sets_.empty()) {
    free_sets_.push_back(static_cast<std::uint32_t>(sets_.size()));
    sets_.emplace_back();
  }
  const std::uint32_t number = free_sets_.back();
  free_sets_.pop_back();
  sets_[number].cells = count;
  if (uses.is_reference()) {
    UseSet& shared = sets_[uses.referred()];
    shared.cells -= count;
    sets_[number].uses = shared.uses;
  } else {
    sets_[number].uses.assign(1, uses);
  }
  return number;
}

void ShadowMemory::drop_uses(Cell& cell, std::uint32_t count) {
  if (cell.uses.is_reference()) {
    const std::uint32_t number = cell.uses.referred();
    sets_[number].cells -= count;
    if (sets_[number].cells == 0) free_sets_.push_back(number);
  }
  cell.uses = {};
}

/// Gives each byte of the line a cell.
void ShadowMemory::split(Cell& line) {
  if (free_split_lines_.empty()) {
    free_split_lines_.push_back(static_cast<std::uint32_t>(split_lines_.size()));
    split_lines_.emplace_back();
  }
  const std::uint32_t number = free_split_lines_.back();
  free_split_lines_.pop_back();
  split_lines_[number].fill(line);
  if (line.uses.is_reference()) sets_[line.uses.referred()].cells += kLineBytes - 1;
  line = {.write = AccessRecord::reference(number), .uses = {}};
}

/// After a write of the whole line its bytes are equal again: it was written, and nobody has used it since.
void ShadowMemory::merge(Cell& line) {
  const std::uint32_t number = line.write.referred();
  free_split_lines_.push_back(number);
  line = split_lines_[number][0];
}

}  // namespace flashmla::emulator
