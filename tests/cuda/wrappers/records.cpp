// Writes, reads and compares records of outputs.
#include "records.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "api/message.h"

namespace flashmla::wrappers {
namespace {

/// FNV-1a.
std::uint64_t hash_of(std::span<const std::byte> bytes) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const std::byte byte : bytes) hash = (hash ^ static_cast<std::uint64_t>(byte)) * 0x100000001b3u;
  return hash;
}

std::size_t blocks_of(std::uint64_t size) {
  return static_cast<std::size_t>((size + Record::kBlockBytes - 1) / Record::kBlockBytes);
}

std::span<const std::byte> block(std::span<const std::byte> outputs, std::size_t index) {
  const std::size_t begin = index * Record::kBlockBytes;
  return outputs.subspan(begin, std::min(Record::kBlockBytes, outputs.size() - begin));
}

std::string hex_word(std::span<const std::byte> bytes, std::size_t at) {
  std::ostringstream stream;
  stream << "0x" << std::hex;
  for (std::size_t i = std::min(at + 4, bytes.size()); i-- > at;) {
    stream.width(2);
    stream.fill('0');
    stream << static_cast<unsigned>(bytes[i]);
  }
  return stream.str();
}

}  // namespace

Record Record::of(std::span<const std::byte> outputs) {
  Record record;
  record.size = outputs.size();
  const auto kept = outputs.first(std::min(kKeptBytes, outputs.size()));
  record.beginning.assign(kept.begin(), kept.end());
  for (std::size_t i = 0; i < blocks_of(record.size); ++i)
    record.hashes.push_back(hash_of(block(outputs, i)));
  return record;
}

void write_records(const std::string& path, const Records& records) {
  std::ofstream file(path, std::ios::binary);
  for (const auto& [name, record] : records) {
    file << name << ' ' << record.size << '\n';
    file.write(reinterpret_cast<const char*>(record.beginning.data()),
               static_cast<std::streamsize>(record.beginning.size()));
    for (const std::uint64_t hash : record.hashes) {
      for (int shift = 0; shift < 64; shift += 8) file.put(static_cast<char>(hash >> shift & 0xff));
    }
    file << '\n';
  }
  if (!file.flush()) throw std::runtime_error("can't write " + path);
}

Records read_records(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("can't read " + path);
  Records records;
  std::string name;
  std::uint64_t size = 0;
  const auto broken = [&](const char* where) {
    return std::runtime_error(text(path, " is broken ", where, " the outputs of ", name));
  };
  while (file >> name >> size && file.get() == '\n') {
    Record& record = records[name];
    record.size = size;
    record.beginning.resize(std::min<std::uint64_t>(size, Record::kKeptBytes));
    file.read(reinterpret_cast<char*>(record.beginning.data()),
              static_cast<std::streamsize>(record.beginning.size()));
    for (std::size_t i = 0; i < blocks_of(size); ++i) {
      std::uint64_t hash = 0;
      for (int shift = 0; shift < 64; shift += 8)
        hash |= static_cast<std::uint64_t>(file.get() & 0xff) << shift;
      record.hashes.push_back(hash);
    }
    if (file.get() != '\n') throw broken("at");
  }
  if (!file.eof()) throw broken("behind");
  return records;
}

std::string difference(std::span<const std::byte> outputs, const Record& expected) {
  std::ostringstream stream;
  if (outputs.size() != expected.size) {
    stream << outputs.size() << " bytes instead of " << expected.size;
    return stream.str();
  }
  const std::size_t kept = expected.beginning.size();
  std::size_t words = 0;
  for (std::size_t at = 0; at < kept; at += 4) {
    const std::string ours = hex_word(outputs.first(kept), at), theirs = hex_word(expected.beginning, at);
    if (ours != theirs && words++ < 8) {
      stream << "at byte " << at << ": " << ours << " instead of " << theirs << "; ";
    }
  }
  if (words > 0) stream << words << " words of the first " << kept << " bytes differ; ";
  std::size_t blocks = 0, first = 0;
  for (std::size_t i = expected.hashes.size(); i-- > 0;) {
    if (hash_of(block(outputs, i)) == expected.hashes[i]) continue;
    first = i;
    ++blocks;
  }
  if (blocks > 0) {
    stream << blocks << " of " << expected.hashes.size() << " blocks of " << Record::kBlockBytes
           << " bytes differ, the first is number " << first;
  }
  return stream.str();
}

}  // namespace flashmla::wrappers
