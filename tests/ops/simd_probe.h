#pragma once

// A kernel that applies one function of cpu/simd.h to every element, so that tests reach it at every level.

#include "elapid/core/kernel.h"

namespace elapid::testing {

enum class SimdFunction { exp, exp2_product, log, log1p_of_fraction, erf, silu, softplus };

struct SimdProbe {
  Tensor x, y;  // [n] f32
  SimdFunction function;
};
ELAPID_KERNEL(SimdProbe)

// What the vectors themselves do: sums[i] and maxima[i] of lanes 16 i … 16 i + 15; x copied to y in runs of `run`
// elements by masked loads and stores; pairs of weights widened.
struct SimdMoves {
  Tensor x, copies;     // [n] f32
  Tensor sums, maxima;  // [n / 16] f32
  Tensor weights;       // [n] f32, bf16 or f16, in the order that load_pair() expects
  Tensor even, odd;     // [n / 2] f32
  int64_t run;
};
ELAPID_KERNEL(SimdMoves)

}  // namespace elapid::testing
