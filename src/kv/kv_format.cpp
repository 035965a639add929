// Names, row sizes and recognition of cache formats.
#include "flashmla/kv_format.h"

#include "kv/formats.h"

namespace flashmla {

std::string_view name_of(KvFormat format) {
  if (format == KvFormat::kBf16) return "bf16";
  if (format == KvFormat::kF16) return "f16";
  if (format == KvFormat::kE4m3) return "e4m3";
  std::string_view name;
  with_fp8_format(format, [&]<class Format>() { name = Format::kName; });
  return name;
}

std::optional<KvFormat> kv_format_named(std::string_view name) {
  if (name == "bf16") return KvFormat::kBf16;
  if (name == "f16") return KvFormat::kF16;
  if (name == "e4m3") return KvFormat::kE4m3;
  std::optional<KvFormat> found;
  Fp8Formats::any_of([&]<class Format>() {
    if (name != Format::kName) return false;
    found = Format::kFormat;
    return true;
  });
  return found;
}

std::optional<KvFormat> kv_format_of(const TensorView& kv_cache) {
  if (kv_cache.ndim < 1) return std::nullopt;
  if (kv_cache.type == DataType::kBf16) return KvFormat::kBf16;
  if (kv_cache.type == DataType::kF16) return KvFormat::kF16;
  if (kv_cache.type != DataType::kU8) return std::nullopt;
  const std::int64_t row_size = kv_cache.shape[static_cast<std::size_t>(kv_cache.ndim - 1)];
  std::optional<KvFormat> found;
  Fp8Formats::any_of([&]<class Format>() {
    if (row_size != Format::kRowBytes) return false;
    found = Format::kFormat;
    return true;
  });
  return found;
}

std::optional<std::int64_t> kv_row_size(KvFormat format, std::int64_t d_qk) {
  std::optional<std::int64_t> size;
  const bool fp8 = with_fp8_format(format, [&]<class Format>() {
    if (d_qk == Format::kWidth) size = Format::kRowBytes;
  });
  return fp8 ? size : d_qk;
}

std::int64_t kv_row_width(KvFormat format, std::int64_t row_size) {
  std::int64_t width = row_size;
  with_fp8_format(format, [&]<class Format>() { width = Format::kWidth; });
  return width;
}

}  // namespace flashmla
