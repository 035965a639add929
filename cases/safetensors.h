// Reads and writes safetensors files; trusts no byte of what it reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flashmla/tensor.h"

namespace flashmla::cases {

/// One tensor of a file, packed row-major. The data has no particular alignment.
struct SafetensorsEntry {
  DataType type = DataType::kU8;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;
};

/// What the header of a file says.
struct SafetensorsContent {
  std::map<std::string, std::string> metadata;
  std::map<std::string, SafetensorsEntry> tensors;
};

/// Parses a whole file in memory; the entries point into `bytes`. `name` stands at the front of
/// messages. Element types: BF16, F16, F32, U8, I32, I64, and F8_E4M3, which is taken as bytes.
/// Throws Error (kValue), and nothing else, for anything that is not exactly right: the length of the
/// header, its JSON, unknown or repeated keys, shapes, offsets, and gaps or overlaps in the data.
/// Format: https://github.com/huggingface/safetensors.
SafetensorsContent parse_safetensors(std::span<const std::byte> bytes, const std::string& name);

/// Text from a file as a message may show it: printable ASCII on one line, at most 80 characters.
std::string printable(std::string_view text);

/// A file mapped into memory for as long as this object lives. The file must not shrink meanwhile.
class SafetensorsFile {
 public:
  /// Opens and parses; throws as parse_safetensors does, also if the file cannot be read.
  explicit SafetensorsFile(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const SafetensorsContent& content() const { return content_; }

 private:
  void map(const std::string& path);

  std::span<const std::byte> bytes_;
  SafetensorsContent content_;
};

/// Writes the elements of each tensor, packed row-major, under its name. The file appears under `path`
/// when it is complete: it is written beside it first. Throws Error (kValue) if that fails.
void write_safetensors(const std::string& path, const std::map<std::string, std::string>& metadata,
                       const std::map<std::string, TensorView>& tensors);

}  // namespace flashmla::cases
