// bf16 rows into an FP8 cache and back.
#include "host/threads.h"
#include "reference/reference.h"
#include "reference/tensor_rows.h"

namespace flashmla::reference {

std::size_t workspace_bytes(const QuantizeKv&, const Execution&) { return 0; }
std::size_t workspace_bytes(const DequantizeKv&, const Execution&) { return 0; }

void run(const QuantizeKv& op, const Execution& on) {
  with_fp8_format(*kv_format_of(op.kv_cache), [&]<class Format>() {
    const PagedCache cache(op.kv_cache);
    const std::int64_t tokens = cache.tokens();
    parallel_for(threads_of(on), tokens, [&](int, std::int64_t token) {
      const std::int64_t block = token / cache.page;
      const std::int64_t row = token % cache.page;
      const auto* values = &element<std::uint16_t>(op.kv, block, row);
      flashmla::store_row<Format>(values, values + Format::kQuantized, Format::token(cache, block, row));
    });
  });
}

void run(const DequantizeKv& op, const Execution& on) {
  with_fp8_format(*kv_format_of(op.kv_cache), [&]<class Format>() {
    const PagedCache cache(op.kv_cache);
    const std::int64_t tokens = cache.tokens();
    parallel_for(threads_of(on), tokens, [&](int, std::int64_t token) {
      const std::int64_t block = token / cache.page;
      const std::int64_t row = token % cache.page;
      auto* values = &element<std::uint16_t>(op.kv, block, row);
      flashmla::load_row<Format>(Format::token(cache, block, row), values);
    });
  });
}

}  // namespace flashmla::reference
