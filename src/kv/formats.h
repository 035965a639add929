// The list of FP8 cache formats: what runs over all of them, or picks one, starts here.
#pragma once

#include "flashmla/kv_format.h"
#include "kv/fp8_model1.h"
#include "kv/fp8_v32.h"

namespace flashmla {

template <class... Formats>
struct FormatList {
  /// Calls `visit.template operator()<Format>()` for each format until one call returns true; tells
  /// whether one did.
  template <class Visit>
  static constexpr bool any_of(Visit&& visit) {
    return (visit.template operator()<Formats>() || ...);
  }
};

/// A new FP8 format is a file like fp8_v32.h, its name here, and its value in KvFormat.
using Fp8Formats = FormatList<Fp8V32, Fp8Model1>;

/// Calls `visit.template operator()<Format>()` for the FP8 format named; false for a plain format.
template <class Visit>
constexpr bool with_fp8_format(KvFormat format, Visit&& visit) {
  return Fp8Formats::any_of([&]<class Format>() {
    if (Format::kFormat != format) return false;
    visit.template operator()<Format>();
    return true;
  });
}

}  // namespace flashmla
