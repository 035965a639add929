// Reads back what was written, and refuses every kind of broken file with its own sentence.
#include "cases/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <ostream>
#include <string>
#include <vector>

#include "cases/tensor.h"
#include "expect_error.h"
#include "temporary_folder.h"

namespace flashmla::cases {
namespace {

using Bytes = std::vector<std::byte>;

/// A file with this header, whatever it says, and `data` zero bytes behind it.
Bytes file_of(const std::string& header, std::size_t data) {
  Bytes bytes(8 + header.size() + data);
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<std::byte>(header.size() >> (8 * i));
  std::memcpy(bytes.data() + 8, header.data(), header.size());
  return bytes;
}

class SafetensorsFileTest : public TemporaryFolder {};

TEST_F(SafetensorsFileTest, ReadsBackWhatWasWritten) {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, TensorView> views;
  for (const DataType type :
       {DataType::kBf16, DataType::kF16, DataType::kF32, DataType::kU8, DataType::kI32, DataType::kI64}) {
    const std::string name(name_of(type));
    tensors[name] = Tensor(type, {2, 3});
    for_each_index(tensors[name].view(), [&](auto index) {
      set_element(tensors[name].view(), index, static_cast<double>(10 * index[0] + index[1]));
    });
    views[name] = tensors[name].view();
  }
  write_safetensors(path("a.safetensors"), {{"op", "x"}, {"note", "quotes \" and \\"}}, views);

  const SafetensorsFile file(path("a.safetensors"));
  EXPECT_EQ(file.content().metadata.at("op"), "x");
  EXPECT_EQ(file.content().metadata.at("note"), "quotes \" and \\");
  ASSERT_EQ(file.content().tensors.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const SafetensorsEntry& entry = file.content().tensors.at(name);
    EXPECT_EQ(entry.type, tensor.type());
    EXPECT_EQ(entry.shape, tensor.shape());
    ASSERT_EQ(entry.data.size(), tensor.memory().size());
    EXPECT_EQ(std::memcmp(entry.data.data(), tensor.memory().data(), entry.data.size()), 0) << name;
  }
}

TEST_F(SafetensorsFileTest, PacksTensorsWithGaps) {
  Tensor tensor(DataType::kU8, {2, 2}, {5, 1});
  for (std::int64_t i = 0; i < 4; ++i) tensor.set({i / 2, i % 2}, static_cast<double>(i));
  write_safetensors(path("a"), {}, {{"t", tensor.view()}});
  const SafetensorsFile file(path("a"));
  const auto data = file.content().tensors.at("t").data;
  ASSERT_EQ(data.size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(std::to_integer<int>(data[i]), static_cast<int>(i));
}

TEST_F(SafetensorsFileTest, KeepsScalarsAndEmptyTensors) {
  Tensor scalar(DataType::kF32, {});
  scalar.set({}, 2.5);
  const Tensor empty(DataType::kI32, {0, 7});
  write_safetensors(path("a"), {}, {{"scalar", scalar.view()}, {"empty", empty.view()}});
  const SafetensorsFile file(path("a"));
  EXPECT_EQ(file.content().tensors.at("scalar").shape, std::vector<std::int64_t>{});
  EXPECT_EQ(file.content().tensors.at("scalar").data.size(), 4u);
  EXPECT_EQ(file.content().tensors.at("empty").shape, (std::vector<std::int64_t>{0, 7}));
}

TEST_F(SafetensorsFileTest, PadsTheHeaderToEightBytes) {
  const Tensor tensor(DataType::kF32, {1});
  write_safetensors(path("a"), {{"k", "v"}}, {{"t", tensor.view()}});
  EXPECT_EQ((std::filesystem::file_size(path("a")) - 4) % 8, 0u);
}

TEST_F(SafetensorsFileTest, LeavesNoTemporaryFile) {
  const Tensor tensor(DataType::kF32, {1});
  write_safetensors(path("a"), {}, {{"t", tensor.view()}});
  const std::filesystem::directory_iterator files(folder_);
  EXPECT_EQ(std::distance(begin(files), end(files)), 1);
}

TEST_F(SafetensorsFileTest, NamesAFileThatCannotBeReadOrWritten) {
  expect_error("missing: cannot be opened: No such file", [&] { SafetensorsFile file(path("missing")); });
  expect_error("not a regular file", [&] { SafetensorsFile file(folder_.string()); });
  expect_error("no/such/folder: cannot be written: No such file",
               [&] { write_safetensors(path("no/such/folder"), {}, {}); });
  write_file("empty", {});
  expect_error("empty: not a safetensors file: 0 bytes", [&] { SafetensorsFile file(path("empty")); });
}

TEST_F(SafetensorsFileTest, ReplacesNothingButFiles) {
  std::filesystem::create_directories(path("a") + "/in_the_way");
  const Tensor tensor(DataType::kF32, {1});
  expect_error("cannot be written: not a regular file",
               [&] { write_safetensors(path("a"), {}, {{"t", tensor.view()}}); });
  const std::filesystem::directory_iterator files(folder_);
  EXPECT_EQ(std::distance(begin(files), end(files)), 1);
}

TEST(Safetensors, TakesFloat8AsBytes) {
  const Bytes bytes = file_of(R"({"t":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[0,3]}})", 3);
  EXPECT_EQ(parse_safetensors(bytes, "x").tensors.at("t").type, DataType::kU8);
}

TEST(Safetensors, AcceptsAnEmptyHeaderAndPadding) {
  EXPECT_TRUE(parse_safetensors(file_of("{}      ", 0), "x").tensors.empty());
}

TEST(Safetensors, RefusesALengthThatTheFileDoesNotHave) {
  expect_error("x: not a safetensors file: 7 bytes are too few", [] { parse_safetensors(Bytes(7), "x"); });
  Bytes bytes = file_of("{}", 0);
  bytes[0] = std::byte{3};
  expect_error("header length is 3 bytes, but only 2 bytes follow", [&] { parse_safetensors(bytes, "x"); });
  bytes[7] = std::byte{0xff};
  expect_error("more than the format's limit of 100000000", [&] { parse_safetensors(bytes, "x"); });
}

struct BrokenHeader {
  const char* name;
  std::string header;
  std::size_t data;
  const char* message;
};

/// What GoogleTest prints of a failing one.
std::ostream& operator<<(std::ostream& out, const BrokenHeader& broken) {
  return out << broken.header.substr(0, 200);
}

class BrokenHeaderTest : public testing::TestWithParam<BrokenHeader> {};

TEST_P(BrokenHeaderTest, IsRefused) {
  const Bytes bytes = file_of(GetParam().header, GetParam().data);
  expect_error(std::string("f: ") + GetParam().message, [&] { parse_safetensors(bytes, "f"); });
}

std::string tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"("t":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}
std::string header(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return "{" + tensor(dtype, shape, offsets) + "}";
}
const std::string kGood = R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]})";

