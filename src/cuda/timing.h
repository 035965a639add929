// Streams, graphs and times of a GPU for tools and tests. Includes no CUDA header.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

namespace flashmla::cuda {

/// A stream of one GPU, which is the current one while the stream exists.
class Stream {
 public:
  explicit Stream(int ordinal);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  /// A `cudaStream_t`.
  void* handle() const { return handle_; }

  /// Waits for everything on it. Throws Error for a kernel that failed.
  void synchronize() const;

 private:
  void* handle_ = nullptr;
  int device_before_ = 0;
};

/// What `work` enqueues on the stream, as a graph that can be launched again and again.
class Graph {
 public:
  /// Throws Error for work that cannot be captured: allocations, or waiting for the GPU.
  Graph(const Stream& stream, const std::function<void()>& work);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void launch() const;

 private:
  const Stream& stream_;
  void* executable_ = nullptr;
};

/// Seconds from the end of one call of `work` to the end of the next on the GPU, for `repetitions` calls
/// behind each other. The first one also waits for its own launch.
std::vector<double> time_each(const Stream& stream, const std::function<void()>& work, int repetitions);

/// Enqueues a copy within the memory of the GPU.
void copy_on(const Stream& stream, void* to, const void* from, std::size_t bytes);

}  // namespace flashmla::cuda
