// flashmla run: runs the operations of case files and writes what they computed.
#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "cases/case.h"
#include "cases/output_file.h"
#include "cases/safetensors.h"
#include "cli/backends.h"
#include "cli/commands.h"
#include "cli/escape.h"
#include "cli/table.h"
#include "flashmla/error.h"

namespace flashmla::cli {
namespace {

namespace fs = std::filesystem;

/// The outputs of several cases go to a folder, under the names of their files.
void make_folder(const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) {
    throw Error(ErrorKind::kValue, fmt::format("{}: cannot make this folder: {}", folder, error.message()));
  }
}

void write_outputs(const std::string& path, const cases::Case& what,
                   const std::vector<cases::Result>& results) {
  std::map<std::string, TensorView> tensors;
  for (const cases::Result& result : results) tensors[result.output] = result.got.view();
  cases::write_safetensors(path, {{"op", what.operation}}, tensors);
}

/// Where the outputs of each case go; nothing is written if the list is empty. Finds out before anything is
/// computed that they cannot be written.
std::vector<std::string> output_paths(const RunOptions& options) {
  if (options.out.empty()) return {};
  std::error_code ignored;
  if (options.cases.size() == 1 && !fs::is_directory(options.out, ignored)) {
    cases::require_writable(options.out);
    return {options.out};
  }
  std::map<std::string, std::string> case_of;
  std::vector<std::string> paths;
  for (const std::string& path : options.cases) {
    paths.push_back((fs::path(options.out) / fs::path(path).filename()).string());
    const auto [other, is_new] = case_of.emplace(paths.back(), path);
    if (!is_new) {
      throw Error(ErrorKind::kValue,
                  fmt::format("the outputs of {} and {} would both be {}: cases that are run into one folder "
                              "need different file names",
                              other->second, path, paths.back()));
    }
  }
  make_folder(options.out);
  for (const std::string& path : paths) cases::require_writable(path);
  return paths;
}

void run_one(const std::string& path, const std::string& out, const Execution& on, Table& table) {
  const cases::Case what = cases::read_case(path);
  const std::string backend = backend_for(what, on);
  const std::vector<cases::Result> results = cases::run_case(what, on);
  if (!out.empty()) write_outputs(out, what, results);
  for (const cases::Result& result : results) {
    table.add({file_name(path), backend, result.operation, result.output,
               std::string(name_of(result.got.type())), cases::to_string(result.got.shape())});
  }
}

}  // namespace

int run(const RunOptions& options) {
  const Execution on = execution(options.on);
  const std::vector<std::string> out = output_paths(options);
  Table table({{"case"}, {"backend"}, {"operation"}, {"output"}, {"type"}, {"shape"}});
  try {
    for (std::size_t i = 0; i < options.cases.size(); ++i) {
      run_one(options.cases[i], out.empty() ? "" : out[i], on, table);
    }
  } catch (...) {
    if (!table.empty()) table.print();
    throw;
  }
  table.print();
  return kSuccess;
}

}  // namespace flashmla::cli
