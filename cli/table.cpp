// Prints rows of text in aligned columns.
#include "cli/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>

namespace flashmla::cli {

void Table::print(std::FILE* file) const {
  std::vector<std::string> titles;
  for (const Column& column : columns_) titles.push_back(column.title);
  std::vector<std::vector<std::string>> lines = {titles};
  lines.insert(lines.end(), rows_.begin(), rows_.end());

  std::vector<std::size_t> widths(columns_.size(), 0);
  for (const std::vector<std::string>& line : lines) {
    for (std::size_t i = 0; i < widths.size(); ++i) widths[i] = std::max(widths[i], line.at(i).size());
  }
  for (const std::vector<std::string>& line : lines) {
    std::string text;
    for (std::size_t i = 0; i < widths.size(); ++i) {
      if (i > 0) text += "  ";
      text += columns_[i].align == Align::kLeft ? fmt::format("{:<{}}", line[i], widths[i])
                                                : fmt::format("{:>{}}", line[i], widths[i]);
    }
    text.erase(text.find_last_not_of(' ') + 1);
    fmt::print(file, "{}\n", text);
  }
}

}  // namespace flashmla::cli
