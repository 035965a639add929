// Where plain loads and stores of kernels come in: kernel files are compiled with -fsanitize=thread and
// linked without it, so the calls that the compiler inserts end here.
#include <cstddef>
#include <exception>
#include <optional>
#include <string>

#include "cuda/emulator/failure.h"
#include "cuda/emulator/scheduler.h"

namespace flashmla::emulator {
namespace {

std::optional<std::string> complaint_of_shared(Cluster& cluster, const Thread& thread, const Block& block,
                                               const void* address, std::size_t bytes, bool writes,
                                               const void* return_address) {
  const auto offset = static_cast<std::size_t>(static_cast<const std::byte*>(address) - block.shared);
  const std::size_t limit = cluster.launch().config.shared_bytes;
  if (offset + bytes > limit) {
    return std::to_string(bytes) + " bytes at " + std::to_string(offset) +
           " of shared memory, of which there are " + std::to_string(limit);
  }
  if (block.ended == block.size) return "shared memory of a block whose threads have all ended";
  RaceChecks& races = *cluster.races();
  return races.access(thread, block, address, bytes, writes ? Access::kWrite : Access::kRead,
                      races.sites().site_of(return_address));
}

void check(Cluster& cluster, Thread& thread, const void* address, std::size_t bytes, bool writes,
           const void* return_address) {
  if (StackPool::instance().contains(address)) {
    if (thread.products.owns_registers()) {
      thread.products.check_access(thread, address, bytes, writes, return_address);
    }
    return;
  }
  const Block* block = cluster.block_at(address);
  const std::optional<std::string> complaint =
      block == nullptr ? cluster.launch().memory.complaint(address, bytes)
                       : complaint_of_shared(cluster, thread, *block, address, bytes, writes, return_address);
  if (complaint) {
    fail(thread, describe(source_line_of(return_address)),
         (block == nullptr ? writes ? "writes " : "reads " : "") + *complaint);
  }
}

// The compiler believes that hooks do not throw, so a failure must not leave one: the fiber stays here.
void on_access(const void* address, std::size_t bytes, bool writes, const void* return_address) {
  Cluster* const cluster = current_cluster();
  if (cluster == nullptr || cluster->running() == nullptr || cluster->races() == nullptr) return;
  std::exception_ptr failure;
  try {
    check(*cluster, *cluster->running(), address, bytes, writes, return_address);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) cluster->abandon_running(std::move(failure));
}

}  // namespace
}  // namespace flashmla::emulator

// The names are the compiler's. NOLINTBEGIN(readability-identifier-naming)
#define FLASHMLA_HOOKS(bytes)                                                          \
  void __tsan_read##bytes(void* address) {                                             \
    flashmla::emulator::on_access(address, bytes, false, __builtin_return_address(0)); \
  }                                                                                    \
  void __tsan_write##bytes(void* address) {                                            \
    flashmla::emulator::on_access(address, bytes, true, __builtin_return_address(0));  \
  }                                                                                    \
  void __tsan_unaligned_read##bytes(void* address) {                                   \
    flashmla::emulator::on_access(address, bytes, false, __builtin_return_address(0)); \
  }                                                                                    \
  void __tsan_unaligned_write##bytes(void* address) {                                  \
    flashmla::emulator::on_access(address, bytes, true, __builtin_return_address(0));  \
  }

extern "C" {

FLASHMLA_HOOKS(1)
FLASHMLA_HOOKS(2)
FLASHMLA_HOOKS(4)
FLASHMLA_HOOKS(8)
FLASHMLA_HOOKS(16)

void __tsan_read_range(void* address, std::size_t bytes) {
  flashmla::emulator::on_access(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, std::size_t bytes) {
  flashmla::emulator::on_access(address, bytes, true, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

}  // extern "C"
// NOLINTEND(readability-identifier-naming)
