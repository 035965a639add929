// The memory that kernels may touch: what a test registers, down to the gaps between rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace flashmla::emulator {

/// One dimension of a registered tensor: so many steps of so many bytes.
struct Extent {
  std::int64_t size;
  std::int64_t stride_bytes;
};

/// Bytes that kernels may touch.
class Region {
 public:
  Region(std::string name, const void* data, std::size_t bytes);
  /// A tensor of `element_bytes`; the gaps that its strides leave are no part of it.
  Region(std::string name, const void* data, std::size_t element_bytes, std::vector<Extent> extents);

  const std::string& name() const { return name_; }
  bool begins_at(const void* data) const { return begin_ == reinterpret_cast<std::uintptr_t>(data); }
  /// Whether `bytes` from `address` on are all part of it.
  bool contains(std::uintptr_t address, std::size_t bytes) const;
  /// In bytes: negative in front of the region, 0 inside of its range.
  std::int64_t distance(std::uintptr_t address, std::size_t bytes) const;

 private:
  std::string name_;
  std::uintptr_t begin_;
  std::size_t range_bytes_;            // from the first byte to behind the last
  std::size_t row_bytes_;              // that lie without a gap
  std::vector<Extent> outer_extents_;  // largest stride first; empty for a range without gaps
};

/// Registers memory for launches of the calling host thread, as long as it lives. While at least one scope
/// lives, or register_memory() has registered something, an access of a kernel to anything else is a failure:
/// each one in checked mode, copies and atomic operations always.
class MemoryScope {
 public:
  MemoryScope();
  ~MemoryScope();
  MemoryScope(const MemoryScope&) = delete;
  MemoryScope& operator=(const MemoryScope&) = delete;

  /// `name` stands in reports.
  void add(Region region);
  void add(std::string name, const void* data, std::size_t bytes);

 private:
  std::size_t regions_before_;
};

/// Registers memory for launches of every host thread until withdraw_memory(): what a GPU has allocated,
/// while a MemoryScope is what one test knows of.
void register_memory(Region region);

/// Withdraws what was registered with this address.
void withdraw_memory(const void* data);

/// What is registered, seen by one launch; read by several host threads.
class GlobalMemory {
 public:
  GlobalMemory();

  /// Parameters of the kernel, which the host copies to each thread.
  void allow(const void* data, std::size_t bytes);

  /// What is wrong with an access to these bytes, or nothing.
  std::optional<std::string> complaint(const void* address, std::size_t bytes) const;

 private:
  bool everything_ = false;
  std::vector<Region> regions_;
};

}  // namespace flashmla::emulator
