// A paged cache of any format for tests: unwritten memory is poison, rows are read by the layout rules.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "attention.h"
#include "cases/random.h"
#include "cases/tensor.h"
#include "flashmla/kv_format.h"
#include "float_rules.h"

namespace flashmla {

inline bool is_fp8(KvFormat format) { return format == KvFormat::kFp8V32 || format == KvFormat::kFp8Model1; }

inline DataType element_type(KvFormat format) {
  if (is_fp8(format) || format == KvFormat::kE4m3) return DataType::kU8;
  return format == KvFormat::kF16 ? DataType::kF16 : DataType::kBf16;
}

inline cases::Tensor make_cache(KvFormat format, std::int64_t blocks, std::int64_t page, std::int64_t h_kv,
                                std::int64_t d_qk) {
  if (is_fp8(format)) return cases::fp8_cache(format, blocks, page);
  return cases::Tensor(element_type(format), {blocks, page, h_kv, d_qk});
}

/// Fills all memory with one 16-bit pattern, for example infinity.
inline void fill_words(const cases::Tensor& tensor, std::uint16_t pattern) {
  const auto memory = tensor.memory();
  for (std::size_t i = 0; i + 1 < memory.size(); i += 2) std::memcpy(&memory[i], &pattern, 2);
}

inline Row random_row(std::int64_t width, cases::Random& random) {
  Row row;
  for (std::int64_t c = 0; c < width; ++c) row.push_back(random.normal());
  return row;
}

/// Where the parts of an FP8 token begin, in bytes from the cache's first one.
struct Fp8Place {
  std::int64_t values, scales, rope;
};

inline Fp8Place fp8_place(const TensorView& cache, std::int64_t block, std::int64_t row) {
  const std::int64_t begin = block * cache.strides[0];
  if (cache.shape[3] == 656) {
    const std::int64_t at = begin + row * cache.strides[1];
    return {at, at + 512, at + 512 + 16};
  }
  return {begin + row * 576, begin + cache.shape[1] * 576 + row * 8, begin + row * 576 + 448};
}

/// The scale of a group of values of an FP8 token.
inline double fp8_scale(const TensorView& cache, const Fp8Place& place, std::int64_t group) {
  const auto* scales = cache.as<const std::uint8_t>() + place.scales;
  if (cache.shape[3] == 584) return ue8m0_value(scales[group]);
  float scale = 0;
  std::memcpy(&scale, scales + 4 * group, 4);
  return scale;
}

/// The values of a token as kernels must see them: e4m3 * scale, rounded to bf16.
inline Row fp8_row(const TensorView& cache, std::int64_t block, std::int64_t row) {
  const bool v32 = cache.shape[3] == 656;
  const std::int64_t quantized = v32 ? 512 : 448;
  const std::int64_t group = v32 ? 128 : 64;
  const Fp8Place place = fp8_place(cache, block, row);
  const auto* bytes = cache.as<const std::uint8_t>();
  Row result;
  for (std::int64_t c = 0; c < quantized; ++c) {
    result.push_back(round_to_bf16(e4m3_value(bytes[place.values + c]) * fp8_scale(cache, place, c / group)));
  }
  const TensorView rope = TensorView::contiguous(bytes + place.rope, DataType::kBf16, {1, 64});
  const Row rope_row = row_at(rope, {0});
  result.insert(result.end(), rope_row.begin(), rope_row.end());
  return result;
}

/// Random codes with values up to 3.5 and scales that are no powers of two where the format allows it.
inline void write_random_fp8(const TensorView& cache, std::int64_t block, std::int64_t row,
                             cases::Random& random) {
  const bool v32 = cache.shape[3] == 656;
  const Fp8Place place = fp8_place(cache, block, row);
  auto* bytes = cache.as<std::uint8_t>();
  for (std::int64_t c = 0; c < (v32 ? 512 : 448); ++c) {
    bytes[place.values + c] = static_cast<std::uint8_t>(nearest_e4m3(random.normal()));
  }
  for (std::int64_t group = 0; group < (v32 ? 4 : 7); ++group) {
    if (v32) {
      const float scale = static_cast<float>(random.between(1, 1000)) / 1024.0f;
      std::memcpy(bytes + place.scales + 4 * group, &scale, 4);
    } else {
      bytes[place.scales + group] = static_cast<std::uint8_t>(random.between(124, 128));
    }
  }
  const TensorView rope = TensorView::contiguous(bytes + place.rope, DataType::kBf16, {1, 64});
  set_row(rope, {0}, random_row(64, random));
}

/// A random row in every head of a token.
inline void write_random_token(const TensorView& cache, std::int64_t token, cases::Random& random) {
  const std::int64_t block = token / cache.shape[1];
  const std::int64_t row = token % cache.shape[1];
  if (cache.type == DataType::kU8) return write_random_fp8(cache, block, row, random);
  for (std::int64_t head = 0; head < cache.shape[2]; ++head) {
    set_row(cache, {block, row, head}, random_row(cache.shape[3], random));
  }
}

inline Row token_row(const TensorView& cache, std::int64_t token, std::int64_t head) {
  const std::int64_t block = token / cache.shape[1];
  const std::int64_t row = token % cache.shape[1];
  return cache.type == DataType::kU8 ? fp8_row(cache, block, row) : row_at(cache, {block, row, head});
}

inline std::vector<Row> token_rows(const TensorView& cache, const Positions& tokens, std::int64_t head) {
  std::vector<Row> rows;
  for (const std::int64_t token : tokens) rows.push_back(token_row(cache, token, head));
  return rows;
}

inline void fill_random(const cases::Tensor& tensor, cases::Random& random) {
  cases::for_each_index(tensor.view(), [&](std::span<const std::int64_t> index) {
    cases::set_element(tensor.view(), index, random.normal());
  });
}

}  // namespace flashmla