const BrokenHeader kBroken[] = {
    {"Empty", "", 0, "header does not begin with a JSON object"},
    {"NoObject", "[]", 0, "header does not begin with a JSON object"},
    {"LeadingSpace", " {}", 0, "header does not begin with a JSON object"},
    {"Cut", R"({"t":{"dtype")", 0, "header is not valid JSON near its byte"},
    {"TextBehind", "{} x", 0, "header is not valid JSON"},
    {"InvalidUtf8", "{\"\xff\":1}", 0, "header is not valid JSON"},
    {"HugeNumber", R"({"t":1e999})", 0, "header is not valid JSON"},
    {"Deep", R"({"t":{"shape":[[0]]}})", 0, "header is nested deeper than 3 levels"},
    {"VeryDeep", "{\"t\":" + std::string(100'000, '['), 0, "header is nested deeper than 3 levels"},
    {"SameTensorTwice", "{" + kGood + "," + kGood + "}", 4, "header has the key a twice"},
    {"SameKeyTwice", R"({"t":{"dtype":"U8","dtype":"U8"}})", 0, "header has the key dtype twice"},
    {"SameMetadataTwice", R"({"__metadata__":{"k":"1","k":"2"}})", 0, "header has the key k twice"},
    {"MetadataList", R"({"__metadata__":[]})", 0, "__metadata__ must be an object of strings, got array"},
    {"MetadataNumber", R"({"__metadata__":{"k":1}})", 0, "__metadata__ k must be a string, got number"},
    {"EntryNumber", R"({"t":7})", 0, "tensor t must be an object, got number"},
    {"UnknownKey", R"({"t":{"dtype":"U8","shape":[],"data_offsets":[0,1],"x":0}})", 1,
     "tensor t has an unknown key x"},
    {"NoDtype", R"({"t":{"shape":[],"data_offsets":[0,1]}})", 1, "tensor t has no dtype"},
    {"NoShape", R"({"t":{"dtype":"U8","data_offsets":[0,1]}})", 1, "tensor t has no shape"},
    {"NoOffsets", R"({"t":{"dtype":"U8","shape":[]}})", 1, "tensor t has no data_offsets"},
    {"DtypeNumber", header("8", "[]", "[0,1]"), 1, "tensor t must have a string as dtype, got number"},
    {"DtypeUnknown", header("\"F64\"", "[]", "[0,8]"), 8, "tensor t has dtype F64, which is none of BF16"},
    {"ShapeNumber", header("\"U8\"", "1", "[0,1]"), 1, "tensor t must have a list as shape, got number"},
    {"ShapeLong", header("\"U8\"", "[1,1,1,1,1,1]", "[0,1]"), 1, "tensor t has 6 dimensions, more than 5"},
    {"ShapeNegative", header("\"U8\"", "[-1]", "[0,1]"), 1, "tensor t has a shape that is not made of whole"},
    {"ShapeFraction", header("\"U8\"", "[1.0]", "[0,1]"), 1,
     "tensor t has a shape that is not made of whole"},
    {"ShapeTooLarge", header("\"U8\"", "[9223372036854775808]", "[0,1]"), 1,
     "tensor t has a shape that is not made of whole numbers"},
    {"ShapeOverflows", header("\"I64\"", "[4294967296,536870912]", "[0,0]"), 0,
     "tensor t has shape [4294967296, 536870912], whose size does not fit in 64 bits"},
    {"OffsetsShort", header("\"U8\"", "[1]", "[0]"), 1,
     "tensor t must have two whole numbers as data_offsets"},
    {"OffsetsText", header("\"U8\"", "[1]", "[0,\"1\"]"), 1, "tensor t must have two whole numbers"},
    {"OffsetsNegative", header("\"U8\"", "[1]", "[-1,0]"), 1, "tensor t must have two whole numbers"},
    {"OffsetsBackwards", header("\"U8\"", "[1]", "[1,0]"), 1,
     "tensor t has data_offsets [1, 0], but the file has 1 bytes of data"},
    {"OffsetsOutside", header("\"U8\"", "[2]", "[0,2]"), 1,
     "tensor t has data_offsets [0, 2], but the file has 1 bytes of data"},
    {"SizeWrong", header("\"F32\"", "[2]", "[0,7]"), 7,
     "tensor t is f32 [2], 8 bytes, but its data_offsets span 7"},
    {"Overlap", "{" + kGood + "," + tensor("\"U8\"", "[4]", "[3,7]") + "}", 7,
     "tensor t overlaps the one before"},
    {"SameData", "{" + kGood + "," + tensor("\"U8\"", "[4]", "[0,4]") + "}", 4,
     "tensor t overlaps the one before"},
    {"Gap", "{" + kGood + "," + tensor("\"U8\"", "[1]", "[6,7]") + "}", 7,
     "2 bytes of data in front of tensor t belong to no tensor"},
    {"GapInFront", header("\"U8\"", "[1]", "[1,2]"), 2, "1 bytes of data in front of tensor t belong to no"},
    {"GapBehind", "{" + kGood + "}", 7, "the last 3 bytes of data belong to no tensor"},
    {"StrangeName", "{\"a\\nb" + std::string(200, 'x') + "\":1}", 0, "tensor a?bxxxxx"},
};

INSTANTIATE_TEST_SUITE_P(Safetensors, BrokenHeaderTest, testing::ValuesIn(kBroken),
                         [](const auto& broken) { return std::string(broken.param.name); });

}  // namespace
}  // namespace flashmla::cases
