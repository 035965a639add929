// Fibers by Boost.Context, their stacks, and what AddressSanitizer must be told of both.
#include "cuda/emulator/fiber.h"

#include <sys/mman.h>

#include <boost/context/preallocated.hpp>
#include <boost/context/stack_context.hpp>
#include <cstdlib>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace flashmla::emulator {
namespace {

constexpr std::size_t kPageBytes = 4096;

struct FreeStacks {
  std::mutex mutex;
  std::vector<std::byte*> stacks;
  std::size_t never_used = 0;
};

FreeStacks& free_stacks() {
  static FreeStacks free;
  return free;
}

}  // namespace

StackPool::StackPool() {
  void* memory =
      mmap(nullptr, kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<std::byte*>(memory);
}

StackPool& StackPool::instance() {
  static StackPool pool;
  return pool;
}

std::byte* StackPool::take() {
  FreeStacks& free = free_stacks();
  const std::lock_guard lock(free.mutex);
  if (!free.stacks.empty()) {
    std::byte* stack = free.stacks.back();
    free.stacks.pop_back();
    return stack;
  }
  if (free.never_used == kStacks) throw std::runtime_error("emulator: more threads at a time than stacks");
  std::byte* stack = base_ + free.never_used * kStackBytes;
  if (mprotect(stack + kPageBytes, kStackBytes - kPageBytes, PROT_READ | PROT_WRITE) != 0) {
    throw std::bad_alloc();
  }
  ++free.never_used;
  return stack;
}

void StackPool::give_back(std::byte* stack) {
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(stack + kPageBytes, kStackBytes - kPageBytes);
#endif
  FreeStacks& free = free_stacks();
  const std::lock_guard lock(free.mutex);
  free.stacks.push_back(stack);
}

// What Boost.Context calls an allocator; the pool is told by Fiber, when nothing runs on the stack any more.
struct Fiber::Stack {
  static void deallocate(boost::context::stack_context&) {}
};

Fiber::~Fiber() {
  // The destructor of what stands for a fiber would unwind its stack.
  if (abandoned_) new (abandoned_storage_) boost::context::fiber(std::move(inside_));
  if (stack_ != nullptr) StackPool::instance().give_back(stack_);
}

void Fiber::start(void (*entry)(void*), void* argument) {
  if (stack_ == nullptr) stack_ = StackPool::instance().take();
  ended_ = false;
  boost::context::stack_context context;
  context.size = StackPool::kStackBytes - kPageBytes;
  context.sp = stack_ + StackPool::kStackBytes;
  inside_ = boost::context::fiber(
      std::allocator_arg, boost::context::preallocated(context.sp, context.size, context), Stack{},
      [this, entry, argument](boost::context::fiber&& outside) {
        outside_ = std::move(outside);
#ifdef __SANITIZE_ADDRESS__
        __sanitizer_finish_switch_fiber(nullptr, &outside_stack_, &outside_stack_bytes_);
#endif
        entry(argument);
        ended_ = true;
#ifdef __SANITIZE_ADDRESS__
        __sanitizer_start_switch_fiber(nullptr, outside_stack_, outside_stack_bytes_);
#endif
        return std::move(outside_);
      });
}

void Fiber::resume() {
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack_ + kPageBytes, StackPool::kStackBytes - kPageBytes);
#endif
  inside_ = std::move(inside_).resume();
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, outside_stack_, outside_stack_bytes_);
#endif
  outside_ = std::move(outside_).resume();
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, &outside_stack_, &outside_stack_bytes_);
#endif
}

void Fiber::abandon() {
  abandoned_ = true;
  ended_ = true;
  suspend();
  std::abort();
}

}  // namespace flashmla::emulator
