// Says on standard error what a long command is doing: a bar on a terminal, plain lines otherwise.
#pragma once

#include <string>

namespace flashmla::cli {

class Progress {
 public:
  explicit Progress(int steps);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Begins the next step.
  void step(const std::string& what);

 private:
  void clear();

  bool terminal_;
  int steps_;
  int begun_ = 0;
};

}  // namespace flashmla::cli
