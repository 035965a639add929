// Chooses the engine for this machine.
#include "cpu/engine.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <array>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "api/message.h"
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

/// Tiles are state that a process must ask the system for, once.
bool processor_has_amx_bf16() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr unsigned kAmxBf16AndTile = 1u << 22 | 1u << 24;  // CPUID leaf 7, EDX
  constexpr long kRequestPermission = 0x1023;                // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;                             // XFEATURE_XTILEDATA
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  return processor_has_avx512_bf16() && (edx & kAmxBf16AndTile) == kAmxBf16AndTile &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

/// Every engine's name and whether this processor can run it, each with more instructions than the next.
struct Candidate {
  std::string_view name;
  const Engine* engine;
};

std::array<Candidate, 5> candidates() {
  return {Candidate{"amx_bf16", processor_has_amx_bf16() ? kAmxBf16Engine : nullptr},
          Candidate{"avx512_bf16", processor_has_avx512_bf16() ? kAvx512Bf16Engine : nullptr},
          Candidate{"avx512", processor_has_avx512() ? kAvx512Engine : nullptr},
          Candidate{"avx2", processor_has_avx2() ? kAvx2Engine : nullptr},
          Candidate{"portable", kPortableEngine}};
}

struct Choice {
  const Engine* bf16 = nullptr;  ///< the best engine
  const Engine* f32 = nullptr;   ///< the best one that multiplies f32
};

/// Intel's processors without tiles multiply f32 at twice the rate of bf16 pairs (measured: docs/cpu.md).
bool bf16_pairs_are_slow() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

/// The engine named, and the best one from there on that multiplies f32.
Choice choose_from(std::string_view wanted) {
  constexpr std::string_view kVariable = "FLASHMLA_CPU_ISA";
  Choice choice;
  for (const auto& [name, engine] : candidates()) {
    if (name == wanted && engine == nullptr) {
      fail(ErrorKind::kValue, kVariable, wanted, " is an instruction set that this processor does not have");
    }
    if (name == wanted) choice.bf16 = engine;
    if (choice.bf16 == nullptr || engine == nullptr) continue;
    if (choice.f32 == nullptr && engine->pack == 1) choice.f32 = engine;
  }
  if (choice.bf16 == nullptr) {
    fail(ErrorKind::kValue, kVariable, "must be amx_bf16, avx512_bf16, avx512, avx2 or portable, got \"",
         wanted, "\"");
  }
  return choice;
}

Choice choose_best() {
  Choice choice;
  for (const auto& [name, engine] : candidates()) {
    if (engine == nullptr) continue;
    if (choice.f32 == nullptr && engine->pack == 1) choice.f32 = engine;
    const bool slow = engine == kAvx512Bf16Engine && bf16_pairs_are_slow();
    if (choice.bf16 == nullptr && !slow) choice.bf16 = engine;
  }
  return choice;
}

const Choice& choice() {
  const char* variable = std::getenv("FLASHMLA_CPU_ISA");
  static const Choice chosen =
      variable == nullptr || *variable == '\0' ? choose_best() : choose_from(variable);
  return chosen;
}

}  // namespace

std::vector<const Engine*> engines() {
  std::vector<const Engine*> available;
  for (const Candidate& candidate : candidates()) {
    if (candidate.engine != nullptr) available.push_back(candidate.engine);
  }
  return available;
}

const Engine& engine_for(DataType a, DataType b) {
  const bool both_bf16 = a == DataType::kBf16 && b == DataType::kBf16;
  return both_bf16 ? *choice().bf16 : *choice().f32;
}

std::string_view instruction_set() { return choice().bf16->instruction_set; }

}  // namespace flashmla::cpu
