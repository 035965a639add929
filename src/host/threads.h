// OpenMP threads for kernels on the CPU, and work handed out in order.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>
#include <thread>

#include "flashmla/execution.h"

// ThreadSanitizer does not see the barriers of the OpenMP runtime: tell it what they order.
#ifdef __SANITIZE_THREAD__
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
#endif

namespace flashmla {

inline int threads_of(const Execution& on) { return on.threads > 0 ? on.threads : omp_get_max_threads(); }

/// Whether the calling thread is what a fork has left of a process. OpenMP would wait for the threads that it
/// keeps for this one, and they are not here.
bool has_lost_its_team();

/// Calls `body(thread)` on each of `threads` threads of OpenMP.
template <class Body>
void call_on_team(int threads, Body&& body) {
#ifdef __SANITIZE_THREAD__
  char fork = 0;
  char join = 0;
  __tsan_release(&fork);
#pragma omp parallel num_threads(threads)
  {
    __tsan_acquire(&fork);
    body(omp_get_thread_num());
    __tsan_release(&join);
  }
  __tsan_acquire(&join);
#else
#pragma omp parallel num_threads(threads)
  body(omp_get_thread_num());
#endif
}

/// Calls `body(thread)` on each of `threads` threads; what was written before is visible in the bodies,
/// and what they wrote is visible after. OpenMP may start fewer threads than asked for. It allocates memory
/// when the number of threads changes, and each time for a single one: that one is the caller.
template <class Body>
void parallel(int threads, Body&& body) {
  if (threads == 1) {
    body(0);
  } else if (has_lost_its_team()) {
    std::thread([&] { call_on_team(threads, body); }).join();
  } else {
    call_on_team(threads, body);
  }
}

/// Hands out the numbers `[0, count)` in order: whoever holds a number knows that all smaller ones have
/// been taken.
class WorkQueue {
 public:
  explicit WorkQueue(std::int64_t count) : count_(count) {}

  /// The next number, or -1 when none is left.
  std::int64_t take() {
    const std::int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
    return item < count_ ? item : -1;
  }

 private:
  std::atomic<std::int64_t> next_{0};
  std::int64_t count_;
};

/// Calls `body(thread, item)` for every item in `[0, count)`.
template <class Body>
void parallel_for(int threads, std::int64_t count, Body&& body) {
  WorkQueue queue(count);
  parallel(count > 1 ? threads : 1, [&](int thread) {
    for (std::int64_t item = queue.take(); item >= 0; item = queue.take()) body(thread, item);
  });
}

}  // namespace flashmla
