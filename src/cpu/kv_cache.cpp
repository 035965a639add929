// quantize_kv, dequantize_kv and append_kv: tokens are handed out to threads.
#include <algorithm>
#include <cstring>

#include "cpu/cpu.h"
#include "cpu/engine.h"
#include "cpu/fp8_rows.h"
#include "host/threads.h"
#include "kv/formats.h"
#include "kv/paged_cache.h"

namespace flashmla::cpu {
namespace {

constexpr std::int64_t kTokensAtOnce = 64;

const Engine& bf16_engine() { return engine_for(DataType::kBf16, DataType::kBf16); }

/// Calls `body(block, row)` for every token of a cache.
template <class Body>
void for_each_token(const TensorView& kv_cache, const Execution& on, Body&& body) {
  const std::int64_t page = kv_cache.shape[1];
  const std::int64_t tokens = kv_cache.shape[0] * page;
  parallel_for(threads_of(on), (tokens + kTokensAtOnce - 1) / kTokensAtOnce, [&](int, std::int64_t item) {
    const std::int64_t end = std::min(tokens, (item + 1) * kTokensAtOnce);
    for (std::int64_t token = item * kTokensAtOnce; token < end; ++token) body(token / page, token % page);
  });
}

/// The row of a token in the plain tensor of quantize_kv and dequantize_kv.
std::uint16_t* plain_row(const TensorView& kv, std::int64_t block, std::int64_t row) {
  return kv.as<std::uint16_t>() + block * kv.strides[0] + row * kv.strides[1];
}

/// Row `i` of `[tokens, width]`.
const std::uint16_t* token_row(const TensorView& rows, std::int64_t i) {
  return rows.as<const std::uint16_t>() + i * rows.strides[0];
}

std::int64_t slot_at(const TensorView& slots, std::int64_t i) {
  return slots.type == DataType::kI64 ? slots.as<const std::int64_t>()[i * slots.strides[0]]
                                      : slots.as<const std::int32_t>()[i * slots.strides[0]];
}

void append_token(const AppendKv& op, const PagedCache& cache, KvFormat format, std::int64_t i,
                  std::int64_t slot) {
  const std::uint16_t* latent = token_row(op.latent, i);
  const std::uint16_t* rope = token_row(op.rope, i);
  const std::int64_t block = slot / cache.page;
  const std::int64_t row = slot % cache.page;
  const bool fp8 = with_fp8_format(format, [&]<class Format>() {
    store_token<Format>(bf16_engine(), latent, rope, Format::token(cache, block, row));
  });
  if (fp8) return;
  const auto latent_bytes = 2 * static_cast<std::size_t>(op.latent.shape[1]);
  std::uint8_t* to = cache.plain_row(block, row, 0);
  std::memcpy(to, latent, latent_bytes);
  std::memcpy(to + latent_bytes, rope, 2 * static_cast<std::size_t>(op.rope.shape[1]));
}

}  // namespace

std::size_t workspace_bytes(const QuantizeKv&, const Execution&) { return 0; }
std::size_t workspace_bytes(const DequantizeKv&, const Execution&) { return 0; }
std::size_t workspace_bytes(const AppendKv&, const Execution&) { return 0; }

void run(const QuantizeKv& op, const Execution& on) {
  const PagedCache cache(op.kv_cache);
  with_fp8_format(*kv_format_of(op.kv_cache), [&]<class Format>() {
    for_each_token(op.kv_cache, on, [&](std::int64_t block, std::int64_t row) {
      const std::uint16_t* from = plain_row(op.kv, block, row);
      store_token<Format>(bf16_engine(), from, from + Format::kQuantized, Format::token(cache, block, row));
    });
  });
}

void run(const DequantizeKv& op, const Execution& on) {
  const PagedCache cache(op.kv_cache);
  with_fp8_format(*kv_format_of(op.kv_cache), [&]<class Format>() {
    for_each_token(op.kv_cache, on, [&](std::int64_t block, std::int64_t row) {
      load_token<Format>(bf16_engine(), Format::token(cache, block, row), plain_row(op.kv, block, row));
    });
  });
}

void run(const AppendKv& op, const Execution& on) {
  const PagedCache cache(op.kv_cache);
  const KvFormat format = *kv_format_of(op.kv_cache);
  constexpr std::int64_t kFewTokens = 64;  // less work than waking a thread
  const int threads = op.latent.shape[0] <= kFewTokens ? 1 : threads_of(on);
  // A thread owns slots, not tokens, and goes through all tokens in order: of tokens with the same slot
  // the last one stays, and no two threads write to one slot.
  parallel_for(threads, threads, [&](int, std::int64_t owner) {
    for (std::int64_t i = 0; i < op.latent.shape[0]; ++i) {
      const std::int64_t slot = slot_at(op.slot_mapping, i);
      if (slot < 0 || slot >= cache.tokens() || slot % threads != owner) continue;
      append_token(op, cache, format, i, slot);
    }
  });
}

}  // namespace flashmla::cpu
