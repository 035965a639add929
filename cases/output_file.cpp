// Files that appear under their name when they are complete.
#include "cases/output_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "flashmla/error.h"

namespace flashmla::cases {
namespace {

[[noreturn]] void fail(const std::string& path, const char* reason) {
  throw Error(ErrorKind::kValue, fmt::format("{}: cannot be written: {}", path, reason));
}

/// A file of this process beside the wanted one, removed unless it took its name.
class Partial {
 public:
  explicit Partial(const std::string& path)
      : path_(path), temporary_(fmt::format("{}.{}.partial", path, getpid())) {
    // Renaming a file over a device such as /dev/null would replace the device.
    std::error_code ignored;
    if (std::filesystem::exists(path, ignored) && !std::filesystem::is_regular_file(path, ignored)) {
      fail(path, "not a regular file");
    }
    file_.open(temporary_, std::ios::binary | std::ios::trunc);
    if (!file_) fail(path, std::strerror(errno));
  }
  ~Partial() { std::remove(temporary_.c_str()); }
  Partial(const Partial&) = delete;
  Partial& operator=(const Partial&) = delete;

  std::ostream& stream() { return file_; }

  void finish() {
    file_.close();
    if (!file_ || std::rename(temporary_.c_str(), path_.c_str()) != 0) fail(path_, std::strerror(errno));
  }

 private:
  const std::string& path_;
  std::string temporary_;
  std::ofstream file_;
};

}  // namespace

void require_writable(const std::string& path) { const Partial probe(path); }

void write_file(const std::string& path, const std::function<void(std::ostream&)>& write) {
  Partial file(path);
  write(file.stream());
  file.finish();
}

}  // namespace flashmla::cases
