// Reads the cases of `bench`, and says what is wrong with an entry.
#include "cli/bench_cases.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "cli/backends.h"
#include "flashmla/error.h"

namespace flashmla::cli {
namespace {

using Json = nlohmann::ordered_json;

[[noreturn]] void fail(const std::string& message) { throw Error(ErrorKind::kValue, message); }

/// `s_q` of the flag `s-q`.
std::string key_of(std::string flag) {
  std::replace(flag.begin(), flag.end(), '-', '_');
  return flag;
}

/// What the keys of an entry can be, beside those of the shape.
constexpr const char* kOperation = "operation";
constexpr const char* kName = "name";
constexpr const char* kSection = "section";
constexpr const char* kThreads = "threads";

bool has_type(FlagKind kind, const Json& value) {
  switch (kind) {
    case FlagKind::kWhole:
      return value.is_number_integer();
    case FlagKind::kNumber:
      return value.is_number();
    case FlagKind::kFormat:
      return value.is_string() && value.get<std::string>().find(',') == std::string::npos;
    case FlagKind::kSwitch:
      return value.is_boolean();
  }
  return false;
}

std::string_view expected(FlagKind kind) {
  switch (kind) {
    case FlagKind::kWhole:
      return "a whole number, or a list of them";
    case FlagKind::kNumber:
      return "a number, or a list of them";
    case FlagKind::kFormat:
      return "the name of a format, or a list of them";
    case FlagKind::kSwitch:
      return "true or false";
  }
  return "";
}

/// The value as the command line would have it.
std::string flag_text(const std::string& key, FlagKind kind, const Json& value) {
  const bool list = value.is_array() && !value.empty() && kind != FlagKind::kSwitch;
  const std::vector<Json> items = list ? value.get<std::vector<Json>>() : std::vector<Json>{value};
  std::vector<std::string> texts;
  for (const Json& item : items) {
    if (!has_type(kind, item)) fail(fmt::format("{} must be {}, got {}", key, expected(kind), value.dump()));
    texts.push_back(item.is_string() ? item.get<std::string>() : item.dump());
  }
  return fmt::format("{}", fmt::join(texts, ","));
}

std::string text_at(const Json& entry, const char* key) {
  if (!entry.contains(key)) return "";
  const Json& value = entry.at(key);
  if (!value.is_string() || value.get<std::string>().empty()) {
    fail(fmt::format("{} must be a text, got {}", key, value.dump()));
  }
  return value.get<std::string>();
}

int threads_of(const Json& entry) {
  if (!entry.contains(kThreads)) return 0;
  const Json& value = entry.at(kThreads);
  const bool whole = value.is_number_unsigned();
  if (!whole || value.get<std::uint64_t>() < 1 || value.get<std::uint64_t>() > kMostThreads) {
    fail(fmt::format("{} must be a whole number from 1 to {}, got {}", kThreads, kMostThreads, value.dump()));
  }
  return value.get<int>();
}

std::string operation_of(const Json& entry) {
  const std::string operation = text_at(entry, kOperation);
  const std::vector<std::string> known = operation_names(Purpose::kBench);
  if (std::find(known.begin(), known.end(), operation) == known.end()) {
    fail(fmt::format("{} must be one of {}, got \"{}\"", kOperation, fmt::join(known, ", "), operation));
  }
  return operation;
}

/// Refuses a key that would be ignored.
void require_known_keys(const Json& entry, const std::string& operation) {
  std::vector<std::string> known = {kOperation, kName, kSection, kThreads};
  for (const auto& [key, value] : values_of(operation, Shape{})) known.push_back(key);
  for (const auto& [key, value] : entry.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    fail(fmt::format("{} has no \"{}\"; it has {}", operation, key, fmt::join(known, ", ")));
  }
}

ShapeFlags shape_flags_of(const Json& entry) {
  ShapeFlags flags;
  for (const FlagDescription& flag : shape_flags()) {
    const std::string key = key_of(flag.name);
    if (!entry.contains(key)) continue;
    const std::string text = flag_text(key, flag.kind, entry.at(key));
    if (flag.kind != FlagKind::kSwitch || text == "true") flags[flag.name] = text;
  }
  return flags;
}

/// What an entry says of its shape and does not sweep: `heads=128 format=f16`.
std::string given_values(const ShapeFlags& flags) {
  std::string text;
  for (const FlagDescription& flag : shape_flags()) {
    const auto found = flags.find(flag.name);
    if (found == flags.end() || found->second.find(',') != std::string::npos) continue;
    text += fmt::format("{}{}={}", text.empty() ? "" : " ", key_of(flag.name), found->second);
  }
  return text;
}

std::vector<BenchCase> cases_of_entry(const Json& entry) {
  if (!entry.is_object()) fail(fmt::format("must be an object, got {}", entry.dump()));
  const std::string operation = operation_of(entry);
  require_known_keys(entry, operation);
  const ShapeFlags flags = shape_flags_of(entry);
  const std::string name = text_at(entry, kName);
  std::vector<BenchCase> all = cases_of(operation, flags);
  for (BenchCase& what : all) {
    what.threads = threads_of(entry);
    what.section = text_at(entry, kSection);
    what.name = name.empty() ? given_values(flags) : name;
  }
  return all;
}

Json read_json(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::exists(path, ignored) && !std::filesystem::is_regular_file(path, ignored)) {
    fail(fmt::format("{}: not a regular file", path));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(fmt::format("{}: cannot be opened: {}", path, std::strerror(errno)));
  try {
    return Json::parse(file);
  } catch (const Json::parse_error& error) {
    fail(fmt::format("{}: not JSON, from byte {} on", path, error.byte));
  }
}

/// `cpu.json: case 3 (h=16)`.
std::string place_of(const std::string& path, std::size_t number, const Json& entry) {
  const Json name = entry.is_object() && entry.contains(kName) ? entry.at(kName) : Json();
  const bool named = name.is_string() && !name.get<std::string>().empty();
  return fmt::format("{}: case {}{}", path, number, named ? " (" + name.get<std::string>() + ")" : "");
}

}  // namespace

std::vector<BenchCase> cases_of(const std::string& operation, const ShapeFlags& flags) {
  std::vector<std::string> swept;
  for (const FlagDescription& flag : shape_flags()) {
    const auto found = flags.find(flag.name);
    if (found != flags.end() && found->second.find(',') != std::string::npos) {
      swept.push_back(key_of(flag.name));
    }
  }
  std::vector<BenchCase> all;
  for (const Shape& shape : sweep(operation, flags, Purpose::kBench)) {
    BenchCase what;
    what.operation = operation;
    what.shape = shape;
    what.swept = swept;
    all.push_back(std::move(what));
  }
  return all;
}

std::vector<BenchCase> read_bench_cases(const std::string& path) {
  const Json json = read_json(path);
  if (!json.is_array() || json.empty()) fail(fmt::format("{}: must be a list of cases", path));
  std::vector<BenchCase> all;
  for (std::size_t i = 0; i < json.size(); ++i) {
    const std::string where = place_of(path, i + 1, json[i]);
    try {
      for (BenchCase& what : cases_of_entry(json[i])) {
        what.where = where;
        all.push_back(std::move(what));
      }
    } catch (const Error& error) {
      throw Error(error.kind(), fmt::format("{}: {}", where, error.what()));
    }
  }
  return all;
}

std::string swept_values(const BenchCase& what) {
  std::string text;
  for (const auto& [key, value] : values_of(what.operation, what.shape)) {
    if (std::find(what.swept.begin(), what.swept.end(), key) == what.swept.end()) continue;
    text += fmt::format("{}{}={}", text.empty() ? "" : " ", key,
                        value.is_string() ? value.get<std::string>() : value.dump());
  }
  return text;
}

}  // namespace flashmla::cli
