// The engine for every other processor: vectors of four floats, which a compiler maps to SSE2 or NEON.
#include "cpu/engine.h"
#include "cpu/tiles.h"

namespace flashmla::cpu {
namespace {

struct Portable {
  static constexpr int kLanes = 4;
  using F32 = float __attribute__((vector_size(16)));
  using I32 = std::int32_t __attribute__((vector_size(16)));
  using U16 = std::uint16_t __attribute__((vector_size(8)));
  using U8 = std::uint8_t __attribute__((vector_size(4)));
  using TwoU16 = std::uint16_t __attribute__((vector_size(16)));
  using TwoU8 = std::uint8_t __attribute__((vector_size(8)));

  static F32 fma(F32 a, F32 b, F32 c) { return a * b + c; }
  static F32 max(F32 a, F32 b) { return a > b ? a : b; }

  static I32 widen(U16 from) { return __builtin_convertvector(from, I32); }
  static I32 widen(U8 from) { return __builtin_convertvector(from, I32); }

  static TwoU16 look_up(TwoU16 table, TwoU16 index) {
    TwoU16 found{};
    for (int i = 0; i < 2 * kLanes; ++i) found[i] = table[index[i] & 7];
    return found;
  }

  static F32 widen_f16(U16 from) {
    const I32 bits = __builtin_convertvector(from, I32);
    const I32 magnitude = bits & 0x7fff;
    const F32 normal = bits_as<F32>((magnitude << 13) + (112 << 23));
    const F32 subnormal = __builtin_convertvector(magnitude, F32) * 0x1p-24f;
    const F32 special = bits_as<F32>((magnitude << 13) | 0x7f800000);
    const F32 finite = magnitude < 0x400 ? subnormal : normal;
    const F32 value = magnitude < 0x7c00 ? finite : special;
    return bits_as<F32>(bits_as<I32>(value) | ((bits & 0x8000) << 16));
  }

  /// Round to nearest even; overflow to infinity.
  static U16 narrow_f16(F32 from) {
    const I32 bits = bits_as<I32>(from);
    const I32 magnitude = bits & 0x7fffffff;
    const I32 normal = ((magnitude + 0xfff + ((magnitude >> 13) & 1)) >> 13) - (112 << 10);
    const F32 steps = bits_as<F32>(magnitude) + 0.5f;  // a step of 0.5's last place is 2^-24
    const I32 subnormal = bits_as<I32>(steps) - (126 << 23);
    const I32 smallest_normal = I32{} + (113 << 23);
    const I32 largest = I32{} + 0x477ff000;  // rounds to 65536
    const I32 finite = magnitude < smallest_normal ? subnormal : normal;
    const I32 value = magnitude < largest ? finite : I32{} + 0x7c00;
    const I32 nan = I32{} + 0x7e00;
    return __builtin_convertvector((from == from ? value : nan) | ((bits >> 16) & 0x8000), U16);
  }
};

}  // namespace

static constexpr Engine kEngine = Tiles<F32Operand<Portable>>::engine("portable");
const Engine* const kPortableEngine = &kEngine;
}  // namespace flashmla::cpu
