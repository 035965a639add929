// Makes a random case of each operation from its knobs.
#include "cases/random.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "flashmla/error.h"
#include "kv/float_types.h"
#include "kv/formats.h"
#include "kv/row.h"

namespace flashmla::cases {

std::uint64_t Random::next() {
  std::uint64_t mixed = state_ += 0x9e3779b97f4a7c15u;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
  return mixed ^ (mixed >> 31);
}

std::int64_t Random::between(std::int64_t low, std::int64_t high) {
  // The bias of the remainder is far below what a test could see.
  const auto count = static_cast<std::uint64_t>(high) - static_cast<std::uint64_t>(low) + 1;
  const std::uint64_t drawn = next();
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(low) + (count == 0 ? drawn : drawn % count));
}

bool Random::chance(double p) { return static_cast<double>(next() >> 11) * 0x1p-53 < p; }

float Random::normal() {
  const std::uint64_t drawn = next();
  const std::uint64_t sum =
      (drawn & 0xffffu) + ((drawn >> 16) & 0xffffu) + ((drawn >> 32) & 0xffffu) + (drawn >> 48);
  // Four uniform numbers on [0, 65535]: mean 131070, standard deviation 65536 / sqrt(3).
  constexpr float kInverseDeviation = 1.7320508f / 65536;
  return static_cast<float>(static_cast<std::int64_t>(sum) - 131070) * kInverseDeviation;
}

