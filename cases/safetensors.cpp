// Reads and writes safetensors files; every statement of a header is checked before it is used.
#include "cases/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <ostream>
#include <set>
#include <utility>

#include "cases/output_file.h"
#include "cases/tensor.h"
#include "flashmla/error.h"

namespace flashmla::cases {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kLengthBytes = 8;
/// The limit that the format's own library has.
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
/// The header, an entry, and a list in it.
constexpr int kMaxDepth = 3;

struct NamedType {
  std::string_view name;
  DataType type;
};
constexpr NamedType kTypes[] = {
    {"BF16", DataType::kBf16}, {"F16", DataType::kF16}, {"F32", DataType::kF32},    {"U8", DataType::kU8},
    {"I32", DataType::kI32},   {"I64", DataType::kI64}, {"F8_E4M3", DataType::kU8},
};

std::string_view safetensors_name(DataType type) {
  return std::ranges::find(kTypes, type, &NamedType::type)->name;
}

/// Turns the bytes of one file into its content.
class Parser {
 public:
  Parser(std::span<const std::byte> bytes, const std::string& name) : bytes_(bytes), name_(name) {}

  SafetensorsContent parse() {
    const Json header = parse_json(header_text());
    for (const auto& [key, value] : header.items()) {
      if (key == "__metadata__") {
        read_metadata(value);
      } else {
        read_entry(key, value);
      }
    }
    check_ranges();
    return std::move(content_);
  }

 private:
  struct Range {
    std::uint64_t begin;
    std::uint64_t end;
    std::string tensor;
    auto operator<=>(const Range&) const = default;
  };

  template <class... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) const {
    throw Error(ErrorKind::kValue, name_ + ": " + fmt::format(text, std::forward<Args>(args)...));
  }

  std::string_view header_text() {
    if (bytes_.size() < kLengthBytes) {
      fail("not a safetensors file: {} bytes are too few for the length of the header", bytes_.size());
    }
    std::uint64_t length = 0;
    for (std::size_t i = 0; i < kLengthBytes; ++i) {
      length |= std::to_integer<std::uint64_t>(bytes_[i]) << (8 * i);
    }
    const std::uint64_t rest = bytes_.size() - kLengthBytes;
    if (length > kMaxHeaderBytes) {
      fail("header length is {} bytes, more than the format's limit of {}", length, kMaxHeaderBytes);
    }
    if (length > rest) fail("header length is {} bytes, but only {} bytes follow", length, rest);
    data_ = bytes_.subspan(kLengthBytes + length);
    const auto header = bytes_.subspan(kLengthBytes, length);
    if (header.empty() || header[0] != std::byte{'{'}) fail("header does not begin with a JSON object");
    return {reinterpret_cast<const char*>(header.data()), header.size()};
  }

