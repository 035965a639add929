// flashmla make: writes a random case, with the outputs that the reference computes.
#include <fmt/format.h>

#include <utility>

#include "cases/case.h"
#include "cases/output_file.h"
#include "cli/backends.h"
#include "cli/commands.h"
#include "flashmla/error.h"

namespace flashmla::cli {
namespace {

/// Adds the outputs under their names; a tensor that the operation updates is an input of that name.
void add_expected(cases::Case& what) {
  Execution on;
  on.backend = kReference;
  for (cases::Result& result : cases::run_case(what, on)) {
    const bool updated = what.tensors.contains(result.output);
    what.tensors[updated ? "expected." + result.output : result.output] = std::move(result.got);
  }
}

}  // namespace

int make(const MakeOptions& options) {
  const std::vector<Shape> shapes = sweep(options.operation, options.shape, Purpose::kMake);
  if (shapes.size() != 1) {
    throw Error(ErrorKind::kValue, "make takes one number a flag: a list of them is a sweep, for bench");
  }
  cases::require_writable(options.out);
  cases::Case what = random_case(options.operation, shapes.front(), Purpose::kMake, options.seed);
  if (!options.no_expected) add_expected(what);
  cases::write_case(options.out, what);
  fmt::print("{}: {} {}\n", options.out, options.operation, to_string(options.operation, shapes.front()));
  return kSuccess;
}

}  // namespace flashmla::cli