namespace {

// Standard deviations. Logits then have about 1/3, as in measured cases: no softmax is flat or one-hot.
constexpr float kQueryDeviation = 1.0f;
constexpr float kLatentDeviation = 1.0f / 3;
constexpr float kMhaDeviation = 0.5f;

/// Elements between rows and outer dimensions of tensors with gaps: 16 bytes or a multiple for all types
/// that have aligned rows.
constexpr std::int64_t kGap = 16;

Case new_case(std::string_view operation, std::uint64_t seed, bool gaps) {
  Case made;
  made.source = fmt::format("random {} of seed {}", operation, seed);
  made.operation = operation;
  made.metadata["seed"] = std::to_string(seed);
  made.output_gap = gaps ? kGap : 0;
  return made;
}

/// All NaN; with gaps between rows and outer dimensions if asked.
Tensor new_tensor(DataType type, const std::vector<std::int64_t>& shape, bool gaps) {
  if (!gaps) return Tensor(type, shape);
  std::vector<std::int64_t> strides(shape.size(), 1);
  for (std::size_t dim = shape.size(); dim-- > 1;) {
    strides[dim - 1] = std::max<std::int64_t>(shape[dim], 1) * strides[dim] + kGap;
  }
  return Tensor(type, shape, strides);
}

/// The type that holds rows of a plain format.
DataType row_type(KvFormat format) { return format == KvFormat::kF16 ? DataType::kF16 : DataType::kBf16; }

bool is_fp8(KvFormat format) { return format != KvFormat::kBf16 && format != KvFormat::kF16; }

/// Width of the rows of an FP8 format.
std::int64_t fp8_width(KvFormat format) {
  std::int64_t width = 0;
  with_fp8_format(format, [&]<class Format>() { width = Format::kWidth; });
  return width;
}

Tensor new_fp8_cache(KvFormat format, std::int64_t blocks, std::int64_t page, bool gaps) {
  if (!gaps) return fp8_cache(format, blocks, page);
  // One row of padding, as caches in practice have; 576 keeps fp8_model1 at its multiple.
  const std::int64_t padding = format == KvFormat::kFp8Model1 ? 576 : fp8_cache(format, 1, 1).view().shape[3];
  return fp8_cache(format, blocks, page, packed_block_stride(format, page) + padding);
}

// --- Values ---------------------------------------------------------------------------------------

/// `count` neighbouring elements of a float type, or e4m3 codes.
void fill_row(Random& random, const TensorView& tensor, std::int64_t offset, std::int64_t count,
              float deviation) {
  for (std::int64_t i = offset; i < offset + count; ++i) {
    const float value = random.normal() * deviation;
    if (tensor.type == DataType::kBf16) {
      tensor.as<std::uint16_t>()[i] = float_to_bf16(value);
    } else if (tensor.type == DataType::kF16) {
      tensor.as<std::uint16_t>()[i] = float_to_f16(value);
    } else if (tensor.type == DataType::kU8) {
      tensor.as<std::uint8_t>()[i] = float_to_e4m3(value);
    } else {
      tensor.as<float>()[i] = value;
    }
  }
}

/// The rows `tensor[i]` or `tensor[i, j]` of the leading positions, and all that is in them.
void fill_part(Random& random, const TensorView& tensor, std::span<const std::int64_t> leading,
               float deviation) {
  const auto first = static_cast<std::size_t>(leading.size());
  const auto last = static_cast<std::size_t>(tensor.ndim) - 1;
  const std::int64_t base = offset_of(tensor, leading);
  for_each_index({tensor.shape.data() + first, last - first}, [&](std::span<const std::int64_t> index) {
    std::int64_t offset = base;
    for (std::size_t dim = 0; dim < index.size(); ++dim) offset += index[dim] * tensor.strides[first + dim];
    fill_row(random, tensor, offset, tensor.shape[last], deviation);
  });
}

Tensor normal_tensor(Random& random, DataType type, const std::vector<std::int64_t>& shape, bool gaps,
                     float deviation) {
  Tensor tensor = new_tensor(type, shape, gaps);
  fill_part(random, tensor.view(), {}, deviation);
  return tensor;
}

/// A positive number from `2^low` to `2^(high + 1)`.
float random_factor(Random& random, int low, int high) {
  const float significand = 1 + static_cast<float>(random.between(0, (1 << 23) - 1)) * 0x1p-23f;
  return std::ldexp(significand, static_cast<int>(random.between(low, high)));
}

/// An integer that is out of place nearly everywhere.
std::int32_t garbage(Random& random) { return static_cast<std::int32_t>(random.next()); }

Tensor garbage_tensor(Random& random, DataType type, const std::vector<std::int64_t>& shape, bool gaps) {
  Tensor tensor = new_tensor(type, shape, gaps);
  for_each_index(tensor.view(), [&](auto index) { set_element(tensor.view(), index, garbage(random)); });
  return tensor;
}

/// An index outside `[0, end)`.
std::int32_t invalid_index(Random& random, std::int64_t end) {
  constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
  switch (random.between(0, 4)) {
    case 0:
      return static_cast<std::int32_t>(std::min(end, kLargest));
    case 1:
      return static_cast<std::int32_t>(kLargest);
    case 2:
      return std::numeric_limits<std::int32_t>::min();
    case 3:
      return static_cast<std::int32_t>(random.between(std::numeric_limits<std::int32_t>::min(), -2));
    default:
      return -1;
  }
}

/// Numbers `0 .. count - 1` in random order.
std::vector<std::int64_t> shuffled(Random& random, std::int64_t count) {
  std::vector<std::int64_t> numbers(static_cast<std::size_t>(count));
  std::iota(numbers.begin(), numbers.end(), 0);
  for (std::int64_t i = count - 1; i > 0; --i) {
    std::swap(numbers[static_cast<std::size_t>(i)], numbers[static_cast<std::size_t>(random.between(0, i))]);
  }
  return numbers;
}

std::int64_t cycled(const std::vector<std::int64_t>& list, std::int64_t i) {
  return list[static_cast<std::size_t>(i) % list.size()];
}

Tensor lengths_tensor(const std::vector<std::int64_t>& list, std::int64_t count) {
  Tensor tensor(DataType::kI32, {count});
  for (std::int64_t i = 0; i < count; ++i) tensor.set({i}, static_cast<double>(cycled(list, i)));
  return tensor;
}

void add_sinks(Random& random, Case& made, Sinks sinks, std::int64_t h_q) {
  if (sinks == Sinks::kNone) return;
  constexpr float kSinkDeviation = 2;
  Tensor tensor = normal_tensor(random, DataType::kF32, {h_q}, false, kSinkDeviation);
  for (std::int64_t h = 0; h < h_q && sinks == Sinks::kSomeInfinite; ++h) {
    if (!random.chance(1.0 / 3)) continue;
    tensor.set({h}, random.chance(0.5) ? std::numeric_limits<double>::infinity()
                                       : -std::numeric_limits<double>::infinity());
  }
  made.tensors["attn_sink"] = std::move(tensor);
}

// --- Dense decode ---------------------------------------------------------------------------------

struct PagedBatch {
  std::vector<std::int64_t> lengths;  ///< what counts, per sequence
  std::int64_t columns = 0;           ///< of the block table
};

PagedBatch plan_pages(Random& random, const DenseDecodeKnobs& knobs) {
  PagedBatch plan;
  for (std::int64_t b = 0; b < knobs.batch; ++b) {
    plan.lengths.push_back(knobs.seqlens.empty() ? 0 : cycled(knobs.seqlens, b));
    plan.columns = std::max(plan.columns, (plan.lengths.back() + knobs.page - 1) / knobs.page);
  }
  constexpr std::int64_t kMostUnusedColumns = 2;
  plan.columns = std::max<std::int64_t>(plan.columns + random.between(0, kMostUnusedColumns), 1);
  for (std::int64_t& length : plan.lengths) {
    if (knobs.wild_lengths && random.chance(0.25)) length = plan.columns * knobs.page;
  }
  return plan;
}

/// Fills `block_table`; returns the number of blocks that the cache must have, one of them unlisted.
std::int64_t assign_blocks(Random& random, const DenseDecodeKnobs& knobs, const PagedBatch& plan,
                           Tensor& table) {
  std::int64_t used = 0;
  for (const std::int64_t length : plan.lengths) used += (length + knobs.page - 1) / knobs.page;
  const std::int64_t blocks = used + 1;
  const auto order = shuffled(random, blocks);
  std::size_t next = 0;
  for (std::int64_t b = 0; b < knobs.batch; ++b) {
    const std::int64_t length = plan.lengths[static_cast<std::size_t>(b)];
    const bool shares = knobs.shared_pages && b > 0 && random.chance(0.5);
    const std::int64_t before = shares ? plan.lengths[static_cast<std::size_t>(b - 1)] : 0;
    const std::int64_t shared = random.between(0, std::min(before, length) / knobs.page);
    for (std::int64_t i = 0; i * knobs.page < length; ++i) {
      const double block = i < shared ? table.at({b - 1, i}) : static_cast<double>(order[next++]);
      const bool invalid = knobs.invalid_blocks && random.chance(0.2);
      table.set({b, i}, invalid ? invalid_index(random, blocks) : block);
    }
  }
  return blocks;
}

/// Adds `descale_q` or `descale_k`; returns the factors, which are 1 where the case has none.
std::vector<float> add_factors(Random& random, Case& made, const char* name, bool given, std::int64_t count,
                               bool all_the_same) {
  std::vector<float> factors(static_cast<std::size_t>(count), 1.0f);
  if (!given) return factors;
  Tensor tensor(DataType::kF32, {count});
  for (std::size_t b = 0; b < factors.size(); ++b) {
    factors[b] = all_the_same && b > 0 ? factors[0] : random_factor(random, -6, 5);
    tensor.set({static_cast<std::int64_t>(b)}, factors[b]);
  }
  made.tensors[name] = std::move(tensor);
  return factors;
}

/// Fills the tokens that `block_table` lists, over the factors of their sequences; the rest stays NaN.
void fill_pages(Random& random, const PagedBatch& plan, const Tensor& table,
                const std::vector<float>& descale_k, Tensor& cache) {
  const TensorView& view = cache.view();
  const std::int64_t page = view.shape[1];
  std::vector<std::int64_t> filled(static_cast<std::size_t>(view.shape[0]), 0);  // tokens per block
  for (std::size_t b = 0; b < plan.lengths.size(); ++b) {
    for (std::int64_t i = 0; i * page < plan.lengths[b]; ++i) {
      const auto block = static_cast<std::int64_t>(table.at({static_cast<std::int64_t>(b), i}));
      if (block < 0 || block >= view.shape[0]) continue;
      std::int64_t& count = filled[static_cast<std::size_t>(block)];
      for (; count < std::min(page, plan.lengths[b] - i * page); ++count) {
        fill_part(random, view, std::vector{block, count}, kLatentDeviation / descale_k[b]);
      }
    }
  }
}

Tensor seqlens_tensor(Random& random, const DenseDecodeKnobs& knobs, const PagedBatch& plan) {
  Tensor tensor(DataType::kI32, {knobs.batch});
  for (std::int64_t b = 0; b < knobs.batch; ++b) {
    std::int64_t length = plan.lengths[static_cast<std::size_t>(b)];
    const bool full = length == plan.columns * knobs.page;
    if (knobs.wild_lengths && length == 0) {
      length = -random.between(1, std::numeric_limits<std::int32_t>::max());
    } else if (knobs.wild_lengths && full) {
      length = random.between(length, std::numeric_limits<std::int32_t>::max());
    }
    tensor.set({b}, static_cast<double>(length));
  }
  return tensor;
}

}  // namespace

