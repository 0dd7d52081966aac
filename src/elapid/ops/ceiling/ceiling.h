#pragma once

// What this machine can do at most, measured beside every benchmark so that a speed can be given as a share of it.

#include "elapid/core/kernel.h"

namespace elapid {

struct Ceilings {
  double read_gb_s = 0;  // streaming reads of memory far larger than the caches, all threads
  double tflops = 0;     // float32 multiply-adds in registers, all threads, two operations each
};

// Takes about `seconds` for each figure; keeps the best of several rounds.
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

struct Exponentials {
  Tensor sums;     // [threads] f32
  int64_t rounds;  // kExponentials of them each, on every thread
};
ELAPID_KERNEL(Exponentials)

inline constexpr int64_t kExponentials = 16 * 4 * 1024;

}  // namespace elapid
