// quantize_kv, dequantize_kv and append_kv: tokens are handed out to threads.
#include <algorithm>
#include <cstring>

#include "api/workspace.h"
#include "cpu/cpu.h"
#include "cpu/engine.h"
#include "cpu/fp8_rows.h"
#include "cpu/rows.h"
#include "cpu/slot_holders.h"
#include "host/threads.h"
#include "kv/formats.h"
#include "kv/paged_cache.h"

namespace flashmla::cpu {
namespace {

constexpr std::int64_t kTokensAtOnce = 64;

/// How far ahead rows are fetched: the processor's own prefetcher stops at the end of each page.
constexpr std::int64_t kTokensAhead = 4;

const Engine& bf16_engine() { return engine_for(DataType::kBf16, DataType::kBf16); }

/// Calls `body(first, last)` for ranges that together are `[0, tokens)`.
template <class Body>
void for_each_range(int threads, std::int64_t tokens, Body&& body) {
  parallel_for(threads, (tokens + kTokensAtOnce - 1) / kTokensAtOnce, [&](int, std::int64_t item) {
    body(item * kTokensAtOnce, std::min(tokens, (item + 1) * kTokensAtOnce));
  });
}

/// A token of a cache, to be counted up: that is quicker than a division each.
struct Place {
  std::int64_t block;
  std::int64_t row;

  Place(std::int64_t token, std::int64_t page) : block(token / page), row(token % page) {}