Case make_dense_decode(const DenseDecodeKnobs& knobs, std::uint64_t seed) {
  Random random(seed);
  Case made = new_case("dense_decode", seed, knobs.gaps);
  made.metadata["head_dim_v"] = std::to_string(knobs.d_v);
  made.metadata["causal"] = knobs.causal ? "1" : "0";
  made.metadata["split_size"] = std::to_string(knobs.split_size);
  const PagedBatch plan = plan_pages(random, knobs);
  Tensor table = garbage_tensor(random, DataType::kI32, {knobs.batch, plan.columns}, knobs.gaps);
  const std::int64_t blocks = assign_blocks(random, knobs, plan, table);
  if (knobs.e4m3) made.metadata["kv_format"] = name_of(KvFormat::kE4m3);
  const auto descale_q =
      add_factors(random, made, "descale_q", knobs.e4m3 && knobs.descale_q, knobs.batch, false);
  const auto descale_k =
      add_factors(random, made, "descale_k", knobs.e4m3 && knobs.descale_k, knobs.batch, knobs.shared_pages);
  Tensor cache = new_tensor(knobs.e4m3 ? DataType::kU8 : knobs.type,
                            {blocks, knobs.page, knobs.h_kv, knobs.d_qk}, knobs.gaps);
  fill_pages(random, plan, table, descale_k, cache);
  Tensor q = new_tensor(knobs.type, {knobs.batch, knobs.s_q, knobs.h_q, knobs.d_qk}, knobs.gaps);
  for (std::int64_t b = 0; b < knobs.batch; ++b) {
    fill_part(random, q.view(), std::vector{b}, kQueryDeviation / descale_q[static_cast<std::size_t>(b)]);
  }
  made.tensors["q"] = std::move(q);
  made.tensors["cache_seqlens"] = seqlens_tensor(random, knobs, plan);
  made.tensors["block_table"] = std::move(table);
  made.tensors["kv_cache"] = std::move(cache);
  return made;
}

