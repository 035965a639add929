// The subcommands: each is a function of its options that returns the exit code, 0 for success and 1 if a
// comparison failed. What the user did wrong is thrown as Error and becomes exit code 2 in main.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/shape.h"

namespace flashmla::cli {

inline constexpr int kSuccess = 0;
inline constexpr int kComparisonFailed = 1;
inline constexpr int kWrongUse = 2;

/// What `run`, `check` and `bench` have in common.
struct ExecutionOptions {
  std::string backend;  ///< empty: the first kernel that supports the case
  int threads = 0;      ///< 0: OpenMP's default
  std::string device;   ///< `cpu`, `cuda` or `cuda:1`; empty: where the backend runs
};

struct InfoOptions {
  bool json = false;
};

struct RunOptions {
  std::vector<std::string> cases;
  std::string out;  ///< empty: nothing is written
  ExecutionOptions on;
};

struct CheckOptions {
  std::vector<std::string> cases;
  ExecutionOptions on;  ///< backend may be `all`
};

struct MakeOptions {
  std::string operation;
  ShapeFlags shape;
  std::string out;
  std::uint64_t seed = 0;
  bool no_expected = false;
};

struct BenchOptions {
  std::string operation;
  std::string cases;  ///< a file of cases instead of an operation
  ShapeFlags shape;
  std::string json;  ///< empty: no file
  std::uint64_t seed = 0;
  double seconds = 1;  ///< measuring time of one case
  ExecutionOptions on;
};

int info(const InfoOptions& options);
int run(const RunOptions& options);
int check(const CheckOptions& options);
int make(const MakeOptions& options);
int bench(const BenchOptions& options);

}  // namespace flashmla::cli
