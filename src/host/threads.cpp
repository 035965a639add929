// Notices a fork, on systems that have it.
#include "host/threads.h"

#if __has_include(<pthread.h>)
#include <pthread.h>
#endif

namespace flashmla {
namespace {

thread_local bool lost_its_team = false;

#if __has_include(<pthread.h>)
[[maybe_unused]] const int kRegistered = pthread_atfork(nullptr, nullptr, [] { lost_its_team = true; });
#endif

}  // namespace

bool has_lost_its_team() { return lost_its_team; }

}  // namespace flashmla