namespace {

// --- Selections -----------------------------------------------------------------------------------

struct SelectionKnobs {
  double invalid;
  double duplicates;
};

/// Fills one query's `topk` entries at `indices[offset...]`: those behind `length` are garbage, rows of
/// the others are marked in `listed`. Rows are drawn without repetition; where they run out, -1.
void select(Random& random, const SelectionKnobs& knobs, std::int64_t length, bool lonely,
            std::span<std::int32_t> entries, std::vector<std::int64_t>& order, std::vector<bool>& listed) {
  const auto rows = static_cast<std::int64_t>(order.size());
  std::int64_t drawn = 0;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (static_cast<std::int64_t>(i) >= length) {
      // Half of it looks valid, but its rows are NaN unless another query wants them.
      entries[i] = rows > 0 && random.chance(0.5) ? static_cast<std::int32_t>(random.between(0, rows - 1))
                                                  : garbage(random);
    } else if (lonely || random.chance(knobs.invalid)) {
      entries[i] = invalid_index(random, rows);
    } else if (i > 0 && random.chance(knobs.duplicates)) {
      entries[i] = entries[static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(i) - 1))];
    } else if (drawn == rows) {
      entries[i] = -1;
    } else {
      std::swap(order[static_cast<std::size_t>(drawn)],
                order[static_cast<std::size_t>(random.between(drawn, rows - 1))]);
      const std::int64_t row = order[static_cast<std::size_t>(drawn++)];
      entries[i] = static_cast<std::int32_t>(row);
      listed[static_cast<std::size_t>(row)] = true;
    }
  }
}

/// The part of `topk` that counts.
std::int64_t counted(const std::vector<std::int64_t>& lengths, std::int64_t i, std::int64_t topk) {
  return lengths.empty() ? topk : std::clamp<std::int64_t>(cycled(lengths, i), 0, topk);
}

// --- FP8 rows -------------------------------------------------------------------------------------

/// Bf16 values with a magnitude of their own, as tokens of real caches have, which makes scales differ.
void random_latent(Random& random, std::span<std::uint16_t> row) {
  const float magnitude = std::ldexp(kLatentDeviation, static_cast<int>(random.between(-3, 1)));
  for (std::uint16_t& value : row) value = float_to_bf16(random.normal() * magnitude);
}

/// A row of an FP8 cache as the quantizer writes it; sometimes with scales that are no powers of two,
/// where the format has such.
template <class Format>
void fill_fp8_token(Random& random, const Fp8Token& token) {
  std::uint16_t row[Format::kWidth];
  random_latent(random, row);
  store_row<Format>(row, row + Format::kQuantized, token);
  if (Format::kFormat != KvFormat::kFp8V32 || !random.chance(0.25)) return;
  for (int group = 0; group < Format::kGroups; ++group) {
    const float factor = 0.5f + static_cast<float>(random.between(1, 1 << 20)) * 0x1p-21f;
    Format::write_scale(token.scales, group, Format::read_scale(token.scales, group) * factor);
  }
}

/// Fills the listed tokens of a cache; the rest stays NaN.
void fill_tokens(Random& random, KvFormat format, Tensor& cache, const std::vector<bool>& listed) {
  const TensorView& view = cache.view();
  const std::int64_t page = view.shape[1];
  for (std::size_t i = 0; i < listed.size(); ++i) {
    if (!listed[i]) continue;
    const std::int64_t block = static_cast<std::int64_t>(i) / page;
    const std::int64_t row = static_cast<std::int64_t>(i) % page;
    const bool fp8 = with_fp8_format(format, [&]<class Format>() {
      fill_fp8_token<Format>(random, Format::token(PagedCache(view), block, row));
    });
    if (!fp8) fill_part(random, view, std::vector{block, row}, kLatentDeviation);
  }
}

