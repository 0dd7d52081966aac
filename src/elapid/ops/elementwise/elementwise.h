#pragma once

// What some families do between the coarse operators, in float32 on [rows, columns]. Operands and results are of one
// type, f32 or on CUDA bf16.

#include "elapid/core/kernel.h"

namespace elapid {

// [a, b] side by side: [rows, a's columns + b's columns].
Tensor concat_columns(Context& ctx, const Tensor& a, const Tensor& b);
// a + b
Tensor add(Context& ctx, const Tensor& a, const Tensor& b);
// factor · x
Tensor scale(Context& ctx, const Tensor& x, float factor);
// x[r, c] · factors[c], in place; factors [columns] f32, in host memory.
void scale_columns(Context& ctx, const Tensor& x, const Tensor& factors);

// x · silu(z)
Tensor silu_gate(Context& ctx, const Tensor& x, const Tensor& z);

struct ConcatColumnsForward {
  Tensor a, b, y;
};
ELAPID_KERNEL(ConcatColumnsForward)
ELAPID_CUDA_KERNEL(ConcatColumnsForward)

// y = factor · (x ∘ factors + b); factors or b may be empty. y may be x.
struct ScaleAddForward {
  Tensor x, factors, b, y;
  float factor;
};
ELAPID_KERNEL(ScaleAddForward)
ELAPID_CUDA_KERNEL(ScaleAddForward)

struct SiluGateForward {
  Tensor x, z, y;
};
ELAPID_KERNEL(SiluGateForward)
ELAPID_CUDA_KERNEL(SiluGateForward)

}  // namespace elapid
