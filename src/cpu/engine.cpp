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

bool processor_has_amx_bf16() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr unsigned kAmxBf16AndTile = 1u << 22 | 1u << 24;  // CPUID leaf 7, EDX
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return processor_has_avx512_bf16() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 &&
         (edx & kAmxBf16AndTile) == kAmxBf16AndTile;
#else
  return false;
#endif
}

/// Tiles are state that a process must ask Linux for. From then on the process needs larger stacks for signal
/// handlers, so it is asked when tiles are going to be used, not before.
bool system_grants_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

/// Intel's processors without tiles multiply f32 at twice the rate of bf16 pairs (measured: docs/cpu.md).
bool bf16_pairs_are_slow() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

/// An engine and whether this processor has its instructions.
struct Candidate {
  std::string_view name;
  const Engine* engine;
  bool processor_has_it;

  bool usable() const {
    if (engine == nullptr || !processor_has_it) return false;
    return engine != kAmxBf16Engine || system_grants_tiles();
  }
};

/// Each with more instructions than the next.
std::array<Candidate, 5> candidates() {
  return {Candidate{"amx_bf16", kAmxBf16Engine, processor_has_amx_bf16()},
          Candidate{"avx512_bf16", kAvx512Bf16Engine, processor_has_avx512_bf16()},
          Candidate{"avx512", kAvx512Engine, processor_has_avx512()},
          Candidate{"avx2", kAvx2Engine, processor_has_avx2()}, Candidate{"portable", kPortableEngine, true}};
}

struct Choice {
  const Engine* bf16 = nullptr;  ///< the best engine
  const Engine* f32 = nullptr;   ///< the best one that multiplies f32
};

/// The engine named, or the best one; and the best one from there on that multiplies f32.
Choice choose(std::string_view wanted) {
  constexpr std::string_view kVariable = "FLASHMLA_CPU_ISA";
  Choice choice;
  bool reached = wanted.empty();
  for (const Candidate& candidate : candidates()) {
    reached |= candidate.name == wanted;
    if (!reached) continue;
    const Engine* engine = candidate.usable() ? candidate.engine : nullptr;
    if (candidate.name == wanted && engine == nullptr) {
      fail(ErrorKind::kValue, kVariable, wanted, " is an instruction set that this processor does not have");
    }
    if (engine == nullptr) continue;
    const bool slow = wanted.empty() && engine == kAvx512Bf16Engine && bf16_pairs_are_slow();
    if (choice.bf16 == nullptr && !slow) choice.bf16 = engine;
    if (choice.f32 == nullptr && engine->pack == 1) choice.f32 = engine;
  }
  if (!reached) {
    fail(ErrorKind::kValue, kVariable, "must be amx_bf16, avx512_bf16, avx512, avx2 or portable, got \"",
         wanted, "\"");
  }
  return choice;
}

const Choice& choice() {
  static const Choice chosen = [] {
    const char* variable = std::getenv("FLASHMLA_CPU_ISA");
    return choose(variable == nullptr ? "" : variable);
  }();
  return chosen;
}

}  // namespace

std::vector<const Engine*> engines() {
  std::vector<const Engine*> available;
  for (const Candidate& candidate : candidates()) {
    if (candidate.usable()) available.push_back(candidate.engine);
  }
  return available;
}

const Engine& engine_for(DataType a, DataType b) {
  const bool both_bf16 = a == DataType::kBf16 && b == DataType::kBf16;
  return both_bf16 ? *choice().bf16 : *choice().f32;
}

std::string_view instruction_set() { return choice().bf16->instruction_set; }

}  // namespace flashmla::cpu
