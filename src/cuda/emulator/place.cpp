// Places in the source: debug information by libbacktrace, and numbers for places.
#include "cuda/emulator/place.h"

#include <backtrace.h>
#include <cxxabi.h>

#include <cstddef>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>

namespace flashmla::emulator {
namespace {

void ignore_error(void*, const char*, int) {}

backtrace_state* debug_information() {
  constexpr int kManyThreads = 1;
  static backtrace_state* const state = backtrace_create_state(nullptr, kManyThreads, ignore_error, nullptr);
  return state;
}

std::string demangled(const char* name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name, nullptr, nullptr, &status),
                                                    std::free);
  return status == 0 ? text.get() : name;
}

/// Called for the innermost function first; a result that is not 0 ends the search.
int take_line(void* result, std::uintptr_t, const char* file, int line, const char* function) {
  if (file == nullptr) return 0;
  *static_cast<SourceLine*>(result) = {function != nullptr ? demangled(function) : "", file, line};
  return 1;
}

}  // namespace

std::string describe(const SourceLine& place) {
  return place.file.empty() ? "an unknown place" : place.file + ":" + std::to_string(place.line);
}

SourceLine source_line_of(const std::source_location& location) {
  return {location.function_name(), location.file_name(), static_cast<int>(location.line())};
}

SourceLine source_line_of(const void* return_address) {
  SourceLine result;
  backtrace_state* const state = debug_information();
  if (state == nullptr) return result;
  // The call ends before the address that it returns to, which may be in the next line.
  const std::uintptr_t call = reinterpret_cast<std::uintptr_t>(return_address) - 1;
  backtrace_pcinfo(state, call, take_line, ignore_error, &result);
  return result;
}

std::size_t Sites::KeyHash::operator()(const Key& key) const {
  const std::uint64_t position = std::uint64_t{key.line} << 8 ^ key.column;
  const std::uint64_t bits = reinterpret_cast<std::uintptr_t>(key.pointer) ^ position << 16;
  return static_cast<std::size_t>((bits * 0x9e3779b97f4a7c15u) >> 24);
}

Site Sites::site_of(const Key& key) {
  Recent& recent = recent_[KeyHash()(key) % recent_.size()];
  if (recent.site == 0 || !(recent.key == key)) recent = {key, add(key)};
  return recent.site;
}

Site Sites::add(const Key& key) {
  const auto found = sites_.find(key);
  if (found != sites_.end()) return found->second;
  if (keys_.size() == std::numeric_limits<Site>::max()) return 0;
  keys_.push_back(key);
  const auto site = static_cast<Site>(keys_.size());
  sites_.emplace(key, site);
  return site;
}

SourceLine Sites::source_line_of(Site site) const {
  if (site == 0 || site > keys_.size()) return {};
  const Key& key = keys_[site - 1u];
  if (key.line == 0) return emulator::source_line_of(key.pointer);
  return {"", static_cast<const char*>(key.pointer), static_cast<int>(key.line)};
}

}  // namespace flashmla::emulator