/// One of the two caches of a sparse decode, with its indices.
struct CacheKnobs {
  std::string prefix;
  std::int64_t blocks;
  std::int64_t page;
  std::int64_t topk;
  const std::vector<std::int64_t>& topk_length;
};

void add_cache(Random& random, Case& made, const SparseDecodeKnobs& knobs, const CacheKnobs& cache) {
  const std::int64_t tokens = cache.blocks * cache.page;
  std::vector<bool> listed(static_cast<std::size_t>(tokens), false);
  std::vector<std::int64_t> order = shuffled(random, tokens);
  Tensor indices = new_tensor(DataType::kI32, {knobs.batch, knobs.s_q, cache.topk}, knobs.gaps);
  for (std::int64_t b = 0; b < knobs.batch; ++b) {
    for (std::int64_t i = 0; i < knobs.s_q; ++i) {
      auto* entries = indices.view().as<std::int32_t>() + offset_of(indices.view(), std::vector{b, i});
      select(random, {knobs.invalid, knobs.duplicates}, counted(cache.topk_length, b, cache.topk),
             random.chance(knobs.lonely), {entries, static_cast<std::size_t>(cache.topk)}, order, listed);
    }
  }
  const DataType type = row_type(knobs.format);
  Tensor rows = is_fp8(knobs.format)
                    ? new_fp8_cache(knobs.format, cache.blocks, cache.page, knobs.gaps)
                    : new_tensor(type, {cache.blocks, cache.page, knobs.h_kv, knobs.d_qk}, knobs.gaps);
  fill_tokens(random, knobs.format, rows, listed);
  made.tensors[cache.prefix + "indices"] = std::move(indices);
  made.tensors[cache.prefix + "kv_cache"] = std::move(rows);
  if (!cache.topk_length.empty()) {
    made.tensors[cache.prefix + "topk_length"] = lengths_tensor(cache.topk_length, knobs.batch);
  }
}

}  // namespace

Case make_sparse_decode(const SparseDecodeKnobs& given, std::uint64_t seed) {
  Random random(seed);
  SparseDecodeKnobs knobs = given;
  if (is_fp8(knobs.format)) {
    knobs.d_qk = fp8_width(knobs.format);
    knobs.h_kv = 1;
  } else {
    knobs.type = row_type(knobs.format);
  }
  Case made = new_case("sparse_decode", seed, knobs.gaps);
  made.metadata["head_dim_v"] = std::to_string(knobs.d_v);
  made.metadata["kv_format"] = name_of(knobs.format);
  made.metadata["split_size"] = std::to_string(knobs.split_size);
  add_cache(random, made, knobs, {"", knobs.blocks, knobs.page, knobs.topk, knobs.topk_length});
  if (knobs.extra_topk > 0) {
    add_cache(random, made, knobs,
              {"extra_", knobs.extra_blocks, knobs.extra_page, knobs.extra_topk, knobs.extra_topk_length});
  }
  made.tensors["q"] = normal_tensor(random, knobs.type, {knobs.batch, knobs.s_q, knobs.h_q, knobs.d_qk},
                                    knobs.gaps, kQueryDeviation);
  add_sinks(random, made, knobs.sinks, knobs.h_q);
  return made;
}

Case make_sparse_prefill(const SparsePrefillKnobs& knobs, std::uint64_t seed) {
  Random random(seed);
  Case made = new_case("sparse_prefill", seed, knobs.gaps);
  made.metadata["head_dim_v"] = std::to_string(knobs.d_v);
  Tensor indices = new_tensor(DataType::kI32, {knobs.s_q, knobs.h_kv, knobs.topk}, knobs.gaps);
  Tensor kv = new_tensor(knobs.type, {knobs.s_kv, knobs.h_kv, knobs.d_qk}, knobs.gaps);
  std::vector<std::int64_t> order = shuffled(random, knobs.s_kv);
  for (std::int64_t head = 0; head < knobs.h_kv; ++head) {
    std::vector<bool> listed(static_cast<std::size_t>(knobs.s_kv), false);
    for (std::int64_t i = 0; i < knobs.s_q; ++i) {
      auto* entries = indices.view().as<std::int32_t>() + offset_of(indices.view(), std::vector{i, head});
      select(random, {knobs.invalid, knobs.duplicates}, counted(knobs.topk_length, i, knobs.topk),
             random.chance(knobs.lonely), {entries, static_cast<std::size_t>(knobs.topk)}, order, listed);
    }
    for (std::int64_t row = 0; row < knobs.s_kv; ++row) {
      if (listed[static_cast<std::size_t>(row)]) {
        fill_part(random, kv.view(), std::vector{row, head}, kLatentDeviation);
      }
    }
  }
  made.tensors["indices"] = std::move(indices);
  made.tensors["kv"] = std::move(kv);
  made.tensors["q"] =
      normal_tensor(random, knobs.type, {knobs.s_q, knobs.h_q, knobs.d_qk}, knobs.gaps, kQueryDeviation);
  if (!knobs.topk_length.empty()) {
    made.tensors["topk_length"] = lengths_tensor(knobs.topk_length, knobs.s_q);
  }
  add_sinks(random, made, knobs.sinks, knobs.h_q);
  return made;
}

