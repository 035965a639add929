// Runs the command line tool as a process.
#include "command.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>

namespace flashmla::test {

namespace fs = std::filesystem;

namespace {

/// A folder of this process, removed when it ends.
class ProcessFolder {
 public:
  ProcessFolder() { fs::create_directories(path_); }
  ~ProcessFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  ProcessFolder(const ProcessFolder&) = delete;
  ProcessFolder& operator=(const ProcessFolder&) = delete;

  const fs::path& path() const { return path_; }

 private:
  fs::path path_ = fs::path(testing::TempDir()) / ("flashmla_cli_" + std::to_string(getpid()));
};

const fs::path& process_folder() {
  static const ProcessFolder folder;
  return folder.path();
}

}  // namespace

Outcome run_tool(const std::vector<std::string>& arguments) {
  const std::string out = process_folder() / "stdout";
  const std::string err = process_folder() / "stderr";
  std::vector<std::string> words = {FLASHMLA_CLI};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  constexpr int kFlags = O_WRONLY | O_CREAT | O_TRUNC;
  posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, out.c_str(), kFlags, 0600);
  posix_spawn_file_actions_addopen(&files, STDERR_FILENO, err.c_str(), kFlags, 0600);
  pid_t child = 0;
  const int spawned = posix_spawn(&child, FLASHMLA_CLI, &files, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  if (spawned != 0) throw std::runtime_error("cannot start " FLASHMLA_CLI);

  int status = 0;
  waitpid(child, &status, 0);
  return {.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status),
          .out = read_bytes(out),
          .err = read_bytes(err)};
}

fs::path fresh_folder() {
  const testing::TestInfo& test = *testing::UnitTest::GetInstance()->current_test_info();
  std::string name = std::string(test.test_suite_name()) + "." + test.name();
  std::replace(name.begin(), name.end(), '/', '_');
  const fs::path folder = process_folder() / name;
  fs::remove_all(folder);
  fs::create_directories(folder);
  return folder;
}

std::string golden(const std::string& name) {
  return std::string(FLASHMLA_GOLDEN_DIR) + "/" + name + ".safetensors";
}

std::string read_bytes(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_bytes(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

const std::vector<std::string>& operations() {
  static const std::vector<std::string> names = {
      "dense_decode", "sparse_decode", "sparse_prefill", "mha",          "mha_forward",  "mha_backward",
      "quantize_kv",  "dequantize_kv", "append_kv",      "merge_states", "make_schedule"};
  return names;
}

}  // namespace flashmla::test
