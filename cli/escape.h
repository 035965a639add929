// Names of files as a terminal may show them.
#pragma once

#include <string>
#include <string_view>

namespace flashmla::cli {

/// The text with control characters as `\x1b`: a name must neither break a line nor steer a terminal.
std::string escaped(std::string_view text);

/// The last part of a path, escaped.
std::string file_name(const std::string& path);

}  // namespace flashmla::cli
