// Expects an Error whose text contains what a person needs to read.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "flashmla/error.h"

namespace flashmla::cases {

/// Runs `action`, which must throw Error (kValue) with `text` in its one-line message.
template <class Action>
void expect_error(const std::string& text, Action&& action) {
  try {
    action();
    ADD_FAILURE() << "no error, expected: " << text;
  } catch (const Error& error) {
    const std::string what = error.what();
    EXPECT_NE(what.find(text), std::string::npos) << "got: " << what << "\nexpected: " << text;
    EXPECT_EQ(what.find('\n'), std::string::npos) << what;
    EXPECT_EQ(error.kind(), ErrorKind::kValue) << what;
  }
}

}  // namespace flashmla::cases