  void advance(std::int64_t page) {
    if (++row < page) return;
    row = 0;
    ++block;
  }
};

/// Calls `body(block, row)` for every token of a cache, and `ahead(block, row)` some tokens earlier.
template <class Ahead, class Body>
void for_each_token(const TensorView& kv_cache, const Execution& on, bool streamed, Ahead&& ahead,
                    Body&& body) {
  const std::int64_t page = kv_cache.shape[1];
  const std::int64_t tokens = kv_cache.shape[0] * page;
  for_each_range(threads_of(on), tokens, [&](std::int64_t first, std::int64_t last) {
    Place place(first, page);
    Place next(first + kTokensAhead, page);
    for (std::int64_t token = first; token < last; ++token) {
      if (token + kTokensAhead < tokens) ahead(next.block, next.row);
      body(place.block, place.row);
      place.advance(page);
      next.advance(page);
    }
    if (streamed) bf16_engine().streams.fence();
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

/// One call of append_kv.
class Appender {
 public:
  explicit Appender(const AppendKv& op)
      : op_(op),
        cache_(op.kv_cache),
        format_(*kv_format_of(op.kv_cache)),
        streamed_(is_streamed(engine_, op.latent.shape[0] * row_bytes(op.kv_cache))) {}

  std::int64_t tokens() const { return op_.latent.shape[0]; }

  /// Where token `i` goes, or -1 if that is outside the cache.
  std::int64_t slot(std::int64_t i) const {
    const TensorView& slots = op_.slot_mapping;
    const std::int64_t at = i * slots.strides[0];
    const std::int64_t slot = slots.type == DataType::kI64 ? slots.as<const std::int64_t>()[at]
                                                           : slots.as<const std::int32_t>()[at];
    return slot >= 0 && slot < cache_.tokens() ? slot : -1;
  }

  /// Writes the tokens `[first, last)` whose `is_wanted(token, slot)` is true.
  template <class IsWanted>
  void append(std::int64_t first, std::int64_t last, IsWanted&& is_wanted) const {
    for (std::int64_t i = first; i < last; ++i) {
      fetch(std::min(i + kTokensAhead, tokens() - 1));
      const std::int64_t to = slot(i);
      if (to >= 0 && is_wanted(i, to)) append_token(i, to);
    }
    if (streamed_) engine_.streams.fence();
  }

 private:
  /// Has a token fetched, and both ends of where it goes: a page may be new, and its address takes long. A
  /// slot behind the last one is at hand.
  void fetch(std::int64_t i) const {
    fetch_row(token_row(op_.latent, i), row_bytes(op_.latent));
    const std::int64_t to = slot(i);
    if (to < 0 || (i > 0 && to == slot(i - 1) + 1)) return;
    const std::int64_t block = to / cache_.page;
    const std::int64_t row = to % cache_.page;
    const bool fp8 = with_fp8_format(format_, [&]<class Format>() {
      fetch_ends(Format::token(cache_, block, row).values, Format::kTogetherBytes);
    });
    if (!fp8) fetch_ends(cache_.plain_row(block, row, 0), row_bytes(op_.kv_cache));
  }

  void append_token(std::int64_t i, std::int64_t slot) const {
    const std::uint16_t* latent = token_row(op_.latent, i);
    const std::uint16_t* rope = token_row(op_.rope, i);
    const std::int64_t block = slot / cache_.page;
    const std::int64_t row = slot % cache_.page;
    const bool fp8 = with_fp8_format(format_, [&]<class Format>() {
      const auto store = streamed_ ? stream_token<Format> : store_token<Format>;
      store(engine_, latent, rope, Format::token(cache_, block, row));
    });
    if (fp8) return;
    std::uint8_t* to = cache_.plain_row(block, row, 0);
    copy(latent, row_bytes(op_.latent), to);
    copy(rope, row_bytes(op_.rope), to + row_bytes(op_.latent));
  }

  void copy(const void* from, std::int64_t bytes, void* to) const {
    if (streamed_) return engine_.streams.copy(from, bytes, to);
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }

  const Engine& engine_ = bf16_engine();
  const AppendKv& op_;
  PagedCache cache_;
  KvFormat format_;
  bool streamed_;
};

int threads_for(const AppendKv& op, const Execution& on) {
  constexpr std::int64_t kFewTokens = 64;  // less work than waking a thread
  return op.latent.shape[0] <= kFewTokens ? 1 : threads_of(on);
}

}  // namespace

std::size_t workspace_bytes(const QuantizeKv&, const Execution&) { return 0; }
std::size_t workspace_bytes(const DequantizeKv&, const Execution&) { return 0; }

std::size_t workspace_bytes(const AppendKv& op, const Execution& on) {
  Workspace workspace;
  if (threads_for(op, on) > 1) SlotHolders(workspace, op.latent.shape[0]);
  return workspace.bytes();
}

void run(const QuantizeKv& op, const Execution& on) {
  const PagedCache cache(op.kv_cache);
  const Engine& engine = bf16_engine();
  const bool streamed = is_streamed(engine, bytes_of(op.kv_cache));
  with_fp8_format(*kv_format_of(op.kv_cache), [&]<class Format>() {
    const auto ahead = [&](std::int64_t block, std::int64_t row) {
      fetch_row(plain_row(op.kv, block, row), 2 * Format::kWidth);
    };
    for_each_token(op.kv_cache, on, streamed, ahead, [&](std::int64_t block, std::int64_t row) {
      const std::uint16_t* from = plain_row(op.kv, block, row);
      const auto store = streamed ? stream_token<Format> : store_token<Format>;
      store(engine, from, from + Format::kQuantized, Format::token(cache, block, row));
    });
  });
}

void run(const DequantizeKv& op, const Execution& on) {
  const PagedCache cache(op.kv_cache);
  const Engine& engine = bf16_engine();
  const bool streamed = is_streamed(engine, bytes_of(op.kv));
  with_fp8_format(*kv_format_of(op.kv_cache), [&]<class Format>() {
    const auto ahead = [&](std::int64_t block, std::int64_t row) {
      fetch_row(Format::token(cache, block, row).values, Format::kRowBytes);
    };
    for_each_token(op.kv_cache, on, streamed, ahead, [&](std::int64_t block, std::int64_t row) {
      const Fp8Token token = Format::token(cache, block, row);
      std::uint16_t* to = plain_row(op.kv, block, row);
      if (!streamed) return load_token<Format>(engine, token, to);
      alignas(64) std::uint16_t made[Format::kWidth];
      load_token<Format>(engine, token, made);
      engine.streams.copy(made, sizeof(made), to);
    });
  });
}

void run(const AppendKv& op, const Execution& on) {
  const Appender appender(op);
  const int threads = threads_for(op, on);
  const std::int64_t tokens = appender.tokens();
  if (threads == 1) return appender.append(0, tokens, [](std::int64_t, std::int64_t) { return true; });

  // Of tokens with the same slot the last one must stay: it alone is written, so it does not matter who
  // comes first.
  Workspace workspace(on);
  const SlotHolders holders(workspace, tokens);
  const auto slot_of = [&](std::int64_t i) { return appender.slot(i); };
  parallel_for(threads, threads, [&](int, std::int64_t part) { holders.clear(part, threads); });
  for_each_range(threads, tokens, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      holders.fetch(slot_of(std::min(i + kTokensAhead, tokens - 1)));
      if (const std::int64_t slot = slot_of(i); slot >= 0) holders.claim(slot, i, slot_of);
    }
  });
  for_each_range(threads, tokens, [&](std::int64_t first, std::int64_t last) {
    appender.append(first, last, [&](std::int64_t i, std::int64_t slot) {
      holders.fetch(slot_of(std::min(i + kTokensAhead, tokens - 1)));
      return holders.holder(slot, slot_of) == i;
    });
  });
}

}  // namespace flashmla::cpu
