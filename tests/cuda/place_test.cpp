// Places in the source: from program counters, from source locations, and as numbers.
#include "cuda/emulator/place.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace flashmla::emulator {
namespace {

const void* seen_return_address = nullptr;

[[gnu::noinline]] void note_return_address() { seen_return_address = __builtin_return_address(0); }

struct Call {
  const void* return_address;
  int line;
};

[[gnu::noinline]] Call call_not_inlined() {
  const int line = __LINE__ + 1;
  note_return_address();
  return {seen_return_address, line};
}

[[gnu::always_inline]] inline Call call_inlined() {
  const int line = __LINE__ + 1;
  note_return_address();
  return {seen_return_address, line};
}

bool ends_with_this_file(const std::string& file) {
  const std::string name = "place_test.cpp";
  return file.size() >= name.size() && file.compare(file.size() - name.size(), name.size(), name) == 0;
}

TEST(SourceLine, OfAReturnAddressIsTheLineOfTheCall) {
  const Call call = call_not_inlined();
  const SourceLine place = source_line_of(call.return_address);
  EXPECT_TRUE(ends_with_this_file(place.file)) << place.file;
  EXPECT_EQ(place.line, call.line);
  EXPECT_NE(place.function.find("call_not_inlined"), std::string::npos) << place.function;
  EXPECT_EQ(place.function.find("_ZN"), std::string::npos) << "not demangled: " << place.function;
}

TEST(SourceLine, OfAnInlinedCallIsInTheInlinedFunction) {
  const Call call = call_inlined();
  const SourceLine place = source_line_of(call.return_address);
  EXPECT_EQ(place.line, call.line);
  EXPECT_NE(place.function.find("call_inlined"), std::string::npos) << place.function;
}

TEST(SourceLine, OfAnAddressThatIsNoCodeIsUnknown) {
  const int no_code = 0;
  EXPECT_EQ(describe(source_line_of(static_cast<const void*>(&no_code))), "an unknown place");
}

TEST(Sites, NumberPlacesOnce) {
  Sites sites;
  const Call first = call_not_inlined();
  const Call second = call_inlined();
  const std::source_location here = std::source_location::current();
  const std::source_location there = std::source_location::current();
  const std::set<Site> numbers{sites.site_of(first.return_address), sites.site_of(second.return_address),
                               sites.site_of(here), sites.site_of(there)};
  EXPECT_EQ(numbers.size(), 4u);
  EXPECT_EQ(sites.site_of(first.return_address), *numbers.begin());
  EXPECT_EQ(sites.site_of(here), *numbers.begin() + 2);
}

TEST(Sites, KnowTheirPlaces) {
  Sites sites;
  const Call call = call_not_inlined();
  const std::source_location here = std::source_location::current();
  EXPECT_EQ(sites.source_line_of(sites.site_of(call.return_address)).line, call.line);
  EXPECT_EQ(sites.source_line_of(sites.site_of(here)).line, static_cast<int>(here.line()));
  EXPECT_TRUE(ends_with_this_file(sites.source_line_of(sites.site_of(here)).file));
  EXPECT_EQ(describe(sites.source_line_of(0)), "an unknown place");
}

TEST(Sites, AfterTheLastNumberPlacesAreUnknown) {
  Sites sites;
  const std::string bytes(70000, ' ');
  for (int i = 0; i < 65535; ++i) ASSERT_NE(sites.site_of(static_cast<const void*>(&bytes[i])), 0);
  EXPECT_EQ(sites.site_of(static_cast<const void*>(&bytes[65535])), 0);
  EXPECT_EQ(sites.site_of(static_cast<const void*>(&bytes[0])), 1) << "earlier ones stay known";
}

}  // namespace
}  // namespace flashmla::emulator
