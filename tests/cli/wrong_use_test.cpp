// What the command line says when it is used wrongly: one sentence on standard error, exit code 2.
#include <gtest/gtest.h>

#include <algorithm>

#include "cases/case.h"
#include "command.h"

namespace flashmla::test {
namespace {

void expect_refused(const std::vector<std::string>& arguments, const std::string& text) {
  const Outcome outcome = run_tool(arguments);
  EXPECT_EQ(outcome.code, 2) << outcome.out << outcome.err;
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  EXPECT_TRUE(outcome.err.starts_with("flashmla: ")) << outcome.err;
  EXPECT_NE(outcome.err.find(text), std::string::npos) << outcome.err;
}

TEST(WrongUse, NoCommandOrAnUnknownOne) {
  expect_refused({}, "info, run, check, make or bench");
  expect_refused({"dance"}, "got \"dance\"");
}

TEST(WrongUse, UnknownFlag) {
  for (const char* command : {"info", "run", "check", "make", "bench"}) {
    expect_refused({command, "x", "--bogus", "-o", "y"}, command == std::string("info") ? "x" : "--bogus");
  }
}

TEST(WrongUse, MissingArgument) {
  expect_refused({"run"}, "CASE is required");
  expect_refused({"check"}, "CASE is required");
  expect_refused({"make", "dense_decode"}, "--out is required");
  expect_refused({"bench"}, "OP is required, or --cases");
}

TEST(WrongUse, UnknownOperation) {
  expect_refused({"make", "dense", "-o", "x"}, "OP must be one of dense_decode");
  expect_refused({"bench", "dense"}, "OP must be one of dense_decode");
}

TEST(WrongUse, UnknownBackend) {
  const std::string text = "--backend must be one of";
  expect_refused({"run", golden("quantize_v32"), "--backend", "gpu"}, text);
  expect_refused({"run", golden("quantize_v32"), "--backend", "all"}, text);
  expect_refused({"check", golden("quantize_v32"), "--backend", "gpu"}, text);
  expect_refused({"bench", "dense_decode", "--backend", "gpu"}, text);
}

TEST(WrongUse, NumbersOutsideTheirRange) {
  expect_refused({"run", golden("quantize_v32"), "--threads", "-1"}, "--threads must be 0 to");
  expect_refused({"run", golden("quantize_v32"), "--threads", "many"}, "--threads");
  for (const char* device : {"gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "CPU", "cpu:0"}) {
    expect_refused({"run", golden("quantize_v32"), "--device", device},
                   "--device must be cpu, cuda or cuda:N");
  }
  expect_refused({"run", golden("quantize_v32"), "--device", "cuda:1000"}, "GPUs that CUDA finds");
  expect_refused({"bench", "dense_decode", "--batch", "0"}, "--batch must be a whole number from 1");
  expect_refused({"bench", "dense_decode", "--batch", "4x"}, "got \"4x\"");
  expect_refused({"bench", "dense_decode", "--batch", "1,,2"}, "got \"\"");
  expect_refused({"bench", "dense_decode", "--spread", "1.5"}, "--spread must be a number from 0 to 1");
  expect_refused({"bench", "dense_decode", "--seconds", "-1"}, "--seconds must be 0 to");
  expect_refused({"make", "dense_decode", "--seed", "-1", "-o", "x"}, "--seed");
}

TEST(WrongUse, ShapesThatMakeNoSense) {
  expect_refused({"make", "dense_decode", "--topk", "5", "-o", "x"}, "dense_decode has no --topk");
  expect_refused({"make", "dense_decode", "--batch", "1,2", "-o", "x"}, "sweep");
  expect_refused({"make", "dense_decode", "--format", "fp8_v32", "-o", "x"},
                 "takes --format bf16 or f16 or e4m3");
  expect_refused({"make", "sparse_decode", "--format", "fp4", "-o", "x"}, "--format must be");
  expect_refused({"make", "sparse_decode", "--d-qk", "100", "-o", "x"}, "fp8_v32 rows are 576 wide");
  expect_refused({"make", "dense_decode", "--d-qk", "577", "-o", "x"},
                 "--d-qk must be a multiple of 8, got 577");
  expect_refused({"make", "dense_decode", "--d-qk", "520", "--format", "e4m3", "-o", "x"},
                 "--d-qk must be a multiple of 16, got 520");
  expect_refused({"make", "append_kv", "--format", "e4m3", "-o", "x"},
                 "append_kv takes --format bf16 or f16");
  expect_refused({"make", "merge_states", "--d-v", "12", "-o", "x"}, "--d-v must be a multiple of 8, got 12");
  expect_refused({"make", "sparse_decode", "--topk", "0", "-o", "x"}, "--topk of at least 1");
  expect_refused({"make", "dense_decode", "--heads", "7", "--kv-heads", "2", "-o", "x"}, "multiple of h_kv");
  expect_refused({"make", "dense_decode", "--seqlen", "2000000000", "--batch", "1000", "-o", "x"},
                 "of memory");
}

TEST(WrongUse, FileThatIsMissingOrNoFile) {
  for (const char* command : {"run", "check"}) {
    expect_refused({command, "nowhere.safetensors"}, "nowhere.safetensors: cannot be opened");
    expect_refused({command, FLASHMLA_GOLDEN_DIR}, "not a regular file");
  }
}

TEST(WrongUse, TruncatedFile) {
  const std::string bytes = read_bytes(golden("dense_decode_two_kv_heads"));
  const std::string path = fresh_folder() / "short.safetensors";
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{7}, std::size_t{300}, bytes.size() / 2, bytes.size() - 1}) {
    write_bytes(path, bytes.substr(0, size));
    for (const char* command : {"run", "check"}) expect_refused({command, path}, "short.safetensors");
  }
}

// Every bit of the length and of the first bytes of the JSON matters.
TEST(WrongUse, BitFlippedHeader) {
  const std::string bytes = read_bytes(golden("dense_decode_two_kv_heads"));
  const std::string path = fresh_folder() / "flipped.safetensors";
  for (std::size_t byte = 0; byte < 10; ++byte) {
    std::string flipped = bytes;
    flipped[byte] = static_cast<char>(flipped[byte] ^ 0x80);
    write_bytes(path, flipped);
    expect_refused({"run", path}, "flipped.safetensors");
  }
}

TEST(WrongUse, TensorOfTheWrongShape) {
  cases::Case what = cases::read_case(golden("dense_decode_two_kv_heads"));
  what.tensors["cache_seqlens"] = cases::Tensor(DataType::kI32, {3});
  const std::string path = fresh_folder() / "wrong.safetensors";
  cases::write_case(path, what);
  const std::string text =
      "wrong.safetensors: dense_decode: cache_seqlens must be i32 [batch=2], got i32 [3]";
  for (const char* command : {"run", "check"}) expect_refused({command, path}, text);
}

TEST(WrongUse, TensorThatIsMissing) {
  cases::Case what = cases::read_case(golden("dense_decode_two_kv_heads"));
  what.tensors.erase("q");
  const std::string path = fresh_folder() / "wrong.safetensors";
  cases::write_case(path, what);
  expect_refused({"run", path}, "q");
}

TEST(WrongUse, OutputThatCannotBeWritten) {
  const std::string text = "/nowhere/x: cannot";
  expect_refused({"run", golden("quantize_v32"), "-o", "/nowhere/x"}, text);
  expect_refused({"make", "merge_states", "-o", "/nowhere/x"}, text);
  expect_refused({"bench", "dense_decode", "--json", "/nowhere/x"}, text);
  expect_refused({"run", golden("quantize_v32"), golden("quantize_model1"), "-o", "/proc/x"},
                 "/proc/x: cannot");
}

TEST(WrongUse, AnOutputThatCannotBeWrittenIsFoundBeforeAnythingIsRead) {
  expect_refused({"run", "nowhere.safetensors", "-o", "/nowhere/x"}, "/nowhere/x: cannot");
}

TEST(WrongUse, CasesOfTheSameNameForOneFolder) {
  const std::filesystem::path folder = fresh_folder();
  std::filesystem::create_directory(folder / "a");
  const std::filesystem::path copy = folder / "a" / "quantize_v32.safetensors";
  std::filesystem::copy_file(golden("quantize_v32"), copy);
  expect_refused({"run", golden("quantize_v32"), copy, "-o", folder / "out"}, "would both be");
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
}

/// A header without data.
std::string header_only(const std::string& json) {
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(json.size());
  return bytes + json;
}

TEST(WrongUse, TheFileIsNamedOnce) {
  const std::string path = fresh_folder() / "wrong.safetensors";
  const cases::Case right = cases::read_case(golden("dense_decode_two_kv_heads"));
  cases::Case unknown = right;
  unknown.metadata["causal"] = "perhaps";
  cases::Case incomplete = right;
  incomplete.tensors.erase("q");
  cases::Case misshapen = right;
  misshapen.tensors["cache_seqlens"] = cases::Tensor(DataType::kI32, {3});
  std::vector<std::string> files;
  for (const cases::Case& what : {unknown, incomplete, misshapen}) {
    cases::write_case(path, what);
    files.push_back(read_bytes(path));
  }
  // No JSON, no operation, and sizes that no memory holds.
  files.push_back(header_only("{"));
  files.push_back(header_only("{}"));
  files.push_back(header_only(
      R"({"__metadata__":{"op":"append_kv"},"rope":{"dtype":"U8","shape":[4611686018427387904,4,0],)"
      R"("data_offsets":[0,0]}})"));
  for (const std::string& bytes : files) {
    write_bytes(path, bytes);
    for (const char* command : {"run", "check"}) {
      const std::string text = run_tool({command, path}).err;
      EXPECT_NE(text.find(path), std::string::npos) << text;
      EXPECT_EQ(text.find(path), text.rfind(path)) << text;
    }
  }
}

TEST(WrongUse, ControlCharactersOfAFileNameAreEscaped) {
  for (const char* command : {"run", "check"}) {
    expect_refused({command, "a\x1b[2J\nb"}, "a\\x1b[2J\\x0ab: cannot be opened");
  }
}

TEST(WrongUse, AFileAfterRightOnesDoesNotLoseTheirResults) {
  for (const char* command : {"run", "check"}) {
    const Outcome outcome = run_tool({command, golden("quantize_v32"), "nowhere.safetensors"});
    EXPECT_EQ(outcome.code, 2);
    EXPECT_NE(outcome.out.find("quantize_v32"), std::string::npos) << outcome.out;
    EXPECT_NE(outcome.err.find("nowhere.safetensors"), std::string::npos) << outcome.err;
  }
}

// The second shape has heads that its kv heads do not divide.
TEST(WrongUse, ASweepIsCheckedBeforeItIsMeasured) {
  const std::filesystem::path folder = fresh_folder();
  const std::string json = folder / "result.json";
  expect_refused({"bench", "dense_decode", "--heads", "4,3", "--kv-heads", "2", "--json", json},
                 "multiple of h_kv");
  EXPECT_TRUE(std::filesystem::is_empty(folder));
}

TEST(WrongUse, ADeviceIsNotReplaced) {
  expect_refused({"run", golden("quantize_v32"), "-o", "/dev/null"}, "not a regular file");
  expect_refused({"make", "merge_states", "-o", "/dev/null"}, "not a regular file");
  expect_refused({"bench", "dense_decode", "--json", "/dev/null"}, "not a regular file");
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

TEST(Help, IsNoError) {
  for (const char* command : {"info", "run", "check", "make", "bench"}) {
    const Outcome outcome = run_tool({command, "--help"});
    EXPECT_EQ(outcome.code, 0);
    EXPECT_NE(outcome.out.find("--help"), std::string::npos) << outcome.out;
  }
  EXPECT_EQ(run_tool({"--version"}).code, 0);
}

}  // namespace
}  // namespace flashmla::test
