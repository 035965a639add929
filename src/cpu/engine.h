// The steps of attention that depend on the instruction set, as a table of functions.
#pragma once

#include <cstdint>
#include <vector>

#include "flashmla/tensor.h"

namespace flashmla::cpu {

/// Keys (or, in the backward pass, queries) that are handled together: one block of scores is
/// `kBlockTokens x kMaxRows` floats, 32 KiB, about a first-level cache.
inline constexpr int kBlockTokens = 64;

/// Rows (query tokens times heads) that share a block of keys.
inline constexpr int kMaxRows = 128;

/// Columns of an accumulator row are padded to a multiple of this.
inline constexpr int kColumnTile = 64;

/// The unit of a score's sum: four bytes that hold `pack` numbers, two bf16 or one f32.
using Unit = std::uint32_t;

struct SoftmaxBlock {
  int tokens;                  ///< keys in this block
  std::int64_t rows;           ///< row count of the panels, a multiple of Engine::lanes
  const float* scores;         ///< `[tokens][rows]`, not scaled
  float scale_log2;            ///< softmax_scale * log2(e)
  const std::int32_t* limits;  ///< `[rows]`: keys of the block that a row sees; null: all
  float* max;                  ///< `[rows]`, in and out: largest logit so far, base 2; -inf at first
  float* sum;                  ///< `[rows]`, in and out: sum of 2^(logit - max)
  float* correction;           ///< `[rows]`, out: factor for what was accumulated before
  float* weights;              ///< `[tokens][rows]`, out: 2^(logit - max)
};

/// Statistics of the softmax are per query: per row where rows are queries, per token where tokens are.
struct GradientBlock {
  int tokens;
  std::int64_t rows;
  const float* scores;     ///< `[tokens][rows]`: <q, k>
  const float* d_weights;  ///< `[tokens][rows]`: <d_out, v>
  float softmax_scale;
  const float* lse_log2;          ///< lse * log2(e) of each query
  const float* delta;             ///< <d_out, out> of each query
  const std::int32_t* first_row;  ///< `[tokens]`: a token and the rows `[first_row, last_row)` see each
  const std::int32_t* last_row;   ///< other
  float* weights;                 ///< `[tokens][rows]`, out: P
  float* d_scores;                ///< `[tokens][rows]`, out: softmax_scale * P * (d_weights - delta)
};

/// `sums[row][column] = sums[row][column] * correction[row] + sum over tokens of factors[token][row] *
/// values[token][column]`, for rows `[first_row, last_row)`. In f32: a bf16 factor would be off by up to
/// 2^-9, which shows wherever few keys, or many equal ones, carry the weight.
struct Accumulation {
  const float* factors;  ///< `[tokens][rows]`
  std::int64_t rows;
  int first_row;
  int last_row;
  int tokens;
  const float* values;  ///< `[tokens][stride]`
  std::int64_t stride;
  const float* correction;  ///< `[rows]`; null: the sums start at zero
  float* sums;              ///< `[rows][columns]`
  std::int64_t columns;     ///< a multiple of kColumnTile
};

/// One way to multiply. All row pointers name rows of 16-bit numbers of type bf16 or f16.
struct Engine {
  const char* instruction_set;
  int pack;   ///< numbers in a unit
  int lanes;  ///< rows of a panel are padded to a multiple of this

  /// Transposes `count` rows of `width` numbers into a panel `[width / pack][rows]`, zeros behind.
  void (*pack_rows)(const void* const* source, DataType type, int count, int width, std::int64_t rows,
                    Unit* panel);

  /// Makes rows readable as units: `units[i]` is row i as `[width / pack]`. Uses `scratch`
  /// `[count][width]` floats if the engine has to convert.
  void (*key_rows)(const void* const* source, DataType type, int count, int width, float* scratch,
                   const Unit** units);

  /// Rows as f32 `[count][stride]`, zeros behind `width`.
  void (*value_panel)(const void* const* source, DataType type, int count, int width, std::int64_t stride,
                      float* panel);

  /// `scores[token][row] = sum over steps of panel[step][row] * tokens[token][step]`.
  void (*scores)(const Unit* panel, std::int64_t rows, const Unit* const* tokens, int count, int steps,
                 float* scores);

  void (*softmax)(const SoftmaxBlock& block);

  void (*gradient_of_query_rows)(const GradientBlock& block);
  void (*gradient_of_key_rows)(const GradientBlock& block);

  void (*accumulate)(const Accumulation& work);

  /// Whether a 16-bit row holds neither infinity nor NaN.
  bool (*all_finite)(const void* source, DataType type, int count);

  /// 16-bit or f32 numbers to f32.
  void (*widen)(const void* source, DataType type, int count, float* out);

  /// `out = in * factor` rounded to `type`.
  void (*narrow)(const float* source, float factor, int count, DataType type, void* out);

  /// e4m3 values times a scale, rounded to bf16.
  void (*dequantize)(const std::uint8_t* values, float scale, int count, std::uint16_t* out);

  /// bf16 numbers times `inverse_scale`, rounded to e4m3; at most 448 after scaling, or NaN.
  void (*quantize)(const std::uint16_t* source, float inverse_scale, int count, std::uint8_t* values);
};

/// The engines that this processor can run, best first.
std::vector<const Engine*> engines();

/// The engine for products of these 16-bit types on this machine: bf16 pairs where both are bf16 and the
/// processor multiplies them, f32 otherwise. The environment variable FLASHMLA_CPU_ISA may name a
/// lesser one: it is how all engines are tested on one machine. Throws Error if it names none that can run.
const Engine& engine_for(DataType a, DataType b);

// One per instruction set; null where the library was built for another architecture.
extern const Engine* const kAvx512Bf16Engine;
extern const Engine* const kAvx512Engine;
extern const Engine* const kAvx2Engine;
extern const Engine* const kPortableEngine;

}  // namespace flashmla::cpu
