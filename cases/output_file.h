// Files that appear under their name when they are complete.
#pragma once

#include <functional>
#include <ostream>
#include <string>

namespace flashmla::cases {

/// Throws Error (kValue), naming the path, if write_file would fail for a reason that shows already: no such
/// folder, no permission, or something under that path that is no regular file. Leaves nothing behind.
void require_writable(const std::string& path);

/// Has `write` fill a file beside `path` and then renames it. Replaces a regular file and nothing else.
/// Throws Error (kValue), naming the path, and what `write` throws; no part of a file stays.
void write_file(const std::string& path, const std::function<void(std::ostream&)>& write);

}  // namespace flashmla::cases