  /// Repeated keys and deep nesting are refused while parsing: afterwards they cannot be seen, or have
  /// done their harm.
  Json parse_json(std::string_view text) const {
    std::vector<std::set<std::string>> keys(kMaxDepth + 1);
    const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
      const bool begins =
          event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
      if (begins && depth >= kMaxDepth) fail("header is nested deeper than {} levels", kMaxDepth);
      if (begins) keys[static_cast<std::size_t>(depth) + 1].clear();
      if (event == Json::parse_event_t::key) {
        const auto& key = parsed.get_ref<const std::string&>();
        if (!keys[static_cast<std::size_t>(depth)].insert(key).second) {
          fail("header has the key {} twice", printable(key));
        }
      }
      return true;
    };
    try {
      return Json::parse(text.begin(), text.end(), watch);
    } catch (const Json::parse_error& error) {
      fail("header is not valid JSON near its byte {}", error.byte);
    } catch (const Json::exception&) {
      fail("header is not valid JSON");
    }
  }

  void read_metadata(const Json& metadata) {
    if (!metadata.is_object())
      fail("__metadata__ must be an object of strings, got {}", metadata.type_name());
    for (const auto& [key, value] : metadata.items()) {
      if (!value.is_string()) {
        fail("__metadata__ {} must be a string, got {}", printable(key), value.type_name());
      }
      content_.metadata[key] = value.get<std::string>();
    }
  }

  void read_entry(const std::string& tensor, const Json& entry) {
    const std::string shown = printable(tensor);
    if (!entry.is_object()) fail("tensor {} must be an object, got {}", shown, entry.type_name());
    for (const auto& item : entry.items()) {
      const std::string& key = item.key();
      if (key != "dtype" && key != "shape" && key != "data_offsets") {
        fail("tensor {} has an unknown key {}", shown, printable(key));
      }
    }
    for (const char* key : {"dtype", "shape", "data_offsets"}) {
      if (!entry.contains(key)) fail("tensor {} has no {}", shown, key);
    }
    SafetensorsEntry result;
    result.type = read_type(shown, entry["dtype"]);
    result.shape = read_shape(shown, entry["shape"]);
    const auto [begin, end] = read_offsets(shown, entry["data_offsets"]);
    check_size(shown, result, end - begin);
    result.data = data_.subspan(begin, end - begin);
    ranges_.push_back({begin, end, shown});
    content_.tensors[tensor] = std::move(result);
  }

  DataType read_type(const std::string& shown, const Json& dtype) const {
    if (!dtype.is_string()) fail("tensor {} must have a string as dtype, got {}", shown, dtype.type_name());
    const auto& name = dtype.get_ref<const std::string&>();
    const auto* found = std::ranges::find(kTypes, name, &NamedType::name);
    if (found == std::end(kTypes)) {
      fail("tensor {} has dtype {}, which is none of BF16, F16, F32, U8, I32, I64, F8_E4M3", shown,
           printable(name));
    }
    return found->type;
  }

  std::vector<std::int64_t> read_shape(const std::string& shown, const Json& shape) const {
    if (!shape.is_array()) fail("tensor {} must have a list as shape, got {}", shown, shape.type_name());
    if (shape.size() > kMaxDims) {
      fail("tensor {} has {} dimensions, more than {}", shown, shape.size(), kMaxDims);
    }
    std::vector<std::int64_t> sizes;
    for (const Json& size : shape) {
      constexpr std::uint64_t kLargest = std::numeric_limits<std::int64_t>::max();
      if (!size.is_number_unsigned() || size.get<std::uint64_t>() > kLargest) {
        fail("tensor {} has a shape that is not made of whole numbers from 0 to 2^63-1", shown);
      }
      sizes.push_back(size.get<std::int64_t>());
    }
    return sizes;
  }

  std::pair<std::uint64_t, std::uint64_t> read_offsets(const std::string& shown, const Json& offsets) const {
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned()) {
      fail("tensor {} must have two whole numbers as data_offsets", shown);
    }
    const auto begin = offsets[0].get<std::uint64_t>();
    const auto end = offsets[1].get<std::uint64_t>();
    if (begin > end || end > data_.size()) {
      fail("tensor {} has data_offsets [{}, {}], but the file has {} bytes of data", shown, begin, end,
           data_.size());
    }
    return {begin, end};
  }

  void check_size(const std::string& shown, const SafetensorsEntry& entry, std::uint64_t bytes) const {
    std::uint64_t expected = size_of(entry.type);
    for (const std::int64_t size : entry.shape) {
      if (__builtin_mul_overflow(expected, static_cast<std::uint64_t>(size), &expected)) {
        fail("tensor {} has shape {}, whose size does not fit in 64 bits", shown, to_string(entry.shape));
      }
    }
    if (expected != bytes) {
      fail("tensor {} is {} {}, {} bytes, but its data_offsets span {}", shown, name_of(entry.type),
           to_string(entry.shape), expected, bytes);
    }
  }

  void check_ranges() {
    std::ranges::sort(ranges_);
    std::uint64_t end = 0;
    for (const Range& range : ranges_) {
      if (range.begin < end) fail("tensor {} overlaps the one before it in the data", range.tensor);
      if (range.begin > end) {
        fail("{} bytes of data in front of tensor {} belong to no tensor", range.begin - end, range.tensor);
      }
      end = range.end;
    }
    if (end != data_.size()) fail("the last {} bytes of data belong to no tensor", data_.size() - end);
  }

  std::span<const std::byte> bytes_;
  std::span<const std::byte> data_;
  const std::string& name_;
  SafetensorsContent content_;
  std::vector<Range> ranges_;
};

