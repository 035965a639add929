// Shadow memory: for each byte of a block's shared memory, who wrote it last and who has read it since, so
// that accesses without order between them are found whether or not they met in this run.
//
// The method is FastTrack's: an access is recorded as its owner's time, and a later one is ordered after it
// if the later one's vector clock has reached that time. Asynchronous copies and products are checked when
// they are issued, with the knowledge of the issuing thread: their order does not depend on when they finish.
// Source: Flanagan and Freund, "FastTrack: Efficient and Precise Dynamic Race Detection", PLDI 2009.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "cuda/emulator/vector_clock.h"

namespace flashmla::emulator {

/// The way to memory. What the generic proxy wrote, the async proxy sees after a proxy fence only.
enum class Proxy : std::uint8_t { kGeneric, kAsync };

/// Atomic accesses need no order among each other, but with reads and writes.
enum class Access : std::uint8_t { kRead, kWrite, kAtomic };

/// A number for a place in the source, see Sites.
using Site = std::uint16_t;

/// Who accesses, in whose order.
struct Accessor {
  Owner owner = 0;
  Time time = 1;  ///< the owner's
  /// Of the thread; for an engine, of the thread that issued the work.
  const Knowledge* knowledge = nullptr;
  Proxy proxy = Proxy::kGeneric;
  Site site = 0;

  static Accessor thread(const ThreadClock& clock, Site site) {
    return {clock.owner(), clock.now(), &clock.knowledge(), Proxy::kGeneric, site};
  }
};

/// One access in 64 bits; all zero for "none".
class AccessRecord {
 public:
  AccessRecord() = default;
  AccessRecord(const Accessor& accessor, Access access)
      : bits_(std::uint64_t{accessor.site} | std::uint64_t{accessor.owner} << kOwnerBit |
              static_cast<std::uint64_t>(accessor.time) << kTimeBit |
              std::uint64_t{accessor.proxy == Proxy::kAsync} << kAsyncBit |
              std::uint64_t{access == Access::kAtomic} << kAtomicBit) {}

  bool empty() const { return bits_ == 0; }
  Site site() const { return static_cast<Site>(bits_); }
  Owner owner() const { return static_cast<Owner>(bits_ >> kOwnerBit); }
  Time time() const { return static_cast<Time>((bits_ >> kTimeBit) & kLastTime); }
  Proxy proxy() const { return (bits_ >> kAsyncBit & 1) != 0 ? Proxy::kAsync : Proxy::kGeneric; }
  bool is_atomic() const { return (bits_ >> kAtomicBit & 1) != 0; }

  /// In the place of a record: the number of an object that holds more.
  static AccessRecord reference(std::uint32_t number) {
    AccessRecord record;
    record.bits_ = kReference | number;
    return record;
  }
  bool is_reference() const { return (bits_ & kReference) != 0; }
  std::uint32_t referred() const { return static_cast<std::uint32_t>(bits_); }

  friend bool operator==(AccessRecord, AccessRecord) = default;

 private:
  static constexpr int kOwnerBit = 16;
  static constexpr int kTimeBit = 32;
  static constexpr int kAsyncBit = 60;
  static constexpr int kAtomicBit = 61;
  static constexpr std::uint64_t kReference = std::uint64_t{1} << 63;

  std::uint64_t bits_ = 0;
};

/// Why an access is wrong, and the earlier access that it conflicts with.
struct Conflict {
  enum class Kind : std::uint8_t {
    kUninitialized,      ///< nobody has written this byte; there is no other access
    kUnordered,          ///< a race
    kMissingProxyFence,  ///< ordered, but written by the generic proxy and not published to the async proxy
  };

  Kind kind = Kind::kUnordered;
  Access access = Access::kRead;
  std::size_t offset = 0;  ///< of the first byte in conflict
  Access other_access = Access::kWrite;
  AccessRecord other;
};

class ShadowMemory {
 public:
  /// Memory that nobody has written.
  explicit ShadowMemory(std::size_t bytes) : lines_((bytes + kLineBytes - 1) / kLineBytes) {}

  /// Checks an access to `size` bytes at `offset`, which must be inside, against the earlier ones, and
  /// records it. After a conflict the state of the bytes behind it is not updated.
  std::optional<Conflict> read(const Accessor& by, std::size_t offset, std::size_t size);
  std::optional<Conflict> write(const Accessor& by, std::size_t offset, std::size_t size);
  std::optional<Conflict> atomic(const Accessor& by, std::size_t offset, std::size_t size);

  /// As if nobody had written it; for the next block.
  void clear();

 private:
  static constexpr std::size_t kLineBytes = 16;

  /// The state of a byte, or of all bytes of a line.
  struct Cell {
    /// The last write that was not atomic. In a line whose bytes differ: a reference to its bytes.
    AccessRecord write;
    /// Reads and atomic accesses since: none, one, or a reference to a set.
    AccessRecord uses;

    friend bool operator==(const Cell&, const Cell&) = default;
  };
  using Bytes = std::array<Cell, kLineBytes>;

  struct UseSet {
    std::vector<AccessRecord> uses;
    std::uint32_t cells = 0;  // that refer to it
  };

  template <Access kAccess>
  std::optional<Conflict> access(const Accessor& by, std::size_t offset, std::size_t size);
  template <Access kAccess>
  std::optional<Conflict> access_bytes(const Accessor& by, Cell& line, std::size_t begin, std::size_t count);
  template <Access kAccess>
  std::optional<Conflict> update(const Accessor& by, Cell& cell, std::uint32_t count);
  template <Access kAccess>
  std::optional<Conflict> check_uses(const Accessor& by, AccessRecord uses) const;
  void add_use(const Accessor& by, AccessRecord use, Cell& cell, std::uint32_t count);
  std::uint32_t own_set(AccessRecord uses, std::uint32_t count);
  void drop_uses(Cell& cell, std::uint32_t count);
  void split(Cell& line);
  void merge(Cell& line);

  std::vector<Cell> lines_;
  std::vector<Bytes> split_lines_;
  std::vector<std::uint32_t> free_split_lines_;
  std::vector<UseSet> sets_;
  std::vector<std::uint32_t> free_sets_;
};

}  // namespace flashmla::emulator
