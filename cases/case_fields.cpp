// Reads the notation in which fields are declared.
#include "cases/case_fields.h"

#include <algorithm>
#include <charconv>
#include <cstddef>

namespace flashmla::cases {

std::optional<std::vector<DeclaredTensor>> declared_tensors(std::string_view operation) {
  std::optional<std::vector<DeclaredTensor>> found;
  Operations::for_each([&]<class Op>() {
    if (Op::fields().operation == operation) found = declared_tensors<Op>();
  });
  return found;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> pieces;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(separator), text.size());
    if (end > 0) pieces.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return pieces;
}

std::vector<DeclaredSize> declared_sizes(std::string_view shape) {
  if (shape.size() >= 2 && shape.front() == '[') shape = shape.substr(1, shape.size() - 2);
  std::vector<DeclaredSize> sizes;
  for (const std::string_view piece : split(shape, ' ')) {
    const bool is_number = piece[0] >= '0' && piece[0] <= '9';
    const std::size_t plus = is_number ? 0 : std::min(piece.find('+'), piece.size());
    DeclaredSize size{piece.substr(0, plus), 0};
    const std::string_view number = is_number ? piece : piece.substr(std::min(plus + 1, piece.size()));
    std::from_chars(number.data(), number.data() + number.size(), size.offset);
    sizes.push_back(size);
  }
  return sizes;
}

}  // namespace flashmla::cases
