// Puts failures into words.
#include "cuda/emulator/failure.h"

#include <map>
#include <sstream>
#include <tuple>
#include <utility>

#include "cuda/emulator/launch.h"
#include "cuda/emulator/scheduler.h"

namespace flashmla::emulator {
namespace {

std::string text(const Index3& index) {
  std::ostringstream out;
  out << '(' << index.x << ',' << index.y << ',' << index.z << ')';
  return out.str();
}

/// Threads that wait for the same thing in one block.
struct Waiting {
  std::uint32_t first = 0;
  std::uint32_t last = 0;
  std::uint32_t count = 0;
};

using WaitKey = std::tuple<std::uint32_t, std::string, std::string>;  // block, place, what

std::map<WaitKey, Waiting> waiting_threads(Cluster& cluster) {
  std::map<WaitKey, Waiting> groups;
  for (std::uint32_t rank = 0; rank < cluster.size(); ++rank) {
    Block& block = cluster.block(rank);
    for (std::uint32_t i = 0; i < block.size; ++i) {
      const Thread& thread = block.threads[i];
      if (thread.state == Thread::State::kEnded) continue;
      Waiting& group = groups[{rank, describe(thread.waits_at), thread.waits_for}];
      if (group.count++ == 0) group.first = i;
      group.last = i;
    }
  }
  return groups;
}

}  // namespace

std::string describe(const Location& place) {
  return std::string(place.file_name()) + ":" + std::to_string(place.line());
}

std::string describe(const Thread& thread) {
  return "thread " + text(thread.position()) + " of block " + text(thread.block->index);
}

void fail(const Thread& thread, const std::string& place, const std::string& what) {
  throw Failure("kernel " + thread.cluster->launch().name + ", block " + text(thread.block->index) +
                ", thread " + text(thread.position()) + ", " + place + ": " + what);
}

void fail(const Thread& thread, const Location& place, const std::string& what) {
  fail(thread, describe(place), what);
}

std::string describe_deadlock(Cluster& cluster) {
  std::ostringstream out;
  out << "kernel " << cluster.launch().name << ": no thread can go on";
  for (const auto& [key, group] : waiting_threads(cluster)) {
    const auto& [rank, place, what] = key;
    Block& block = cluster.block(rank);
    out << "\n  block " << text(block.index) << ", " << group.count
        << (group.count == 1 ? " thread " : " threads from ") << text(block.threads[group.first].position());
    if (group.count > 1) out << " to " << text(block.threads[group.last].position());
    out << ", " << place << ": waiting for " << what;
  }
  return out.str();
}

void check_exit(Thread& thread) {
  Cluster& cluster = *thread.cluster;
  check_exit_of_warp(thread);
  thread.block->barriers.check_exit(thread);
  thread.stores.check_exit(thread);
  thread.products.check_exit(thread);
  cluster.barrier().on_exit(thread);
}

}  // namespace flashmla::emulator
