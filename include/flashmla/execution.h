// Where and how an operation runs.
#pragma once

#include <cstddef>
#include <string_view>

#include "flashmla/tensor.h"

namespace flashmla {

inline constexpr int kMaxThreads = 1024;

/// Passed to `workspace_bytes` and, unchanged but for the workspace, to `run`.
struct Execution {
  /// Every tensor of the operation lives here.
  Device device = {};

  /// The CUDA stream to launch on (a `cudaStream_t`); unused on the CPU.
  void* stream = nullptr;

  /// Scratch memory on `device`, at least `workspace_bytes(op, on)` bytes, any alignment, contents
  /// irrelevant before and after. Two calls that may overlap in time need two workspaces.
  void* workspace = nullptr;
  std::size_t workspace_size = 0;

  /// CPU threads, at most kMaxThreads; 0 takes OpenMP's default. The result has the same bits for any number.
  int threads = 0;

  /// Name of the backend that must run the operation, for example "reference". Empty: the first
  /// kernel of the table that supports the case.
  std::string_view backend = {};

  /// An index outside its range is an error that names tensor, position and value, instead of being
  /// masked. Also switched on by the environment variable FLASHMLA_CHECK=1. Works on the CPU. There, -1 in
  /// `indices`, `extra_indices` and `slot_mapping` stays legal: it is the usual padding.
  bool check_indices = false;
};

}  // namespace flashmla
