// No operation allocates memory once its threads exist. An executable of its own: it replaces malloc.
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <string>
#include <variant>
#include <vector>

#include "backends.h"
#include "cases/case.h"
#include "cases/random.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FLASHMLA_COUNTS_ALLOCATIONS 0  // the sanitizers have a malloc of their own
#else
#define FLASHMLA_COUNTS_ALLOCATIONS 1
#endif

namespace {
std::atomic<bool> counting{false};
std::atomic<int> allocations{0};

[[maybe_unused]] void count() {
  if (counting) ++allocations;
}
}  // namespace

#if FLASHMLA_COUNTS_ALLOCATIONS
extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* old, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);

void* malloc(std::size_t size) {
  count();
  return __libc_malloc(size);
}
void* calloc(std::size_t number, std::size_t size) {
  count();
  return __libc_calloc(number, size);
}
void* realloc(void* old, std::size_t size) {
  count();
  return __libc_realloc(old, size);
}
void* memalign(std::size_t alignment, std::size_t size) {
  count();
  return __libc_memalign(alignment, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  count();
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** result, std::size_t alignment, std::size_t size) {
  count();
  *result = __libc_memalign(alignment, size);
  return *result == nullptr ? ENOMEM : 0;
}
}
#endif

namespace flashmla {
namespace {

FLASHMLA_ON_EVERY_HOST_BACKEND(NoAllocation);

/// Calls that allocate, in the second of two runs: in the first one OpenMP makes its threads.
int allocations_of(const cases::Step& step, Execution on) {
  std::vector<std::byte> workspace(step.workspace_bytes(on));
  on.workspace = workspace.data();
  on.workspace_size = workspace.size();
  return std::visit(
      [&](const auto& op) {
        run(op, on);
        allocations = 0;
        counting = true;
        run(op, on);
        counting = false;
        return allocations.load();
      },
      step.operation);
}

TEST(AllocationCounter, SeesNewAndMalloc) {
  if (!FLASHMLA_COUNTS_ALLOCATIONS) GTEST_SKIP() << "a sanitizer has replaced malloc";
  allocations = 0;
  counting = true;
  std::vector<int>* numbers = new std::vector<int>(100);
  counting = false;
  const auto seen = allocations.load();
  delete numbers;
  EXPECT_EQ(seen, 2);
}

TEST_P(NoAllocation, HappensInAnyOperation) {
  if (!FLASHMLA_COUNTS_ALLOCATIONS) GTEST_SKIP() << "a sanitizer has replaced malloc";
  Execution on;
  on.backend = GetParam();
  for (const std::string& operation : cases::operation_names()) {
    for (std::uint64_t seed = 1; seed <= 5; ++seed) {
      cases::Random random(seed);
      const cases::Case what = cases::random_case(operation, random);
      for (const cases::Step& step : cases::prepare(what)) {
        for (const int threads : {1, 2, 3}) {
          on.threads = threads;
          EXPECT_EQ(allocations_of(step, on), 0)
              << step.name() << ", seed " << seed << ", threads " << threads;
        }
      }
    }
  }
}

TEST_P(NoAllocation, HappensWhenIndicesAreChecked) {
  if (!FLASHMLA_COUNTS_ALLOCATIONS) GTEST_SKIP() << "a sanitizer has replaced malloc";
  Execution on;
  on.backend = GetParam();
  on.threads = 1;
  on.check_indices = true;
  for (const cases::Case& what : {cases::make_dense_decode({}, 1), cases::make_sparse_prefill({}, 1)}) {
    for (const cases::Step& step : cases::prepare(what))
      EXPECT_EQ(allocations_of(step, on), 0) << step.name();
  }
}

}  // namespace
}  // namespace flashmla
