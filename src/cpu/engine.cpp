// Chooses the engine for this machine.
#include "cpu/engine.h"

#include <array>
#include <cstdlib>

#include "cpu/cpu.h"

namespace flashmla::cpu {
namespace {

bool processor_has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

bool processor_has_avx512() {
#if defined(__x86_64__)
  return processor_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

bool processor_has_avx512_bf16() {
#if defined(__x86_64__)
  return processor_has_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

struct Choice {
  const Engine* bf16 = nullptr;  ///< the best engine
  const Engine* f32 = nullptr;   ///< the best one that multiplies f32
};

/// `wanted`: name of an instruction set, or null for the best.
Choice choose(const char* wanted) {
  Choice choice;
  for (const Engine* engine : engines()) {
    if (engine == nullptr) continue;
    if (choice.bf16 == nullptr && wanted != nullptr && std::string_view(engine->instruction_set) != wanted)
      continue;
    if (choice.bf16 == nullptr) choice.bf16 = engine;
    if (choice.f32 == nullptr && engine->pack == 1) choice.f32 = engine;
  }
  return choice;
}

const Choice& choice() {
  static const Choice chosen = choose(std::getenv("FLASHMLA_INSTRUCTION_SET"));
  return chosen;
}

}  // namespace

std::array<const Engine*, 4> engines() {
  return {processor_has_avx512_bf16() ? kAvx512Bf16Engine : nullptr,
          processor_has_avx512() ? kAvx512Engine : nullptr, processor_has_avx2() ? kAvx2Engine : nullptr,
          kPortableEngine};
}

const Engine& engine_for(DataType a, DataType b) {
  const bool both_bf16 = a == DataType::kBf16 && b == DataType::kBf16;
  return both_bf16 ? *choice().bf16 : *choice().f32;
}

std::string_view instruction_set() {
  return choice().bf16 != nullptr ? choice().bf16->instruction_set : std::string_view();
}

}  // namespace flashmla::cpu
