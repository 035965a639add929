// The steps of attention that depend on the instruction set, as a table of functions.
#pragma once

#include <cstdint>
#include <vector>

#include "flashmla/tensor.h"

namespace flashmla::cpu {

/// Most keys (or, in the backward pass, queries) that an engine handles together.
inline constexpr int kMaxBlockTokens = 256;

/// Most rows (query tokens times heads) that share a block of keys: of multi-head attention.
inline constexpr int kMaxRows = 256;

/// Rows that share a block where more state belongs to a row, so that all of it stays in the second-level
/// cache: latent attention, with its 512 columns, and gradients.
inline constexpr int kWideRows = 128;

/// Columns that are summed up are padded to a multiple of this.
inline constexpr int kColumnTile = 64;

/// The unit of a score's sum: four bytes that hold `pack` numbers, two bf16 or one f32.
using Unit = std::uint32_t;

/// Steps of a panel are padded to a multiple of this.
inline constexpr int kPanelSteps = 16;

/// Steps of a panel of rows of this width, as many units each. Internal linkage: every file has its own.
static constexpr int panel_steps(int width, int pack) {
  return (width / pack + kPanelSteps - 1) / kPanelSteps * kPanelSteps;
}

/// `scores[token][row] = <row, token>`. A *score block* holds a number for each token and row; `lanes` rows
/// stand together: `[rows / lanes][block_tokens][lanes]`.
struct ScoreWork {
  const Unit* panel;           ///< the rows, from pack_rows
  std::int64_t rows;           ///< a multiple of Engine::lanes
  int few_rows;                ///< as in pack_rows
  const Unit* const* tokens;   ///< from token_units
  int count;                   ///< tokens
  int width;                   ///< numbers in a row
  const std::int32_t* limits;  ///< `[rows]`, never falling: tokens that a row needs; null: all
  float* scratch;              ///< token_scratch(width) floats, those that token_units used
  float* scores;               ///< score block, out; undefined where no row of a group needs a token
};

struct SoftmaxBlock {
  int tokens;                  ///< keys in this block
  std::int64_t rows;           ///< a multiple of Engine::lanes
  float scale_log2;            ///< softmax_scale * log2(e)
  const std::int32_t* limits;  ///< `[rows]`, never falling: keys that a row sees; null: all
  float* scores;               ///< score block, not scaled; overwritten
  void* factors;               ///< factor block, out: 2^(logit - max), zero if not seen
  float* max;                  ///< `[rows]`, in and out: largest logit so far, base 2; -inf at first
  float* sum;                  ///< `[rows]`, in and out: sum of 2^(logit - max)
  float* correction;           ///< `[rows]`, out: factor for what was accumulated before
};

/// Statistics of the softmax are per query: per row where rows are queries, per token where tokens are.
struct GradientBlock {
  int tokens;
  std::int64_t rows;
  float softmax_scale;
  const float* lse_log2;          ///< lse * log2(e) of each query
  const float* delta;             ///< <d_out, out> of each query
  const std::int32_t* first_row;  ///< `[tokens]`: a token and the rows `[first_row, last_row)` see each
  const std::int32_t* last_row;   ///< other
  float* scores;                  ///< score block <q, k>; overwritten
  float* d_weights;               ///< score block <d_out, v>; overwritten
  void* weights;                  ///< factor block, out: P
  void* d_scores;                 ///< factor block, out: softmax_scale * P * (d_weights - delta)
};

/// A *factor block* holds a number for each token and row in an engine's own form.
///
/// `sums[row][column] = sums[row][column] * correction[row] + sum over tokens of factors[token][row] *
/// values[token][column]`, for rows `[first_row, last_row)`. Factors count with 16 bits at least: a bf16
/// factor would be off by up to 2^-9, which shows wherever few keys, or many equal ones, carry the weight.
struct Accumulation {
  const void* factors;  ///< factor block
  int first_row;
  int last_row;
  int tokens;
  const std::int32_t* limits;  ///< `[last_row]`, never falling: factors behind are zero; null: no such
  const void* values;          ///< from value_panel; or f32 units, where `pack` is 1
  std::int64_t value_stride;   ///< numbers in a row of `values`
  std::int64_t columns;        ///< a multiple of kColumnTile
  const float* correction;     ///< `[rows]`; null: the sums start at zero
  float* sums;                 ///< `[rows][stride]`
  std::int64_t stride;
};

/// `out[i] = sum over rows of weights[row] * rows[row][i]`, rounded to `out_type`.
struct WeightedSum {
  const void* const* rows;
  const float* weights;
  int count;  ///< rows
  DataType type;
  int width;
  DataType out_type;
  void* out;  ///< may be one of the rows if its type is theirs
};

/// Stores past the caches, for what is large and not read again soon: another store reads each line before
/// it writes it. All null where the instruction set has no such store.
struct Streams {
  void (*copy)(const void* source, std::int64_t bytes, void* out) = nullptr;
  /// Before another thread may look.
  void (*fence)() = nullptr;
};

/// One way to multiply. All row pointers name rows of 16-bit numbers of type bf16 or f16.
struct Engine {
  const char* instruction_set;
  int pack;          ///< numbers in a unit
  int lanes;         ///< rows that stand together
  int block_tokens;  ///< tokens of a score block, at most kMaxBlockTokens
  int factor_bytes;  ///< of a token and row in a factor block; 0: a score block serves as one, in place

