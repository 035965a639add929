// Says on standard error what a long command is doing: a bar on a terminal, plain lines otherwise.
#include "cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace flashmla::cli {
namespace {

constexpr int kBarWidth = 24;
// Longer text would wrap on a narrow terminal, and a wrapped line cannot be drawn over.
constexpr std::size_t kTextWidth = 44;

}  // namespace

Progress::Progress(int steps) : terminal_(isatty(STDERR_FILENO) == 1), steps_(steps) {}

Progress::~Progress() { clear(); }

void Progress::clear() {
  if (terminal_) fmt::print(stderr, "\r\033[K");
}

void Progress::step(const std::string& what) {
  ++begun_;
  if (!terminal_) {
    fmt::print(stderr, "{}/{} {}\n", begun_, steps_, what);
    return;
  }
  const auto filled = static_cast<std::size_t>(kBarWidth * (begun_ - 1) / steps_);
  clear();
  fmt::print(stderr, "[{}{}] {}/{} {}", std::string(filled, '#'), std::string(kBarWidth - filled, '.'),
             begun_, steps_, what.substr(0, kTextWidth));
  std::fflush(stderr);
}

}  // namespace flashmla::cli