namespace {

// --- MHA ------------------------------------------------------------------------------------------

/// Bounds `[batch + 1]` of packed sequences, beginning at `first`, in a tensor of `total` rows.
Tensor bounds_tensor(Random& random, const std::vector<std::int64_t>& lengths, std::int64_t first,
                     std::int64_t total, bool wild) {
  const auto batch = static_cast<std::int64_t>(lengths.size());
  Tensor bounds(DataType::kI32, {batch + 1});
  std::int64_t bound = first;
  for (std::int64_t b = 0; b <= batch; ++b) {
    const std::int64_t length = b == 0 ? 0 : lengths[static_cast<std::size_t>(b - 1)];
    bound += length;
    std::int64_t stored = bound;
    if (wild && length == 0 && b > 0) stored -= random.between(0, 5);
    if (wild && bound == 0 && random.chance(0.5)) stored = -random.between(0, 1000);
    if (wild && bound == total && length > 0 && random.chance(0.5)) stored += random.between(0, 1000);
    bounds.set({b}, static_cast<double>(stored));
  }
  return bounds;
}

std::int64_t sum(const std::vector<std::int64_t>& numbers) {
  return std::accumulate(numbers.begin(), numbers.end(), std::int64_t{0});
}

/// Fills the rows of the sequences that `wanted` says; the rest stays NaN.
template <class Wanted>
Tensor packed_rows(Random& random, const MhaKnobs& knobs, const std::vector<std::int64_t>& lengths,
                   std::int64_t heads, std::int64_t width, Wanted&& wanted) {
  const std::int64_t total = sum(lengths) + 2 * knobs.uncovered_rows;
  Tensor rows = new_tensor(knobs.type, {total, heads, width}, knobs.gaps);
  std::int64_t row = knobs.uncovered_rows;
  for (std::size_t b = 0; b < lengths.size(); ++b) {
    for (std::int64_t i = 0; i < lengths[b]; ++i, ++row) {
      if (wanted(b)) fill_part(random, rows.view(), std::vector{row}, kMhaDeviation);
    }
  }
  return rows;
}

void add_mha_inputs(Random& random, Case& made, const MhaKnobs& knobs) {
  if (knobs.seqlens_q.size() != knobs.seqlens_k.size()) {
    throw Error(ErrorKind::kValue, fmt::format("{}: {} sequences of queries, but {} of keys", made.source,
                                               knobs.seqlens_q.size(), knobs.seqlens_k.size()));
  }
  const auto covered = [](std::size_t) { return true; };
  const auto seen = [&](std::size_t b) { return knobs.seqlens_q[b] > 0; };
  made.metadata["causal"] = knobs.causal ? "1" : "0";
  made.tensors["q"] = packed_rows(random, knobs, knobs.seqlens_q, knobs.h_q, knobs.d_qk, covered);
  made.tensors["k"] = packed_rows(random, knobs, knobs.seqlens_k, knobs.h_kv, knobs.d_qk, seen);
  made.tensors["v"] = packed_rows(random, knobs, knobs.seqlens_k, knobs.h_kv, knobs.d_v, seen);
  const auto add_bounds = [&](const char* name, const std::vector<std::int64_t>& lengths) {
    made.tensors[name] = bounds_tensor(random, lengths, knobs.uncovered_rows,
                                       sum(lengths) + 2 * knobs.uncovered_rows, knobs.wild_bounds);
  };
  add_bounds("cu_seqlens_q", knobs.seqlens_q);
  add_bounds("cu_seqlens_k", knobs.seqlens_k);
}

void add_gradient(Random& random, Case& made, const MhaKnobs& knobs) {
  made.metadata["deterministic"] = knobs.deterministic ? "1" : "0";
  made.tensors["d_out"] =
      packed_rows(random, knobs, knobs.seqlens_q, knobs.h_q, knobs.d_v, [](std::size_t) { return true; });
}

}  // namespace

Case make_mha_forward(const MhaKnobs& knobs, std::uint64_t seed) {
  Random random(seed);
  Case made = new_case("mha_forward", seed, knobs.gaps);
  add_mha_inputs(random, made, knobs);
  return made;
}