  /// Floats that token_units and scores need for tokens of this width.
  std::size_t (*token_scratch)(int width);

  /// Floats that a value panel of this many columns takes.
  std::size_t (*value_panel_size)(std::int64_t columns);

  /// Most rows of a last group that are better packed as they are, so that no products are spent on rows that
  /// are not there.
  int most_few_rows;

  /// Transposes `count` rows of `width` numbers into a panel `[rows / lanes][steps][lanes]`, zeros behind;
  /// steps are panel_steps(width, pack). With `few_rows`, the last group has so many rows and stands in the
  /// panel as `[lanes][steps]`. Scores of the same rows, packed in one way and the other, may differ in bits.
  void (*pack_rows)(const void* const* source, DataType type, int count, int width, std::int64_t rows,
                    int few_rows, Unit* panel);

  /// Makes tokens readable as units: `units[i]` is token i as `[width / pack]`.
  void (*token_units)(const void* const* source, DataType type, int count, int width, float* scratch,
                      const Unit** units);

  /// Tokens as the values of an Accumulation, zeros behind `width`.
  void (*value_panel)(const void* const* source, DataType type, int count, int width, std::int64_t columns,
                      void* panel);

  void (*scores)(const ScoreWork& work);

  void (*softmax)(const SoftmaxBlock& block);

  void (*gradient_of_query_rows)(const GradientBlock& block);
  void (*gradient_of_key_rows)(const GradientBlock& block);

  void (*accumulate)(const Accumulation& work);

  /// `target = target * target_factor + source * source_factor`.
  void (*blend)(float* target, float target_factor, const float* source, float source_factor, int count);

  /// Whether a 16-bit row holds neither infinity nor NaN.
  bool (*all_finite)(const void* source, DataType type, int count);

  /// 16-bit or f32 numbers to f32.
  void (*widen)(const void* source, DataType type, int count, float* out);

  /// `out = in * factor` rounded to `type`.
  void (*narrow)(const float* source, float factor, int count, DataType type, void* out);

  void (*weighted_sum)(const WeightedSum& work);

  // FP8 rows are groups of `group` numbers, a multiple of 64, with a scale each.

  /// e4m3 values times the scale of their group, rounded to bf16.
  void (*dequantize)(const std::uint8_t* values, const float* scales, int groups, int group,
                     std::uint16_t* out);

  /// bf16 numbers times the inverse scale of their group, rounded to e4m3; at most 448 after scaling, or NaN.
  void (*quantize)(const std::uint16_t* source, const float* inverse_scales, int groups, int group,
                   std::uint8_t* values);

  /// The bits of the largest magnitude among the finite ones of each group of bf16 numbers.
  void (*largest_finite)(const std::uint16_t* source, int groups, int group, std::uint16_t* largest);

  Streams streams;
};

/// Whether an output of so many bytes is stored past the caches. A smaller one stays in them: whoever asked
/// for it may read it next.
inline bool is_streamed(const Engine& engine, std::int64_t bytes) {
  constexpr std::int64_t kLarge = std::int64_t{32} << 20;
  return engine.streams.copy != nullptr && bytes >= kLarge;
}

/// The engines that this processor can run, best first.
std::vector<const Engine*> engines();

/// The engine for products of these 16-bit types on this machine: where both are bf16, tiles or bf16 pairs
/// where they are fast, f32 otherwise. The environment variable FLASHMLA_CPU_ISA may name another: it is how
/// all engines are tested on one machine. Throws Error if it names none that can run.
const Engine& engine_for(DataType a, DataType b);

// One per instruction set; null where the library was built for another architecture.
extern const Engine* const kAmxBf16Engine;
extern const Engine* const kAvx512Bf16Engine;
extern const Engine* const kAvx512Engine;
extern const Engine* const kAvx2Engine;
extern const Engine* const kPortableEngine;

}  // namespace flashmla::cpu
