// Looks up the registered memory of an access, and says what is nearest to one that goes wrong.
#include "cuda/emulator/global_memory.h"

#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <sstream>
#include <utility>

namespace flashmla::emulator {
namespace {

struct Registered {
  std::vector<Region> regions;
  int scopes = 0;
};

thread_local Registered registered;

/// What register_memory() has registered.
struct Allocated {
  std::mutex mutex;
  std::vector<Region> regions;
};

Allocated& allocated() {
  static Allocated all;
  return all;
}

/// Constants and variables of the program and its libraries.
std::vector<std::pair<std::uintptr_t, std::uintptr_t>> program_segments() {
  std::vector<std::pair<std::uintptr_t, std::uintptr_t>> segments;
  const auto collect = [](dl_phdr_info* object, std::size_t, void* out) {
    for (int i = 0; i < object->dlpi_phnum; ++i) {
      const auto& header = object->dlpi_phdr[i];
      if (header.p_type != PT_LOAD) continue;
      const std::uintptr_t begin = object->dlpi_addr + header.p_vaddr;
      static_cast<decltype(segments)*>(out)->emplace_back(begin, begin + header.p_memsz);
    }
    return 0;
  };
  dl_iterate_phdr(collect, &segments);
  return segments;
}

bool is_part_of_program(std::uintptr_t address, std::size_t bytes) {
  static const auto segments = program_segments();
  return std::ranges::any_of(
      segments, [&](const auto& s) { return address >= s.first && address + bytes <= s.second; });
}

}  // namespace

Region::Region(std::string name, const void* data, std::size_t bytes)
    : name_(std::move(name)),
      begin_(reinterpret_cast<std::uintptr_t>(data)),
      range_bytes_(bytes),
      row_bytes_(bytes) {}

Region::Region(std::string name, const void* data, std::size_t element_bytes, std::vector<Extent> extents)
    : name_(std::move(name)), begin_(reinterpret_cast<std::uintptr_t>(data)), row_bytes_(element_bytes) {
  std::erase_if(extents, [](const Extent& e) { return e.size == 1; });
  std::ranges::sort(extents, std::greater{}, &Extent::stride_bytes);
  // Dimensions without a gap melt into a row.
  while (!extents.empty() && extents.back().stride_bytes <= static_cast<std::int64_t>(row_bytes_)) {
    const Extent inner = extents.back();
    row_bytes_ =
        inner.size == 0 ? 0 : row_bytes_ + static_cast<std::size_t>((inner.size - 1) * inner.stride_bytes);
    extents.pop_back();
  }
  range_bytes_ = row_bytes_;
  for (const Extent& e : extents) {
    range_bytes_ = e.size == 0 ? 0 : range_bytes_ + static_cast<std::size_t>((e.size - 1) * e.stride_bytes);
  }
  outer_extents_ = std::move(extents);
}

bool Region::contains(std::uintptr_t address, std::size_t bytes) const {
  if (address < begin_ || address - begin_ + bytes > range_bytes_) return false;
  std::size_t offset = address - begin_;
  for (const Extent& e : outer_extents_) {
    const auto stride = static_cast<std::size_t>(e.stride_bytes);
    offset -= std::min(offset / stride, static_cast<std::size_t>(e.size - 1)) * stride;
  }
  return offset + bytes <= row_bytes_;
}

std::int64_t Region::distance(std::uintptr_t address, std::size_t bytes) const {
  if (address < begin_) return -static_cast<std::int64_t>(begin_ - address);
  const std::uintptr_t end = begin_ + range_bytes_;
  return address + bytes > end ? static_cast<std::int64_t>(address + bytes - end) : 0;
}

MemoryScope::MemoryScope() : regions_before_(registered.regions.size()) { ++registered.scopes; }

MemoryScope::~MemoryScope() {
  registered.regions.erase(registered.regions.begin() + static_cast<std::ptrdiff_t>(regions_before_),
                           registered.regions.end());
  --registered.scopes;
}

void MemoryScope::add(Region region) { registered.regions.push_back(std::move(region)); }

void MemoryScope::add(std::string name, const void* data, std::size_t bytes) {
  add(Region(std::move(name), data, bytes));
}

void register_memory(Region region) {
  const std::lock_guard lock(allocated().mutex);
  allocated().regions.push_back(std::move(region));
}

void withdraw_memory(const void* data) {
  const std::lock_guard lock(allocated().mutex);
  std::vector<Region>& regions = allocated().regions;
  const auto found = std::ranges::find_if(regions, [&](const Region& r) { return r.begins_at(data); });
  if (found != regions.end()) regions.erase(found);
}

GlobalMemory::GlobalMemory() : regions_(registered.regions) {
  const std::lock_guard lock(allocated().mutex);
  regions_.insert(regions_.end(), allocated().regions.begin(), allocated().regions.end());
  everything_ = registered.scopes == 0 && regions_.empty();
}

void GlobalMemory::allow(const void* data, std::size_t bytes) {
  regions_.emplace_back("the parameters", data, bytes);
}

std::optional<std::string> GlobalMemory::complaint(const void* address, std::size_t bytes) const {
  if (everything_ || bytes == 0) return std::nullopt;
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  // An access most often goes where the last one of this host thread went.
  thread_local std::size_t last = 0;
  if (last < regions_.size() && regions_[last].contains(at, bytes)) return std::nullopt;
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    if (!regions_[i].contains(at, bytes)) continue;
    last = i;
    return std::nullopt;
  }
  if (is_part_of_program(at, bytes)) return std::nullopt;

  std::ostringstream text;
  text << bytes << " bytes outside of registered memory";
  const auto nearest = std::ranges::min_element(
      regions_, {}, [&](const Region& r) { return std::llabs(r.distance(at, bytes)); });
  if (nearest == regions_.end()) return text.str();
  const std::int64_t distance = nearest->distance(at, bytes);
  if (distance == 0) {
    text << ", in a gap of " << nearest->name();
  } else if (distance < 0) {
    text << ", " << -distance << " bytes in front of " << nearest->name();
  } else {
    text << ", up to " << distance << " bytes behind the end of " << nearest->name();
  }
  return text.str();
}

}  // namespace flashmla::emulator