Case make_mha(const MhaKnobs& knobs, std::uint64_t seed) {
  Random random(seed);
  Case made = new_case("mha", seed, knobs.gaps);
  add_mha_inputs(random, made, knobs);
  add_gradient(random, made, knobs);
  return made;
}

Case make_mha_backward(const MhaKnobs& knobs, std::uint64_t seed) {
  Case forward = make_mha_forward(knobs, seed);
  std::vector<Result> results = run_case(forward, {.backend = knobs.backend});
  Case made = make_mha(knobs, seed);
  made.operation = "mha_backward";
  made.source = fmt::format("random mha_backward of seed {}", seed);
  for (Result& result : results) made.tensors[result.output] = std::move(result.got);
  return made;
}

namespace {

// --- Quantization ---------------------------------------------------------------------------------

/// Replaces some of a group's values: zeros, not finite, at the ends of bf16 and of e4m3.
void add_special_values(Random& random, std::span<std::uint16_t> group) {
  static constexpr std::uint16_t kValues[] = {
      0x0000, 0x8000,  // zeros
      0x7f80, 0xff80,  // infinities
      0x7fc0, 0xffff,  // NaN
      0x7f7f, 0xff7f,  // largest
      0x0001, 0x8080,  // subnormal, smallest normal
      0x43e0, 0xc3e2,  // 448, -452
  };
  if (random.chance(0.1)) std::ranges::fill(group, std::uint16_t{0});
  if (!random.chance(0.3)) return;
  for (std::int64_t count = random.between(1, 4); count > 0; --count) {
    const std::int64_t at = random.between(0, static_cast<std::int64_t>(group.size()) - 1);
    group[static_cast<std::size_t>(at)] = kValues[random.between(0, std::ssize(kValues) - 1)];
  }
}

void fill_random_bytes(Random& random, std::uint8_t* bytes, int count) {
  for (int i = 0; i < count; ++i) bytes[i] = static_cast<std::uint8_t>(random.next() >> 56);
}

/// A token with every code in it that an FP8 cache may hold.
template <class Format>
void fill_any_codes(Random& random, const Fp8Token& token) {
  fill_random_bytes(random, token.values, Format::kQuantized);
  fill_random_bytes(random, token.rope, 2 * Format::kRope);
  fill_random_bytes(random, token.scales, Format::kScaleBytes);
  if (Format::kFormat != KvFormat::kFp8V32) return;
  for (int group = 0; group < Format::kGroups; ++group) {
    Format::write_scale(token.scales, group, random_factor(random, -30, 30));
  }
}

}  // namespace

Case make_quantize_kv(const QuantizeKnobs& knobs, std::uint64_t seed) {
  Random random(seed);
  Case made = new_case("quantize_kv", seed, knobs.gaps);
  made.metadata["kv_format"] = name_of(knobs.format);
  const Tensor like = new_fp8_cache(knobs.format, 1, knobs.page, knobs.gaps);
  made.metadata["block_stride_bytes"] = std::to_string(like.view().strides[0]);
  const std::int64_t width = fp8_width(knobs.format);
  Tensor kv = new_tensor(DataType::kBf16, {knobs.blocks, knobs.page, 1, width}, knobs.gaps);
  constexpr std::int64_t kGroup = 64;  // a part of every format's groups
  for_each_index(std::vector{knobs.blocks, knobs.page}, [&](std::span<const std::int64_t> index) {
    auto* row = kv.view().as<std::uint16_t>() + offset_of(kv.view(), index);
    random_latent(random, {row, static_cast<std::size_t>(width)});
    for (std::int64_t i = 0; knobs.special_values && i < width; i += kGroup) {
      add_special_values(random, {row + i, kGroup});
    }
  });
  made.tensors["kv"] = std::move(kv);
  return made;
}

Case make_dequantize_kv(const QuantizeKnobs& knobs, std::uint64_t seed) {
  Random random(seed);
  Case made = new_case("dequantize_kv", seed, knobs.gaps);
  made.metadata["kv_format"] = name_of(knobs.format);
  Tensor cache = new_fp8_cache(knobs.format, knobs.blocks, knobs.page, knobs.gaps);
  for_each_index(std::vector{knobs.blocks, knobs.page}, [&](std::span<const std::int64_t> index) {
    with_fp8_format(knobs.format, [&]<class Format>() {
      const Fp8Token token = Format::token(PagedCache(cache.view()), index[0], index[1]);
      if (knobs.special_values) {
        fill_any_codes<Format>(random, token);
      } else {
        fill_fp8_token<Format>(random, token);
      }
    });
  });
  made.tensors["kv_cache"] = std::move(cache);
  return made;
}

