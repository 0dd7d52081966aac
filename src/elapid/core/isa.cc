#include "elapid/core/isa.h"

#include "elapid/core/error.h"

#include <array>
#include <atomic>
#include <cpuid.h>
#include <cstdlib>
#include <string>

namespace elapid {
namespace {

constexpr std::array kLevels = {Isa::baseline, Isa::avx2, Isa::avx512};

// clang 14's __builtin_cpu_supports does not know this name.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool machine_has(Isa isa) {
  switch (isa) {
    case Isa::baseline: return true;
    case Isa::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    case Isa::avx512:
      return machine_has(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
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
