// A process made by fork computes what its parent computes.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <vector>

#include "backends.h"
#include "dense_problem.h"

namespace flashmla {
namespace {

FLASHMLA_ON_EVERY_HOST_BACKEND(Fork);

/// Ends the process: 0 if `body` returns true within a minute.
template <class Body>
[[noreturn]] void exit_with(Body&& body) {
  alarm(60);
  _exit(body() ? 0 : 1);
}

TEST_P(Fork, AfterUseOnSeveralThreadsTheChildRunsOnSeveralThreadsToo) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "ThreadSanitizer does not follow a fork of several threads";
#endif
  DenseProblem problem({.seqlens = {1500, 700}, .h_q = 4});
  run(problem.op(), 2);
  const pid_t child = fork();
  ASSERT_NE(child, -1);
  if (child == 0) {
    exit_with([&] {
      const std::vector<std::byte> expected = bytes_of(problem.out);
      for (int again = 0; again < 3; ++again) {
        problem.out.fill_nan();
        run(problem.op(), 2);
        if (bytes_of(problem.out) != expected) return false;
      }
      return true;
    });
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status " << status;
  run(problem.op(), 2);
  problem.expect_all_seen();
}

}  // namespace
}  // namespace flashmla
