// The words for what went wrong, and the way out of a kernel.
#pragma once

#include <string>

#include "cuda/emulator/origin.h"

namespace flashmla::emulator {

class Cluster;
struct Thread;

/// "file.cu:17".
std::string describe(const Location& place);

/// "thread (3,0,0) of block (1,0,0)".
std::string describe(const Thread& thread);

/// Throws a Failure that names kernel, block, thread and place, and says `what`. It ends the launch.
[[noreturn]] void fail(const Thread& thread, const Location& place, const std::string& what);

/// The same for a place that is described already.
[[noreturn]] void fail(const Thread& thread, const std::string& place, const std::string& what);

/// The text of a failure when no thread can run: what each waits for, and where.
std::string describe_deadlock(Cluster& cluster);

/// Whether a thread may end now: nobody waits for it in a collective, and it has waited for what it started.
void check_exit(Thread& thread);

}  // namespace flashmla::emulator
