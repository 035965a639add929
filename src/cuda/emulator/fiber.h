// Fibers: each CUDA thread runs on a stack of its own and is switched to and from in about 13 ns.
#pragma once

#include <boost/context/fiber.hpp>
#include <cstddef>
#include <cstdint>

namespace flashmla::emulator {

/// Every stack lies in one range of addresses, so that an access to one is recognized by one comparison.
class StackPool {
 public:
  static constexpr std::size_t kStackBytes = 128 * 1024;

  static StackPool& instance();

  /// The lowest address of a stack of `kStackBytes`, the first page of which faults.
  std::byte* take();
  void give_back(std::byte* stack);

  bool contains(const void* address) const {
    return reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(base_) < kBytes;
  }

 private:
  // 16 blocks of 1024 threads on two host threads.
  static constexpr std::size_t kStacks = 32768;
  static constexpr std::size_t kBytes = kStacks * kStackBytes;

  StackPool();

  std::byte* base_;
};

/// A function that can stop in the middle and be resumed, on the host thread that made it.
class Fiber {
 public:
  Fiber() = default;
  Fiber(Fiber&&) = delete;
  Fiber& operator=(Fiber&&) = delete;
  /// A fiber that was started must have ended, or been abandoned.
  ~Fiber();

  /// Makes ready to run `entry(argument)`, which must not throw.
  void start(void (*entry)(void*), void* argument);

  /// Runs the function until it suspends or returns. Called from outside.
  void resume();

  /// Goes back to where `resume` was called. Called from inside.
  void suspend();

  /// Goes back for the last time, without unwinding the stack. Called from inside.
  [[noreturn]] void abandon();

  bool ended() const { return ended_; }

 private:
  struct Stack;

  boost::context::fiber inside_;   // the function, while it is suspended
  boost::context::fiber outside_;  // who resumed it, while it runs
  alignas(boost::context::fiber) std::byte abandoned_storage_[sizeof(boost::context::fiber)];
  std::byte* stack_ = nullptr;
  bool ended_ = true;
  bool abandoned_ = false;
#ifdef __SANITIZE_ADDRESS__
  const void* outside_stack_ = nullptr;
  std::size_t outside_stack_bytes_ = 0;
#endif
};

}  // namespace flashmla::emulator
