// Runs operations whose tensors are in host memory on the device of a backend, on copies.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include "cases/case.h"
#include "cuda/memory.h"
#include "flashmla/execution.h"

namespace flashmla::cases {

/// Where the kernels of a backend run: the CPU, or the first GPU for a backend that has kernels for GPUs
/// alone.
Device device_of(std::string_view backend);

/// An operation whose views say that they are on this device, though they are not: for calls that look at
/// shapes alone.
class ShapesOn {
 public:
  ShapesOn(const AnyOperation& operation, Device device);
  const AnyOperation& operation() const { return operation_; }

 private:
  std::vector<std::vector<TensorView>> lists_;
  AnyOperation operation_;
};

/// Copies of an operation's tensors on a GPU: everything from the first byte of a tensor to the last, gaps
/// included, at the same distance from a multiple of 256 bytes. A tensor ends where its allocation ends, so
/// that tools which watch memory see what is read behind it.
class OnGpu {
 public:
  /// `host` must outlive the copies. Tensors that share memory also share it there.
  OnGpu(const AnyOperation& host, Device device);
  OnGpu(const OnGpu&) = delete;
  OnGpu& operator=(const OnGpu&) = delete;
  OnGpu(OnGpu&&) = default;
  OnGpu& operator=(OnGpu&&) = default;

  /// Views the copies.
  const AnyOperation& operation() const { return operation_; }

  /// Copies all tensors to the GPU again, as they are on the host now.
  void copy_again() const;

  /// Copies what the operation writes back to the host. The GPU must have finished.
  void copy_back() const;

  /// The same for every tensor, for calls that write to what is an input of the operation.
  void copy_all_back() const;

  /// All bytes that were copied.
  std::size_t bytes() const;

 private:
  struct Copy {
    std::byte* host = nullptr;
    std::byte* device = nullptr;
    std::size_t bytes = 0;
    bool written = false;
    cuda::DeviceMemory memory;
  };

  Copy& copy_of(std::byte* host, std::size_t bytes, Device device);

  std::vector<Copy> copies_;
  std::vector<std::vector<TensorView>> lists_;
  AnyOperation operation_;
};

/// Scratch memory on a device, full of NaN.
class Workspace {
 public:
  Workspace(Device device, std::size_t bytes);

  /// Hands the memory to a run.
  void give_to(Execution& on);

 private:
  std::vector<std::byte> host_;
  cuda::DeviceMemory device_;
  std::size_t bytes_;
};

/// Runs an operation on host memory on `on.device`, with a workspace of exactly the promised size. Returns
/// when the outputs are in host memory.
void run_on(const AnyOperation& operation, const Execution& on);

}  // namespace flashmla::cases
