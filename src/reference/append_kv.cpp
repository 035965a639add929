// New tokens into a paged cache.
#include <cstring>

#include "reference/reference.h"
#include "reference/tensor_rows.h"

namespace flashmla::reference {
namespace {

std::int64_t slot_of(const AppendKv& op, std::int64_t token) {
  if (op.slot_mapping.type == DataType::kI64) return element<std::int64_t>(op.slot_mapping, token);
  return element<std::int32_t>(op.slot_mapping, token);
}

void store_token(const AppendKv& op, std::int64_t token, std::int64_t block, std::int64_t row) {
  const std::byte* latent = address(op.latent, token);
  const std::byte* rope = address(op.rope, token);
  if (op.kv_cache.type == DataType::kU8) {
    with_fp8_format(*kv_format_of(op.kv_cache), [&]<class Format>() {
      flashmla::store_row<Format>(reinterpret_cast<const std::uint16_t*>(latent),
                                  reinterpret_cast<const std::uint16_t*>(rope),
                                  Format::token(PagedCache(op.kv_cache), block, row));
    });
    return;
  }
  const std::size_t latent_bytes = 2 * static_cast<std::size_t>(op.latent.shape[1]);
  std::byte* to = address(op.kv_cache, block, row);
  std::memcpy(to, latent, latent_bytes);
  std::memcpy(to + latent_bytes, rope, 2 * static_cast<std::size_t>(op.rope.shape[1]));
}

}  // namespace

std::size_t workspace_bytes(const AppendKv&, const Execution&) { return 0; }

void run(const AppendKv& op, const Execution&) {
  const std::int64_t page = op.kv_cache.shape[1];
  const std::int64_t slots = op.kv_cache.shape[0] * page;
  for (std::int64_t token = 0; token < op.latent.shape[0]; ++token) {
    const std::int64_t slot = slot_of(op, token);
    if (slot >= 0 && slot < slots) store_token(op, token, slot / page, slot % page);
  }
}

}  // namespace flashmla::reference
