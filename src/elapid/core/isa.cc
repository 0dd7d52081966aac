#include "elapid/core/isa.h"

#include "elapid/core/error.h"

#include <array>
#include <atomic>
#include <cpuid.h>
#include <cstdlib>
#include <string>
#include <sys/syscall.h>
#include <unistd.h>

namespace elapid {
namespace {

constexpr std::array kLevels = {Isa::baseline, Isa::avx2, Isa::avx512, Isa::amx};

// clang 14's __builtin_cpu_supports does not know this name.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

// Tiles are state that the kernel saves for those processes alone that have asked for it (Linux 5.16,
// Documentation/arch/x86/xstate.rst); the answer holds for all threads.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

bool has_amx() {
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;  // of leaf 7
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kBf16) != 0 && (edx & kTile) != 0 &&
         (edx & kInt8) != 0 && may_use_tiles();
}

bool machine_has(Isa isa) {
  switch (isa) {
    case Isa::baseline: return true;
    case Isa::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    case Isa::avx512:
      return machine_has(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::amx:
      return machine_has(Isa::avx512) && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
             has_amx();
  }
  return false;
}

std::string names(std::span<const Isa> isas) {
  std::string all;
  for (const Isa isa : isas) all += (all.empty() ? "" : ", ") + std::string(name_of(isa));
  return all;
}

Isa initial_isa() {
  const std::span<const Isa> have = available_isas();
  const char* forced = std::getenv("ELAPID_FORCE_ISA");
  if (forced == nullptr || *forced == '\0') return have.back();
  for (const Isa isa : have) {
    if (name_of(isa) == forced) return isa;
  }
  fail(concat("ELAPID_FORCE_ISA: must name a level this machine has (", names(have), "), got ", forced));
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

}  // namespace

std::string_view name_of(Isa isa) {
  switch (isa) {
    case Isa::baseline: return "baseline";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::amx: return "amx";
  }
  return "?";
}

std::span<const Isa> available_isas() {
  static const size_t count = [] {
    size_t n = 0;
    while (n < kLevels.size() && machine_has(kLevels[n])) ++n;
    return n;
  }();
  return {kLevels.data(), count};
}

Isa active_isa() { return active().load(std::memory_order_relaxed); }

void set_active_isa(Isa isa) {
  require(machine_has(isa), "set_active_isa: must be a level this machine has (", names(available_isas()), "), got ",
          name_of(isa));
  active().store(isa, std::memory_order_relaxed);
}

}  // namespace elapid
