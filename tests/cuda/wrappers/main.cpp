// Runs the tests of the functions of src/cuda/ptx/ on a GPU, and writes their outputs or compares them.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <exception>
#include <string>
#include <string_view>

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

/// Calls `use(name, outputs)`, which says whether they are good, for each test; returns how many are not.
template <class Use>
int run_all(Use use) {
  const Capability gpu = capability();
  int run = 0, bad = 0;
  for (const WrapperTest& test : wrapper_tests()) {
    if (!has(gpu.major, gpu.minor, test.needs)) {
      std::printf("%s: not on this GPU\n", test.name.c_str());
      continue;
    }
    Outputs outputs;
    try {
      test.run(outputs);
    } catch (const std::exception& error) {
      outputs.expect(false, error.what());
    }
    print_complaints(test.name, outputs);
    ++run;
    if (!use(test.name, outputs) || !outputs.complaints().empty()) ++bad;
    std::fflush(stdout);
  }
  std::printf("%d tests ran, %d are not as they should be\n", run, bad);
  return bad;
}

int write(const std::string& path) {
  Records records;
  const int bad = run_all([&](const std::string& name, const Outputs& outputs) {
    records[name] = Record::of(outputs.bytes());
    return true;
  });
  write_records(path, records);
  return bad;
}

int compare(const std::string& path) {
  const Records records = read_records(path);
  return run_all([&](const std::string& name, const Outputs& outputs) {
    const auto found = records.find(name);
    const std::string different =
        found == records.end() ? "no outputs in the file" : difference(outputs.bytes(), found->second);
    if (!different.empty()) std::printf("%s: %s\n", name.c_str(), different.c_str());
    return different.empty();
  });
}

}  // namespace
}  // namespace flashmla::wrappers

int main(int count, char** arguments) {
  using namespace flashmla::wrappers;
  const std::string_view mode = count == 3 ? arguments[1] : "";
  try {
    if (mode == "write") return write(arguments[2]) == 0 ? 0 : 1;
    if (mode == "compare") return compare(arguments[2]) == 0 ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  std::fputs(kUsage, stderr);
  return 2;
}