[[noreturn]] void fail_system(const std::string& path, std::string_view what) {
  const int code = errno;
  throw Error(ErrorKind::kValue, fmt::format("{}: {}: {}", path, what, std::strerror(code)));
}

/// Larger elements first, so that all are aligned to their size; then by name.
std::vector<std::pair<std::string, TensorView>> in_file_order(
    const std::map<std::string, TensorView>& tensors) {
  std::vector<std::pair<std::string, TensorView>> order(tensors.begin(), tensors.end());
  std::ranges::sort(order, [](const auto& a, const auto& b) {
    const std::size_t size_a = size_of(a.second.type);
    const std::size_t size_b = size_of(b.second.type);
    return size_a != size_b ? size_a > size_b : a.first < b.first;
  });
  return order;
}

std::string header_of(const std::map<std::string, std::string>& metadata,
                      const std::vector<std::pair<std::string, TensorView>>& tensors) {
  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const auto& [name, view] : tensors) {
    const std::vector<std::int64_t> shape(view.shape.begin(), view.shape.begin() + view.ndim);
    const std::uint64_t end = offset + static_cast<std::uint64_t>(view.size()) * size_of(view.type);
    header[name] = {
        {"dtype", safetensors_name(view.type)}, {"shape", shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.resize((text.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  return text;
}

void write_elements(std::ostream& file, const TensorView& view) {
  Tensor packed(view.type, {view.shape.begin(), view.shape.begin() + view.ndim});
  copy_elements(view, packed.view());
  file.write(reinterpret_cast<const char*>(packed.memory().data()),
             static_cast<std::streamsize>(packed.memory().size()));
}

}  // namespace

std::string printable(std::string_view text) {
  constexpr std::size_t kLongest = 80;
  std::string shown(text.substr(0, kLongest));
  for (char& letter : shown) {
    const auto code = static_cast<unsigned char>(letter);
    if (code < 0x20 || code >= 0x7f) letter = '?';
  }
  return text.size() > kLongest ? shown + "..." : shown;
}

SafetensorsContent parse_safetensors(std::span<const std::byte> bytes, const std::string& name) {
  return Parser(bytes, name).parse();
}

SafetensorsFile::SafetensorsFile(const std::string& path) {
  map(path);
  try {
    content_ = parse_safetensors(bytes_, path);
  } catch (...) {
    if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
    throw;
  }
}

SafetensorsFile::~SafetensorsFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void SafetensorsFile::map(const std::string& path) {
  // Not blocking: opening a pipe that nobody writes to must not hang.
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) fail_system(path, "cannot be opened");
  struct stat status{};
  if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(file);
    throw Error(ErrorKind::kValue, path + ": not a regular file");
  }
  const auto size = static_cast<std::size_t>(status.st_size);
  void* memory = size == 0 ? nullptr : mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (memory == MAP_FAILED) fail_system(path, "cannot be mapped");
  bytes_ = {static_cast<const std::byte*>(memory), size};
}

void write_safetensors(const std::string& path, const std::map<std::string, std::string>& metadata,
                       const std::map<std::string, TensorView>& tensors) {
  const auto order = in_file_order(tensors);
  const std::string header = header_of(metadata, order);
  write_file(path, [&](std::ostream& file) {
    for (std::size_t i = 0; i < kLengthBytes; ++i) {
      file.put(static_cast<char>(header.size() >> (8 * i) & 0xff));
    }
    file.write(header.data(), static_cast<std::streamsize>(header.size()));
    for (const auto& [name, view] : order) write_elements(file, view);
  });
}

}  // namespace flashmla::cases
