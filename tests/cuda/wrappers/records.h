// Outputs of tests as they are kept in a file, to compare a GPU with the emulator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace flashmla::wrappers {

/// What is kept of a test's outputs: their first bytes, and hashes of all.
struct Record {
  static constexpr std::size_t kKeptBytes = 2048;
  static constexpr std::size_t kBlockBytes = 1024;

  std::uint64_t size = 0;             // of the outputs, in bytes
  std::vector<std::byte> beginning;   // at most kKeptBytes
  std::vector<std::uint64_t> hashes;  // one for each kBlockBytes, the last block may be shorter

  static Record of(std::span<const std::byte> outputs);
};

/// By the name of the test.
using Records = std::map<std::string, Record>;

/// One record after the other: a line `name size`, the beginning, the hashes (8 bytes each, lowest first),
/// and a line end. Throws std::runtime_error.
void write_records(const std::string& path, const Records& records);
Records read_records(const std::string& path);

/// Where outputs differ from a record; empty if they do not.
std::string difference(std::span<const std::byte> outputs, const Record& expected);

}  // namespace flashmla::wrappers
