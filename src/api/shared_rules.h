// Rules that several operations share, each with its message.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "api/message.h"
#include "api/shapes.h"
#include "flashmla/kv_format.h"
#include "flashmla/tensor.h"
#include "kv/formats.h"

namespace flashmla {

struct NamedSize {
  std::string_view name;
  std::int64_t value;
};

inline void require_positive(std::string_view operation, std::initializer_list<NamedSize> sizes) {
  for (const NamedSize& size : sizes) {
    if (size.value < 1) {
      fail(ErrorKind::kValue, operation, size.name, " must be at least 1, got ", size.value);
    }
  }
}

/// A paged cache `[blocks, page, ...]`.
inline void require_pages(std::string_view operation, std::string_view page_name,
                          const TensorView& kv_cache) {
  require_positive(operation, {{page_name, kv_cache.shape[1]}});
  if (kv_cache.shape[0] > std::numeric_limits<std::int64_t>::max() / kv_cache.shape[1]) {
    fail(ErrorKind::kValue, operation, "blocks * ", page_name, " must be below 2^63, got ", kv_cache.shape[0],
         " * ", kv_cache.shape[1]);
  }
}

inline void require_not_negative(std::string_view operation, NamedSize size) {
  if (size.value < 0) fail(ErrorKind::kValue, operation, size.name, " must be 0 or more, got ", size.value);
}

inline void require_grouped_heads(std::string_view operation, std::int64_t h_q, std::int64_t h_kv) {
  require_positive(operation, {{"h_q", h_q}, {"h_kv", h_kv}});
  if (h_q % h_kv != 0) {
    fail(ErrorKind::kValue, operation, "h_q must be a multiple of h_kv, got h_q=", h_q, ", h_kv=", h_kv);
  }
}

/// Rows of 16-bit values begin and end at multiples of 16 bytes.
inline void require_row_width(std::string_view operation, NamedSize width) {
  require_positive(operation, {width});
  if (width.value % 8 != 0) {
    fail(ErrorKind::kValue, operation, width.name, " must be a multiple of 8, got ", width.value);
  }
}

/// In MQA mode the value is the first part of the key.
inline void require_latent_widths(std::string_view operation, std::int64_t d_qk, std::int64_t d_v) {
  require_row_width(operation, {"d_qk", d_qk});
  require_row_width(operation, {"d_v", d_v});
  if (d_v > d_qk) {
    fail(ErrorKind::kValue, operation, "d_v must be at most d_qk, got d_v=", d_v, ", d_qk=", d_qk);
  }
}

inline void require_finite_scale(std::string_view operation, std::optional<float> scale) {
  constexpr float kLargest = 1e38f;  // times log2(e) and a logit of 1 it still is an f32
  if (scale && !(std::abs(*scale) <= kLargest)) {
    fail(ErrorKind::kValue, operation, "softmax_scale must be finite and at most ", kLargest, ", got ",
         *scale);
  }
}

inline void require_both_or_none(std::string_view operation, std::string_view a_name, const TensorView& a,
                                 std::string_view b_name, const TensorView& b) {
  if (a.given() == b.given()) return;
  const auto& [given, missing] = a.given() ? std::pair(a_name, b_name) : std::pair(b_name, a_name);
  fail(ErrorKind::kValue, operation, given, " and ", missing, " must be given together, but ", missing,
       " is missing");
}

/// The numbers of a schedule are i32. `longest`: keys of a sequence at most.
inline void require_schedule_range(std::string_view operation, std::int64_t batch, NamedSize longest,
                                   std::int64_t split_size) {
  require_not_negative(operation, {"split_size", split_size});
  if (longest.value > kLargestLength) {
    fail(ErrorKind::kValue, operation, longest.name, " must be below 2^31, got ", longest.value);
  }
  const std::int64_t splits = split_size == 0 ? 1 : longest.value / split_size + 1;
  if (splits > kLargestLength / std::max<std::int64_t>(batch, 1)) {
    fail(ErrorKind::kValue, operation, "batch * ", longest.name, " / split_size must be below 2^31, got ",
         batch, " * ", longest.value, " / ", split_size);
  }
}

/// The schedule of a decode operation.
inline void require_schedule(std::string_view operation, const TensorView& schedule,
                             const TensorView& num_splits) {
  require_both_or_none(operation, "schedule", schedule, "num_splits", num_splits);
  if (schedule.given()) require_positive(operation, {{"schedule rows", schedule.shape[0]}});
}

/// Format of a cache whose rows hold `d_qk` values.
inline KvFormat require_format(std::string_view operation, std::string_view name, const TensorView& kv_cache,
                               std::int64_t d_qk) {
  const std::optional<KvFormat> format = kv_format_of(kv_cache);
  if (!format) {
    std::string known;
    Fp8Formats::any_of([&]<class Format>() {
      known += text(known.empty() ? "" : " or ", Format::kRowBytes, " bytes (", Format::kName, ")");
      return false;
    });
    fail(ErrorKind::kValue, operation, name, " rows must be ", known, ", got ", kv_cache.shape[3]);
  }
  const std::int64_t width = kv_row_width(*format, kv_cache.shape[3]);
  if (width != d_qk) {
    fail(ErrorKind::kValue, operation, name, " in format ", name_of(*format), " holds rows of ", width,
         " values, but d_qk is ", d_qk);
  }
  if (kv_cache.type == DataType::kU8 && kv_cache.shape[2] != 1) {
    fail(ErrorKind::kValue, operation, name, " in format ", name_of(*format), " must have h_kv=1, got ",
         kv_cache.shape[2]);
  }
  return *format;
}

}  // namespace flashmla
