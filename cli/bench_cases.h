// The cases that `bench` measures: from the flags of the command line, or from a file.
#pragma once

#include <string>
#include <vector>

#include "cli/shape.h"

namespace flashmla::cli {

struct BenchCase {
  std::string operation;
  Shape shape;
  int threads = 0;                 ///< 0: as many as the command line says
  std::string section;             ///< the table in which it stands; empty for flags
  std::string name;                ///< what all cases of its entry are called; empty for flags
  std::vector<std::string> swept;  ///< entries of the shape that were given as a list: `heads`
  std::string where;               ///< `cpu.json: case 3 (h=16)`, for messages; empty for flags
};

/// One case for each combination of the values that the flags list.
std::vector<BenchCase> cases_of(const std::string& operation, const ShapeFlags& flags);

/// The cases of a JSON file: a list of entries such as
/// `{"operation": "dense_decode", "heads": [16, 128], "section": "goals"}`. Throws Error, naming the file and
/// the entry.
std::vector<BenchCase> read_bench_cases(const std::string& path);

/// The values of the swept entries of the shape: `heads=16`.
std::string swept_values(const BenchCase& what);

}  // namespace flashmla::cli
