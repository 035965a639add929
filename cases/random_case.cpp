// Draws the knobs of random cases over all that the library allows, small enough to compute thousands.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cases/random.h"
#include "flashmla/error.h"

namespace flashmla::cases {
namespace {

/// Multiplications of one case that the float64 reference does in some milliseconds.
constexpr std::int64_t kBudget = 8'000'000;
constexpr std::int64_t kMostHeads = 128;

struct Heads {
  std::int64_t h_q;
  std::int64_t h_kv;
};

Heads draw_heads(Random& random, std::int64_t most_kv_heads) {
  const std::int64_t h_kv = random.chance(0.6) ? 1 : random.between(1, most_kv_heads);
  const std::int64_t most = kMostHeads / h_kv;
  const std::int64_t group =
      random.chance(0.7) ? random.between(1, std::min<std::int64_t>(most, 20)) : random.between(1, most);
  return {h_kv * group, h_kv};
}

struct Widths {
  std::int64_t d_qk;
  std::int64_t d_v;
};

/// The widths of the models mostly, and any multiple of 8 otherwise.
Widths draw_latent_widths(Random& random) {
  if (random.chance(0.4)) return {576, 512};
  if (random.chance(0.3)) return {512, 512};
  const std::int64_t d_qk = 8 * random.between(1, 80);
  return {d_qk, 8 * random.between(1, d_qk / 8)};
}

std::int64_t draw_page(Random& random) {
  return random.chance(0.3) ? 64 : random.between(1, random.chance(0.5) ? 8 : 130);
}

DataType draw_type(Random& random) { return random.chance(0.5) ? DataType::kBf16 : DataType::kF16; }

std::int64_t draw_split_size(Random& random) {
  return random.chance(0.6) ? 0 : random.between(1, random.chance(0.5) ? 20 : 300);
}

/// How many keys a query may see within the budget.
std::int64_t most_keys(std::int64_t queries, std::int64_t width, std::int64_t most) {
  return std::clamp<std::int64_t>(kBudget / (std::max<std::int64_t>(queries, 1) * width), 2, most);
}

/// Lengths up to `most`: empty, short, full and in between.
std::vector<std::int64_t> draw_lengths(Random& random, std::int64_t count, std::int64_t most) {
  std::vector<std::int64_t> lengths;
  for (std::int64_t i = 0; i < count; ++i) {
    switch (random.between(0, 5)) {
      case 0:
        lengths.push_back(0);
        break;
      case 1:
        lengths.push_back(std::min<std::int64_t>(random.between(1, 4), most));
        break;
      case 2:
        lengths.push_back(most);
        break;
      default:
        lengths.push_back(random.between(0, most));
    }
  }
  return lengths;
}

/// A zero-size batch now and then.
std::int64_t draw_batch(Random& random) { return random.chance(0.02) ? 0 : random.between(1, 5); }

/// Nothing, or lengths of which some are out of range: they count as 0, or as all.
std::vector<std::int64_t> draw_topk_length(Random& random, std::int64_t count, std::int64_t topk) {
  if (random.chance(0.5) || count == 0) return {};
  std::vector<std::int64_t> lengths = draw_lengths(random, count, topk);
  for (std::int64_t& length : lengths) {
    if (random.chance(0.05)) length = -random.between(1, 1 << 30);
    if (random.chance(0.05)) length = topk + random.between(1, 1 << 30);
  }
  return lengths;
}

/// A probability that is zero half of the time.
double draw_part(Random& random, double most) {
  return random.chance(0.5) ? 0 : most * static_cast<double>(random.between(1, 16)) / 16;
}

Sinks draw_sinks(Random& random) {
  return random.pick(std::vector{Sinks::kNone, Sinks::kFinite, Sinks::kSomeInfinite});
}

KvFormat draw_fp8_format(Random& random) {
  return random.chance(0.5) ? KvFormat::kFp8V32 : KvFormat::kFp8Model1;
}

KvFormat draw_format(Random& random) {
  if (random.chance(0.7)) return draw_fp8_format(random);
  return random.chance(0.5) ? KvFormat::kBf16 : KvFormat::kF16;
}

/// A factor of the logits other than the default, now and then.
void draw_scale(Random& random, Case& made, std::int64_t d_qk) {
  if (random.chance(0.6)) return;
  const double factor = static_cast<double>(random.between(-16, 48)) / 16;
  made.metadata["softmax_scale"] = fmt::format("{}", factor / std::sqrt(static_cast<double>(d_qk)));
}

Case random_dense_decode(Random& random) {
  DenseDecodeKnobs knobs;
  knobs.batch = draw_batch(random);
  knobs.s_q = random.chance(0.6) ? 1 : random.between(1, 6);
  const Heads heads = draw_heads(random, 4);
  knobs.h_q = heads.h_q;
  knobs.h_kv = heads.h_kv;
  const Widths widths = draw_latent_widths(random);
  knobs.d_qk = widths.d_qk;
  knobs.d_v = widths.d_v;
  knobs.page = draw_page(random);
  const std::int64_t keys = most_keys(knobs.batch * knobs.s_q * knobs.h_q, knobs.d_qk, 700);
  knobs.seqlens = draw_lengths(random, std::max<std::int64_t>(knobs.batch, 1), keys);
  knobs.type = draw_type(random);
  knobs.causal = random.chance(0.5);
  knobs.split_size = draw_split_size(random);
  knobs.gaps = random.chance(0.3);
  knobs.shared_pages = random.chance(0.3);
  knobs.invalid_blocks = random.chance(0.2);
  knobs.wild_lengths = random.chance(0.2);
  knobs.e4m3 = random.chance(0.3);
  knobs.descale_q = random.chance(0.7);
  knobs.descale_k = random.chance(0.7);
  if (knobs.e4m3) knobs.d_qk = (knobs.d_qk + 15) / 16 * 16;
  Case made = make_dense_decode(knobs, random.next());
  draw_scale(random, made, knobs.d_qk);
  return made;
}

Case random_sparse_decode(Random& random) {
  SparseDecodeKnobs knobs;
  knobs.batch = draw_batch(random);
  knobs.s_q = random.chance(0.6) ? 1 : random.between(1, 4);
  knobs.format = draw_format(random);
  const bool fp8 = knobs.format == KvFormat::kFp8V32 || knobs.format == KvFormat::kFp8Model1;
  const Heads heads = draw_heads(random, fp8 ? 1 : 4);
  knobs.h_q = heads.h_q;
  knobs.h_kv = heads.h_kv;
  const Widths widths = draw_latent_widths(random);
  knobs.d_qk = fp8 ? (knobs.format == KvFormat::kFp8V32 ? 576 : 512) : widths.d_qk;
  knobs.d_v = fp8 && random.chance(0.7) ? 512 : std::min(widths.d_v, knobs.d_qk);
  knobs.type = draw_type(random);
  knobs.page = draw_page(random);
  knobs.blocks = random.between(1, 1 + 300 / knobs.page);
  const std::int64_t keys = most_keys(knobs.batch * knobs.s_q * knobs.h_q, knobs.d_qk, 400);
  knobs.topk = random.between(1, keys);
  knobs.topk_length = draw_topk_length(random, knobs.batch, knobs.topk);
  if (random.chance(0.4)) {
    knobs.extra_topk = random.between(1, keys);
    knobs.extra_page = draw_page(random);
    knobs.extra_blocks = random.between(1, 1 + 300 / knobs.extra_page);
    knobs.extra_topk_length = draw_topk_length(random, knobs.batch, knobs.extra_topk);
  }
  knobs.sinks = draw_sinks(random);
  knobs.invalid = draw_part(random, 1);
  knobs.duplicates = draw_part(random, 0.5);
  knobs.lonely = draw_part(random, 1);
  knobs.split_size = draw_split_size(random);
  knobs.gaps = random.chance(0.3);
  Case made = make_sparse_decode(knobs, random.next());
  draw_scale(random, made, knobs.d_qk);
  return made;
}

Case random_sparse_prefill(Random& random) {
  SparsePrefillKnobs knobs;
  knobs.s_q = draw_batch(random) * random.between(1, 3);
  const Heads heads = draw_heads(random, 4);
  knobs.h_q = heads.h_q;
  knobs.h_kv = heads.h_kv;
  const Widths widths = draw_latent_widths(random);
  knobs.d_qk = widths.d_qk;
  knobs.d_v = widths.d_v;
  knobs.s_kv = random.between(1, 300);
  knobs.topk = random.between(1, most_keys(knobs.s_q * knobs.h_q, knobs.d_qk, 400));
  knobs.topk_length = draw_topk_length(random, knobs.s_q, knobs.topk);
  knobs.type = draw_type(random);
  knobs.sinks = draw_sinks(random);
  knobs.invalid = draw_part(random, 1);
  knobs.duplicates = draw_part(random, 0.5);
  knobs.lonely = draw_part(random, 1);
  knobs.gaps = random.chance(0.3);
  Case made = make_sparse_prefill(knobs, random.next());
  draw_scale(random, made, knobs.d_qk);
  return made;
}

Case random_mha(Random& random, std::string_view operation) {
  MhaKnobs knobs;
  const Heads heads = draw_heads(random, 4);
  knobs.h_q = std::min<std::int64_t>(heads.h_q / heads.h_kv, 8) * heads.h_kv;
  knobs.h_kv = heads.h_kv;
  if (random.chance(0.4)) {
    knobs.d_qk = random.chance(0.5) ? 192 : 128;
  } else {
    knobs.d_qk = 8 * random.between(1, 24);
    knobs.d_v = 8 * random.between(1, 24);
  }
  const std::int64_t batch = draw_batch(random);
  // Queries times keys times heads times widths, for about as many queries as keys.
  constexpr std::int64_t kFewest = 4;
  std::int64_t most = kFewest;
  while (most < 150 &&
         4 * most * most * std::max<std::int64_t>(batch, 1) * knobs.h_q * knobs.d_qk < kBudget) {
    most += 1 + most / 4;
  }
  knobs.seqlens_q = draw_lengths(random, batch, most);
  knobs.seqlens_k = draw_lengths(random, batch, most);
  if (batch > 0) {
    // Where every query sees at most one key, d_q and d_k are exactly zero, and no rounded result has the
    // direction of a zero tensor, as the tolerance asks. One sequence with more keeps that away.
    knobs.seqlens_q[0] = std::max(knobs.seqlens_q[0], kFewest);
    knobs.seqlens_k[0] = std::max(knobs.seqlens_k[0], kFewest);
  }
  knobs.type = draw_type(random);
  knobs.causal = random.chance(0.5);
  knobs.deterministic = random.chance(0.3);
  knobs.uncovered_rows = random.chance(0.3) ? random.between(1, 3) : 0;
  knobs.wild_bounds = random.chance(0.3);
  knobs.gaps = random.chance(0.3);
  const std::uint64_t seed = random.next();
  Case made = operation == "mha_forward"    ? make_mha_forward(knobs, seed)
              : operation == "mha_backward" ? make_mha_backward(knobs, seed)
                                            : make_mha(knobs, seed);
  // Not for mha_backward: its lse belongs to the default factor.
  if (operation != "mha_backward") draw_scale(random, made, knobs.d_qk);
  return made;
}

QuantizeKnobs random_quantize_knobs(Random& random) {
  QuantizeKnobs knobs;
  knobs.page = draw_page(random);
  knobs.blocks = random.between(random.chance(0.05) ? 0 : 1, 1 + 100 / knobs.page);
  knobs.format = draw_fp8_format(random);
  knobs.special_values = random.chance(0.5);
  knobs.gaps = random.chance(0.3);
  return knobs;
}

Case random_append_kv(Random& random) {
  AppendKvKnobs knobs;
  knobs.tokens = random.chance(0.05) ? 0 : random.between(1, 60);
  knobs.page = draw_page(random);
  knobs.blocks = random.between(1, 1 + 200 / knobs.page);
  knobs.format = draw_format(random);
  knobs.d_latent = 8 * random.between(1, 64);
  knobs.d_rope = 8 * random.between(1, 8);
  knobs.slot_type = random.chance(0.5) ? DataType::kI64 : DataType::kI32;
  knobs.invalid = draw_part(random, 0.6);
  knobs.duplicates = draw_part(random, 0.5);
  knobs.gaps = random.chance(0.3);
  return make_append_kv(knobs, random.next());
}

Case random_merge_states(Random& random) {
  const std::vector types{DataType::kBf16, DataType::kF16, DataType::kF32};
  MergeStatesKnobs knobs;
  knobs.states = random.between(2, 6);
  knobs.batch = draw_batch(random);
  knobs.s_q = random.between(1, 4);
  knobs.h_q = random.between(1, random.chance(0.8) ? 20 : kMostHeads);
  knobs.d_v = 8 * random.between(1, 64);
  knobs.type = random.pick(types);
  knobs.out_type = random.pick(types);
  knobs.lonely = draw_part(random, 1);
  knobs.gaps = random.chance(0.3);
  return make_merge_states(knobs, random.next());
}

Case random_make_schedule(Random& random) {
  MakeScheduleKnobs knobs;
  knobs.batch = random.chance(0.02) ? 0 : random.between(1, 200);
  const std::int64_t lengths = std::max<std::int64_t>(knobs.batch, 1);
  knobs.max_seqlen = random.between(0, random.chance(0.5) ? 100 : 100'000);
  knobs.topk = random.between(0, 4096);
  knobs.extra_topk = random.chance(0.5) ? 0 : random.between(0, 2048);
  knobs.seqlens.clear();
  if (random.chance(0.5)) {
    knobs.seqlens = draw_lengths(random, lengths, knobs.max_seqlen);
    for (std::int64_t& length : knobs.seqlens) {
      if (random.chance(0.05)) length = random.between(-(1 << 30), 1 << 30);
    }
  } else {
    knobs.topk_length = draw_topk_length(random, lengths, knobs.topk);
    knobs.extra_topk_length = draw_topk_length(random, lengths, knobs.extra_topk);
  }
  knobs.split_size = draw_split_size(random);
  knobs.parts = random.between(1, 200);
  return make_make_schedule(knobs, random.next());
}

}  // namespace

Case random_case(std::string_view operation, Random& random) {
  if (operation == "dense_decode") return random_dense_decode(random);
  if (operation == "sparse_decode") return random_sparse_decode(random);
  if (operation == "sparse_prefill") return random_sparse_prefill(random);
  if (operation == "mha" || operation == "mha_forward" || operation == "mha_backward") {
    return random_mha(random, operation);
  }
  if (operation == "quantize_kv") {
    const QuantizeKnobs knobs = random_quantize_knobs(random);
    return make_quantize_kv(knobs, random.next());
  }
  if (operation == "dequantize_kv") {
    const QuantizeKnobs knobs = random_quantize_knobs(random);
    return make_dequantize_kv(knobs, random.next());
  }
  if (operation == "append_kv") return random_append_kv(random);
  if (operation == "merge_states") return random_merge_states(random);
  if (operation == "make_schedule") return random_make_schedule(random);
  throw Error(ErrorKind::kValue, fmt::format("no random cases for operation '{}'", operation));
}

}  // namespace flashmla::cases
