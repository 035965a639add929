// Places in the source, for reports: from program counters and from std::source_location.
#pragma once

#include <array>
#include <cstdint>
#include <source_location>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda/emulator/shadow_memory.h"

namespace flashmla::emulator {

/// Empty strings and line 0 where nothing is known.
struct SourceLine {
  std::string function;
  std::string file;
  int line = 0;
};

/// `file:line`, or `an unknown place`.
std::string describe(const SourceLine& place);

SourceLine source_line_of(const std::source_location& location);

/// The place of the call that returns to `return_address`; of the innermost function where some are inlined.
/// Needs debug information (-g1). The first call reads that of the whole program.
SourceLine source_line_of(const void* return_address);

/// Numbers for the places of accesses, small enough to be kept for each byte. Numbering is fast; what a
/// number means is looked up when it is asked for. For one thread at a time.
class Sites {
 public:
  /// Numbers begin at 1. After 65,535 places all further ones are number 0, an unknown place.
  Site site_of(const void* return_address) { return site_of({return_address, 0, 0}); }
  Site site_of(const std::source_location& location) {
    return site_of({location.file_name(), location.line(), location.column()});
  }

  SourceLine source_line_of(Site site) const;

 private:
  /// A return address with line 0, or a file's name with line and column.
  struct Key {
    const void* pointer = nullptr;
    std::uint32_t line = 0;
    std::uint32_t column = 0;

    friend bool operator==(const Key&, const Key&) = default;
  };
  struct KeyHash {
    std::size_t operator()(const Key& key) const;
  };
  struct Recent {
    Key key;
    Site site = 0;
  };

  Site site_of(const Key& key);
  Site add(const Key& key);

  std::vector<Key> keys_;
  std::unordered_map<Key, Site, KeyHash> sites_;
  std::array<Recent, 256> recent_;  // by hash: most accesses need no look into the map
};

}  // namespace flashmla::emulator
