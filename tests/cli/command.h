// Runs the command line tool as a process.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace flashmla::test {

struct Outcome {
  int code = 0;  ///< exit code; negative: ended by this signal
  std::string out;
  std::string err;
};

Outcome run_tool(const std::vector<std::string>& arguments);

/// A folder of the running test, empty at first.
std::filesystem::path fresh_folder();

/// The path of a golden case: `dense_decode_split`.
std::string golden(const std::string& name);

std::string read_bytes(const std::filesystem::path& path);
void write_bytes(const std::filesystem::path& path, const std::string& bytes);

/// Every operation that `make` knows.
const std::vector<std::string>& operations();

}  // namespace flashmla::test
