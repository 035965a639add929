// Names of files as a terminal may show them.
#include "cli/escape.h"

#include <fmt/format.h>

#include <filesystem>

namespace flashmla::cli {

std::string escaped(std::string_view text) {
  std::string shown;
  for (const char letter : text) {
    const auto code = static_cast<unsigned char>(letter);
    if (code < 0x20 || code == 0x7f) {
      shown += fmt::format("\\x{:02x}", code);
    } else {
      shown += letter;
    }
  }
  return shown;
}

std::string file_name(const std::string& path) {
  return escaped(std::filesystem::path(path).filename().string());
}

}  // namespace flashmla::cli
