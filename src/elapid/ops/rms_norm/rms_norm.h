#pragma once

// Root-mean-square norms over the last dimension, in float32.
//
//   rms_norm        y = x · rsqrt(mean(x²) + eps) · weight                               (Zhang & Sennrich 2019)
//   gated_rms_norm  y = u · rsqrt(mean(u²) + eps) · weight,  u = x · silu(z)             (Mamba-2's RMSNormGated), the
//                   mean over each of `groups` equal runs of columns; or, with norm_before_gate, rms_norm(x) · silu(z)

#include "elapid/core/kernel.h"
#include "elapid/core/param.h"

namespace elapid {

// x [rows, d] f32, on CUDA also bf16; weight [d] f32, or empty for none. Returns [rows, d] of ctx.activations.
Tensor rms_norm(Context& ctx, const Tensor& x, const Param& weight, float eps);

// x, z [rows, d] of one such type; weight [d] f32; d must be a multiple of groups. Returns [rows, d] of
// ctx.activations.
Tensor gated_rms_norm(Context& ctx, const Tensor& x, const Tensor& z, const Param& weight, float eps,
                      int64_t groups = 1, bool norm_before_gate = false);

struct RmsNormForward {
  Tensor x, z, weight, y;  // z empty: no gate
  float eps;
  int64_t groups;
  bool norm_before_gate;
};
ELAPID_KERNEL(RmsNormForward)
ELAPID_CUDA_KERNEL(RmsNormForward)

}  // namespace elapid
