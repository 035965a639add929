// Runs the tests of the functions of src/cuda/ptx/ on a GPU, and writes their outputs or compares them.
//
// Tests run in a child process. After an error it ends, and a new one goes on with the next test: an error of
// a kernel leaves a process without its GPU.
#include <cuda_runtime_api.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/error.h"
#include "records.h"
#include "wrapper_test.h"

namespace flashmla::wrappers {
namespace {

constexpr char kUsage[] =
    "wrapper_outputs write FILE    runs all tests that this GPU has, and writes their outputs\n"
    "wrapper_outputs compare FILE  compares them with those of another GPU or the emulator\n";

struct Capability {
  int major = 0;
  int minor = 0;
};

Capability capability() {
  Capability found;
  cuda::check(cudaDeviceGetAttribute(&found.major, cudaDevAttrComputeCapabilityMajor, 0), "GPU 0");
  cuda::check(cudaDeviceGetAttribute(&found.minor, cudaDevAttrComputeCapabilityMinor, 0), "GPU 0");
  return found;
}

void print_complaints(const std::string& name, const Outputs& outputs) {
  constexpr std::size_t kPrinted = 5;
  const auto& complaints = outputs.complaints();
  for (std::size_t i = 0; i < complaints.size() && i < kPrinted; ++i) {
    std::printf("%s: %s\n", name.c_str(), complaints[i].c_str());
  }
  if (complaints.size() > kPrinted) std::printf("%s: %zu more\n", name.c_str(), complaints.size() - kPrinted);
}

/// What the child says about one test; the outputs follow.
struct Answer {
  enum Kind : std::uint32_t { kGood, kBad, kNotOnThisGpu } kind;
  std::uint64_t bytes;
};

/// Whether all bytes came or went.
template <class Transfer, class Byte>
bool transfer(Transfer once, int pipe, Byte* data, std::size_t bytes) {
  while (bytes > 0) {
    const ssize_t done = once(pipe, data, bytes);
    if (done <= 0) return false;
    data += done;
    bytes -= static_cast<std::size_t>(done);
  }
  return true;
}

void send(int pipe, Answer::Kind kind, std::span<const std::byte> outputs) {
  const Answer answer{.kind = kind, .bytes = outputs.size()};
  if (!transfer(::write, pipe, reinterpret_cast<const std::byte*>(&answer), sizeof(answer)) ||
      !transfer(::write, pipe, outputs.data(), outputs.size())) {
    throw std::runtime_error("the child process can't send outputs");
  }
}

/// The child: runs tests from number `first` on, up to the first error.
void run_from(const std::vector<WrapperTest>& tests, std::size_t first, int pipe) {
  const Capability gpu = capability();
  for (std::size_t i = first; i < tests.size(); ++i) {
    const WrapperTest& test = tests[i];
    if (!has(gpu.major, gpu.minor, test.needs)) {
      send(pipe, Answer::kNotOnThisGpu, {});
      continue;
    }
    Outputs outputs;
    try {
      test.run(outputs);
    } catch (const std::exception& error) {
      std::printf("%s: %s\n", test.name.c_str(), error.what());
      return;
    }
    print_complaints(test.name, outputs);
    send(pipe, outputs.complaints().empty() ? Answer::kGood : Answer::kBad, outputs.bytes());
  }
}

/// A child process that runs tests.
class Child {
 public:
  Child(const std::vector<WrapperTest>& tests, std::size_t first) {
    int ends[2];
    std::fflush(stdout);
    if (pipe(ends) != 0) throw std::runtime_error("can't make a pipe");
    process_ = fork();
    if (process_ < 0) throw std::runtime_error("can't start a child process");
    if (process_ == 0) {
      close(ends[0]);
      try {
        run_from(tests, first, ends[1]);
      } catch (const std::exception& error) {
        std::printf("%s\n", error.what());
      }
      std::fflush(stdout);
      _exit(0);
    }
    close(ends[1]);
    pipe_ = ends[0];
  }
  ~Child() {
    close(pipe_);
    waitpid(process_, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  /// Nothing if the child ended.
  std::optional<Answer> answer(std::vector<std::byte>& outputs) const {
    Answer answer;
    if (!transfer(::read, pipe_, reinterpret_cast<std::byte*>(&answer), sizeof(answer))) return {};
    outputs.resize(answer.bytes);
    if (!transfer(::read, pipe_, outputs.data(), outputs.size())) return {};
    return answer;
  }

 private:
  pid_t process_ = 0;
  int pipe_ = -1;
};

/// Calls `use(name, outputs)`, which says whether they are good, for each test that ran to its end; returns
/// how many tests are not as they should be.
template <class Use>
int run_all(Use use) {
  const std::vector<WrapperTest> tests = wrapper_tests();
  std::optional<Child> child;
  int run = 0, bad = 0;
  std::vector<std::byte> outputs;
  for (std::size_t i = 0; i < tests.size(); ++i) {
    if (!child) child.emplace(tests, i);
    const std::optional<Answer> answer = child->answer(outputs);
    if (answer && answer->kind == Answer::kNotOnThisGpu) {
      std::printf("%s: not on this GPU\n", tests[i].name.c_str());
      continue;
    }
    ++run;
    if (!answer) {
      std::printf("%s: did not run to its end\n", tests[i].name.c_str());
      child.reset();
      ++bad;
    } else if (!use(tests[i].name, outputs) || answer->kind == Answer::kBad) {
      ++bad;
    }
  }
  std::printf("%d tests ran, %d are not as they should be\n", run, bad);
  return bad;
}

int write(const std::string& path) {
  Records records;
  const int bad = run_all([&](const std::string& name, std::span<const std::byte> outputs) {
    records[name] = Record::of(outputs);
    return true;
  });
  write_records(path, records);
  return bad;
}

int compare(const std::string& path) {
  const Records records = read_records(path);
  return run_all([&](const std::string& name, std::span<const std::byte> outputs) {
    const auto found = records.find(name);
    const std::string different =
        found == records.end() ? "no outputs in the file" : difference(outputs, found->second);
    if (!different.empty()) std::printf("%s: %s\n", name.c_str(), different.c_str());
    return different.empty();
  });
}

}  // namespace
}  // namespace flashmla::wrappers

int main(int count, char** arguments) {
  const std::string_view mode = count == 3 ? arguments[1] : "";
  try {
    if (mode == "write") return flashmla::wrappers::write(arguments[2]) == 0 ? 0 : 1;
    if (mode == "compare") return flashmla::wrappers::compare(arguments[2]) == 0 ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  std::fputs(flashmla::wrappers::kUsage, stderr);
  return 2;
}
