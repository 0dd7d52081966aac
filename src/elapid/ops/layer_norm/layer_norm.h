#pragma once

// y = (x − mean) · rsqrt(mean((x − mean)²) + eps) · weight + bias over the last dimension, in float32 (Ba et al. 2016,
// arXiv 1607.06450; PyTorch's layer_norm). The variance is summed over differences from the mean: x far from zero loses
// no more than its own rounding.

#include "elapid/core/kernel.h"
#include "elapid/core/param.h"

namespace elapid {

// x [rows, d] f32, on CUDA also bf16; weight, bias [d] f32, or empty for none. Returns [rows, d] of ctx.activations.
Tensor layer_norm(Context& ctx, const Tensor& x, const Param& weight, const Param& bias, float eps);

struct LayerNormForward {
  Tensor x, weight, bias, y;
  float eps;
};
ELAPID_KERNEL(LayerNormForward)
ELAPID_CUDA_KERNEL(LayerNormForward)

}  // namespace elapid