Case make_append_kv(const AppendKvKnobs& given, std::uint64_t seed) {
  Random random(seed);
  AppendKvKnobs knobs = given;
  with_fp8_format(knobs.format, [&]<class Format>() {
    knobs.d_latent = Format::kQuantized;
    knobs.d_rope = Format::kRope;
  });
  Case made = new_case("append_kv", seed, knobs.gaps);
  made.metadata["kv_format"] = name_of(knobs.format);
  const DataType type = row_type(knobs.format);
  const std::int64_t width = knobs.d_latent + knobs.d_rope;
  made.tensors["kv_cache"] = is_fp8(knobs.format)
                                 ? new_fp8_cache(knobs.format, knobs.blocks, knobs.page, knobs.gaps)
                                 : new_tensor(type, {knobs.blocks, knobs.page, 1, width}, knobs.gaps);
  Tensor latent = new_tensor(type, {knobs.tokens, knobs.d_latent}, knobs.gaps);
  Tensor rope = new_tensor(type, {knobs.tokens, knobs.d_rope}, knobs.gaps);
  std::vector<std::int32_t> slots(static_cast<std::size_t>(knobs.tokens));
  std::vector<std::int64_t> order = shuffled(random, knobs.blocks * knobs.page);
  std::vector<bool> written(order.size(), false);
  select(random, {knobs.invalid, knobs.duplicates}, knobs.tokens, false, slots, order, written);
  Tensor slot_mapping(knobs.slot_type, {knobs.tokens});
  for (std::int64_t i = 0; i < knobs.tokens; ++i) {
    const std::int32_t slot = slots[static_cast<std::size_t>(i)];
    const bool valid = slot >= 0 && static_cast<std::size_t>(slot) < written.size();
    const bool wide = !valid && slot != -1 && knobs.slot_type == DataType::kI64 && random.chance(0.5);
    slot_mapping.set({i}, wide ? slot * 0x1p+30 : slot);
    if (!valid) continue;
    fill_part(random, latent.view(), std::vector{i}, kLatentDeviation);
    fill_part(random, rope.view(), std::vector{i}, kLatentDeviation);
  }
  made.tensors["latent"] = std::move(latent);
  made.tensors["rope"] = std::move(rope);
  made.tensors["slot_mapping"] = std::move(slot_mapping);
  return made;
}

// --- Merging and scheduling -----------------------------------------------------------------------

Case make_merge_states(const MergeStatesKnobs& knobs, std::uint64_t seed) {
  Random random(seed);
  Case made = new_case("merge_states", seed, knobs.gaps);
  made.metadata["out_type"] = name_of(knobs.out_type);
  constexpr float kOutDeviation = 0.1f;
  constexpr float kLseDeviation = 2;
  for (std::int64_t s = 0; s < knobs.states; ++s) {
    Tensor out = new_tensor(knobs.type, {knobs.batch, knobs.s_q, knobs.h_q, knobs.d_v}, knobs.gaps);
    Tensor lse =
        normal_tensor(random, DataType::kF32, {knobs.batch, knobs.h_q, knobs.s_q}, knobs.gaps, kLseDeviation);
    for_each_index(std::vector{knobs.batch, knobs.s_q, knobs.h_q}, [&](std::span<const std::int64_t> row) {
      if (random.chance(knobs.lonely)) {
        lse.set({row[0], row[2], row[1]}, random.chance(0.5) ? std::numeric_limits<double>::infinity()
                                                             : -std::numeric_limits<double>::infinity());
      } else {
        fill_part(random, out.view(), row, kOutDeviation);
      }
    });
    made.tensors[fmt::format("outs.{}", s)] = std::move(out);
    made.tensors[fmt::format("lses.{}", s)] = std::move(lse);
  }
  return made;
}

Case make_make_schedule(const MakeScheduleKnobs& knobs, std::uint64_t seed) {
  Case made = new_case("make_schedule", seed, false);
  const auto set = [&](const char* name, std::int64_t value) { made.metadata[name] = std::to_string(value); };
  set("batch", knobs.batch);
  set("parts", knobs.parts);
  set("split_size", knobs.split_size);
  if (!knobs.seqlens.empty()) {
    set("max_seqlen", knobs.max_seqlen);
    made.tensors["cache_seqlens"] = lengths_tensor(knobs.seqlens, knobs.batch);
    return made;
  }
  set("topk", knobs.topk);
  set("extra_topk", knobs.extra_topk);
  if (!knobs.topk_length.empty()) {
    made.tensors["topk_length"] = lengths_tensor(knobs.topk_length, knobs.batch);
  }
  if (!knobs.extra_topk_length.empty()) {
    made.tensors["extra_topk_length"] = lengths_tensor(knobs.extra_topk_length, knobs.batch);
  }
  return made;
}

}  // namespace flashmla::cases
