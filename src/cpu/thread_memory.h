// A piece of the workspace for each thread.
#pragma once

#include <cstddef>

#include "api/workspace.h"

namespace flashmla::cpu {

class ThreadMemory {
 public:
  /// Takes what `cut(workspace)` takes, once for each thread.
  template <class Cut>
  ThreadMemory(Workspace& workspace, int threads, Cut&& cut) {
    Workspace measure;
    cut(measure);
    bytes_ = measure.used();
    base_ = workspace.take<std::byte>(bytes_ * static_cast<std::size_t>(threads));
  }

  /// A thread's piece, to be cut by the same calls.
  Workspace of(int thread) const { return Workspace(base_ + bytes_ * static_cast<std::size_t>(thread)); }

 private:
  std::byte* base_;
  std::size_t bytes_;
};

}  // namespace flashmla::cpu
