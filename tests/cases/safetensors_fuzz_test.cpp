// Mutated files: whatever their bytes are, reading, preparing and running them ends well or in an Error.
//
// FLASHMLA_FUZZ_ITERATIONS: how many. FLASHMLA_FUZZ_SEED: seed of the first one; the others count up.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "cases/case.h"
#include "cases/random.h"
#include "cases/safetensors.h"
#include "flashmla/error.h"
#include "temporary_folder.h"

namespace flashmla::cases {
namespace {

using Bytes = std::vector<std::byte>;

std::int64_t iterations() {
  const char* given = std::getenv("FLASHMLA_FUZZ_ITERATIONS");
  return std::stoll(given != nullptr ? given : "10000");
}

std::uint64_t first_seed() {
  const char* given = std::getenv("FLASHMLA_FUZZ_SEED");
  return std::stoull(given != nullptr ? given : "1");
}

std::uint64_t header_length(const Bytes& file) {
  std::uint64_t length = 0;
  if (file.size() >= 8) std::memcpy(&length, file.data(), 8);
  return std::min<std::uint64_t>(length, file.size() < 8 ? 0 : file.size() - 8);
}

std::size_t draw_position(Random& random, std::size_t size) {
  return static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(size) - 1));
}

/// Replaces a piece of the header by `text` and keeps the stated length right, so that the reader gets
/// as far as the new content.
void replace_in_header(Bytes& file, std::size_t at, std::size_t count, const std::string& text) {
  const std::uint64_t length = header_length(file) - count + text.size();
  const auto begin = file.begin() + static_cast<std::ptrdiff_t>(8 + at);
  const auto* bytes = reinterpret_cast<const std::byte*>(text.data());
  file.insert(file.erase(begin, begin + static_cast<std::ptrdiff_t>(count)), bytes, bytes + text.size());
  std::memcpy(file.data(), &length, 8);
}

/// A number of the header becomes another one.
void mutate_number(Random& random, Bytes& file) {
  const std::vector<std::string> numbers = {"0",
                                            "1",
                                            "2",
                                            "3",
                                            "7",
                                            "8",
                                            "16",
                                            "64",
                                            "576",
                                            "584",
                                            "656",
                                            "-1",
                                            "1.5",
                                            "4294967296",
                                            "9223372036854775807",
                                            "18446744073709551615",
                                            "1e30",
                                            "\"1\"",
                                            "null",
                                            "[]",
                                            "{}"};
  const auto is_digit = [](std::byte byte) { return byte >= std::byte{'0'} && byte <= std::byte{'9'}; };
  const std::size_t length = header_length(file);
  if (length == 0) return;
  const std::byte* text = file.data() + 8;
  std::size_t at = draw_position(random, length);
  while (at < length && !is_digit(text[at])) ++at;
  std::size_t end = at;
  while (end < length && is_digit(text[end])) ++end;
  if (end > at) replace_in_header(file, at, end - at, random.pick(numbers));
}

/// A piece of the header appears again elsewhere.
void duplicate_in_header(Random& random, Bytes& file) {
  const std::size_t length = header_length(file);
  if (length == 0) return;
  const std::size_t from = draw_position(random, length);
  const std::size_t count = std::min<std::size_t>(length - from, draw_position(random, 100));
  const std::string piece(reinterpret_cast<const char*>(file.data()) + 8 + from, count);
  replace_in_header(file, draw_position(random, length), 0, piece);
}

void mutate(Random& random, Bytes& file) {
  if (file.empty()) return;
  const std::size_t in_header = std::max<std::size_t>(8 + header_length(file), 1);
  switch (random.between(0, 8)) {
    case 0:
      file[draw_position(random, file.size())] ^= std::byte{1} << random.between(0, 7);
      break;
    case 1:
      file[draw_position(random, std::min(in_header, file.size()))] ^= std::byte{1} << random.between(0, 7);
      break;
    case 2:
      file[draw_position(random, file.size())] = static_cast<std::byte>(random.next());
      break;
    case 3:
      file.resize(draw_position(random, file.size()));
      break;
    case 4:
      file.resize(file.size() + draw_position(random, 64));
      break;
    case 5:
      duplicate_in_header(random, file);
      break;
    case 6:
      file[draw_position(random, 8) % file.size()] = static_cast<std::byte>(random.next());
      break;
    default:
      mutate_number(random, file);
  }
}

class SafetensorsFuzz : public TemporaryFolder {
 protected:
  /// A small case of each operation as bytes.
  std::vector<Bytes> originals() const {
    MhaKnobs mha;
    mha.seqlens_q = {3, 2};
    mha.seqlens_k = {4, 2};
    SparseDecodeKnobs sparse;
    sparse.h_q = 2;
    sparse.page = 3;
    sparse.blocks = 4;
    sparse.topk = sparse.extra_topk = 5;
    sparse.extra_blocks = 4;
    sparse.topk_length = {4};
    sparse.sinks = Sinks::kFinite;
    sparse.format = KvFormat::kFp8Model1;
    SparsePrefillKnobs prefill;
    prefill.h_q = 2;
    prefill.s_kv = 5;
    prefill.topk = 4;
    AppendKvKnobs append;
    append.tokens = 4;
    append.page = 3;
    const std::vector<Case> cases = {make_dense_decode({.h_q = 2, .page = 4, .seqlens = {5, 9}}, 1),
                                     make_sparse_decode(sparse, 2),
                                     make_sparse_prefill(prefill, 3),
                                     make_mha(mha, 4),
                                     make_quantize_kv({.blocks = 2, .page = 2}, 5),
                                     make_dequantize_kv({.blocks = 2, .page = 2}, 6),
                                     make_append_kv(append, 7),
                                     make_merge_states({.h_q = 2, .d_v = 16}, 8),
                                     make_make_schedule({}, 9)};
    std::vector<Bytes> files;
    for (const Case& one : cases) {
      write_case(path("original"), one);
      std::ifstream file(path("original"), std::ios::binary);
      const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
      const auto* bytes = reinterpret_cast<const std::byte*>(text.data());
      files.emplace_back(bytes, bytes + text.size());
    }
    return files;
  }
};

TEST_F(SafetensorsFuzz, NothingButErrorComesOut) {
  const std::vector<Bytes> files = originals();
  std::int64_t refused = 0;
  std::int64_t ran = 0;
  const std::uint64_t first = first_seed();
  for (std::uint64_t seed = first; seed < first + static_cast<std::uint64_t>(iterations()); ++seed) {
    Random random(seed);
    Bytes file = files[draw_position(random, files.size())];
    for (std::int64_t count = random.between(1, 3); count > 0; --count) mutate(random, file);
    try {
      const Case read = parse_case(file, "mutated");
      run_case(read, {.threads = 1});
      ++ran;
    } catch (const Error& error) {
      ++refused;
      EXPECT_STRNE(error.what(), "") << "seed " << seed;
    } catch (const std::exception& error) {
      ADD_FAILURE() << "seed " << seed << " let out: " << error.what();
    }
  }
  // Both happen often, or the mutations are no longer of use.
  EXPECT_GT(refused, iterations() / 10);
  EXPECT_GT(ran, iterations() / 20);
}

}  // namespace
}  // namespace flashmla::cases
