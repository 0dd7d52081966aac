#pragma once

// CPU instruction-set levels. Kernels are compiled once per level and chosen at run time; ELAPID_FORCE_ISA forces a
// lower one by name.

#include <span>
#include <string_view>

namespace elapid {

enum class Isa {
  baseline,  // x86-64: SSE2
  avx2,      // AVX2, FMA, F16C
  avx512,    // AVX-512 F BW DQ VL
  amx,       // that, AVX-512 BF16 and VNNI, and AMX tiles of bf16 and int8
};

std::string_view name_of(Isa isa);

// Levels that this build has and this machine can run, lowest first.
std::span<const Isa> available_isas();

// The level in use: the highest available one, or what ELAPID_FORCE_ISA names. An Error when that name is unknown or
// above what the machine has.
Isa active_isa();

// Tests: run everything at `isa` from now on. An Error when the machine lacks it.
void set_active_isa(Isa isa);

}  // namespace elapid
