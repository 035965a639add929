// flashmla run: runs the operations of case files and writes what they computed.
#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "cases/case.h"
#include "cases/safetensors.h"
#include "cli/backends.h"
#include "cli/commands.h"
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

}  // namespace

int run(const RunOptions& options) {
  const Execution on = execution(options.on);
  std::error_code ignored;
  const bool to_folder = options.cases.size() > 1 || fs::is_directory(options.out, ignored);
  if (to_folder && !options.out.empty()) make_folder(options.out);

  Table table({{"case"}, {"backend"}, {"operation"}, {"output"}, {"type"}, {"shape"}});
  for (const std::string& path : options.cases) {
    const cases::Case what = cases::read_case(path);
    const std::string backend = backend_for(what, on);
    const std::vector<cases::Result> results = results_of(what, on);
    const std::string name = fs::path(path).filename().string();
    if (!options.out.empty()) {
      write_outputs(to_folder ? (fs::path(options.out) / name).string() : options.out, what, results);
    }
    for (const cases::Result& result : results) {
      table.add({name, backend, result.operation, result.output, std::string(name_of(result.got.type())),
                 cases::to_string(result.got.shape())});
    }
  }
  table.print();
  return kSuccess;
}

}  // namespace flashmla::cli
