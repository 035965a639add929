// Chooses the engine for this machine.
#include "cpu/engine.h"

#include "cpu/cpu.h"

namespace flashmla::cpu {
namespace {

bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

bool has_avx512() {
#if defined(__x86_64__)
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

bool has_avx512_bf16() {
#if defined(__x86_64__)
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

const Engine& f32_engine() {
  static const Engine& engine = has_avx512() ? *kAvx512Engine : has_avx2() ? *kAvx2Engine : *kPortableEngine;
  return engine;
}

const Engine& bf16_engine() {
  static const Engine& engine = has_avx512_bf16() ? *kAvx512Bf16Engine : f32_engine();
  return engine;
}

}  // namespace

const Engine& engine_for(DataType a, DataType b) {
  return a == DataType::kBf16 && b == DataType::kBf16 ? bf16_engine() : f32_engine();
}

std::string_view instruction_set() { return bf16_engine().instruction_set; }

}  // namespace flashmla::cpu
