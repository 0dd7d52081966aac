#pragma once

// What this machine can do at most, measured beside every benchmark so that a speed can be given as a share of it.

#include "elapid/core/kernel.h"

namespace elapid {

struct Ceilings {
  double read_gb_s = 0;    // streaming reads of memory far larger than the caches, all threads
  double tflops = 0;       // float32 multiply-adds in registers, all threads, two operations each
  double bf16_tflops = 0;  // bf16 products with float32 sums, likewise: in AMX tiles where there are any, else tflops
};

// Takes about `seconds` for each figure; keeps the best of several rounds. On CUDA, read_gb_s is a copy's bytes, read
// and written, bf16_tflops a large product's, and tflops is not measured: 0.
Ceilings measure_ceilings(Context& ctx, double seconds = 0.5);

// Powers of products (exp2_product of cpu/simd.h) a second, all threads: what a scan of decays consists of.
double measure_exponentials(Context& ctx, double seconds = 0.5);

struct ReadMemory {
  Tensor memory;  // [n] f32
  Tensor sums;    // [threads] f32: what keeps the reads from being optimized away
};
ELAPID_KERNEL(ReadMemory)

struct MultiplyAdd {
  Tensor sums;     // [threads] f32
  int64_t rounds;  // kMultiplyAddFlops operations each, on every thread
};
ELAPID_KERNEL(MultiplyAdd)

inline constexpr int64_t kMultiplyAddFlops = 2 * 16 * 12 * 1024;

// As MultiplyAdd, in AMX tiles that were loaded from memory: tiles that never were (after TILEZERO or LDTILECFG)
// multiply more than twice as fast on some processors, which no product of real operands reaches.
struct MultiplyTiles {
  Tensor sums;     // [threads] f32
  int64_t rounds;  // kMultiplyTilesFlops operations each, on every thread
};
ELAPID_AMX_KERNEL(MultiplyTiles)

inline constexpr int64_t kMultiplyTilesFlops = 4 * 2 * 16 * 16 * 32;

struct Exponentials {
  Tensor sums;     // [threads] f32
  int64_t rounds;  // kExponentials of them each, on every thread
};
ELAPID_KERNEL(Exponentials)

inline constexpr int64_t kExponentials = 16 * 4 * 1024;

}  // namespace elapid
