// DenseDecode: fields, rules, index checks.
#include "flashmla/dense_decode.h"

#include <utility>

#include "api/index_checks.h"
#include "api/run.h"
#include "api/shapes.h"
#include "api/shared_rules.h"

namespace flashmla {

const Fields<DenseDecode>& DenseDecode::fields() {
  using Op = DenseDecode;
  static constexpr TensorField<Op> kTensors[] = {
      {"q", Role::kInput, "bf16|f16", "[batch s_q h_q d_qk]", &Op::q, "new query tokens"},
      {"kv_cache", Role::kInput, "q|u8", "[blocks page h_kv d_qk]", &Op::kv_cache,
       "latent rows in blocks of `page` tokens; u8: e4m3 codes"},
      {"block_table", Role::kInput, "i32", "[batch max_blocks]", &Op::block_table,
       "blocks of each sequence in order"},
      {"cache_seqlens", Role::kInput, "i32", "[batch]", &Op::cache_seqlens,
       "tokens of each sequence in the cache"},
      {"schedule", Role::kOptional, "i32", "[parts 8]", &Op::schedule, "from make_schedule"},
      {"num_splits", Role::kOptional, "i32", "[batch+1]", &Op::num_splits, "from make_schedule"},
      {"descale_q", Role::kOptional, "f32", "[batch]", &Op::descale_q,
       "factor of the queries over e4m3 codes; default 1"},
      {"descale_k", Role::kOptional, "f32", "[batch]", &Op::descale_k, "factor of the e4m3 codes; default 1"},
      {"out", Role::kOutput, "q", "[batch s_q h_q d_v]", &Op::out, "attention result"},
      {"lse", Role::kOutput, "f32", "[batch h_q s_q]", &Op::lse, "log of the sum of exponentials, base e"},
  };
  static constexpr ScalarField<Op> kScalars[] = {
      {"softmax_scale", &Op::softmax_scale, "factor of the logits; default 1/sqrt(d_qk)"},
      {"causal", &Op::causal, "query i of s_q sees tokens t <= seqlen - s_q + i"},
      {"split_size", &Op::split_size, "keys after which a sequence is split; 0 balances over the machine"},
  };
  static constexpr Fields<Op> kFields{"dense_decode", "new query tokens over a paged cache of latent rows",
                                      kTensors, kScalars};
  return kFields;
}

namespace {

/// Rows of e4m3 codes begin and end at multiples of 16 bytes; they alone have factors.
void require_codes_or_no_factors(std::string_view operation, const DenseDecode& op, std::int64_t d_qk) {
  if (op.kv_cache.type == DataType::kU8) {
    if (d_qk % 16 == 0) return;
    fail(ErrorKind::kValue, operation, "d_qk must be a multiple of 16 for a kv_cache of u8, got ", d_qk);
  }
  for (const auto& [name, factor] : {std::pair("descale_q", op.descale_q), {"descale_k", op.descale_k}}) {
    if (!factor.given()) continue;
    fail(ErrorKind::kValue, operation, name, " must be given with a kv_cache of u8 (e4m3 codes) only, got ",
         name_of(op.kv_cache.type));
  }
}

}  // namespace

void check_rules(const DenseDecode& op) {
  constexpr std::string_view kName = "dense_decode";
  const DecodeShape shape = shape_of(op);
  require_grouped_heads(kName, shape.h_q, shape.h_kv);
  require_latent_widths(kName, shape.d_qk, shape.d_v);
  require_codes_or_no_factors(kName, op, shape.d_qk);
  require_pages(kName, "page", op.kv_cache);
  require_schedule(kName, op.schedule, op.num_splits);
  require_schedule_range(kName, shape.batch, {"cache_seqlens", longest_sequence(op)}, op.split_size);
  require_finite_scale(kName, op.softmax_scale);
}

void check_indices(const DenseDecode& op) {
  constexpr std::string_view kName = "dense_decode";
  const std::int64_t page = op.kv_cache.shape[1];
  const std::int64_t blocks = op.kv_cache.shape[0];
  require_lengths(kName, "cache_seqlens", op.cache_seqlens, longest_sequence(op));
  for (std::int64_t b = 0; b < op.q.shape[0]; ++b) {
    const std::int64_t used = (index_at(op.cache_seqlens, b) + page - 1) / page;
    for (std::int64_t i = 0; i < used; ++i) {
      require_index(kName, "block_table", op.block_table, 0, blocks, Padding::kNone, b, i);
    }
  }
}

std::size_t workspace_bytes(const DenseDecode& op, const Execution& on) {
  return checked_workspace_bytes(op, on);
}
void run(const DenseDecode& op, const Execution& on) { checked_run(op, on); }

}  // namespace flashmla
