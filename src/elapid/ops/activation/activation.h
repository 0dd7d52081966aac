#pragma once

// What stands between the two projections of an MLP:
//
//   y[t, j] = act(m · x[t, j])                    x [T, d_ff]
//   y[t, j] = act(m · x[t, j]) · x[t, d_ff + j]   x [T, 2 · d_ff], gated: the gate's columns, then the others
//
// with m = gate_multiplier (Falcon-H1's mlp_multipliers[0]; 1 elsewhere).

#include "elapid/core/kernel.h"

namespace elapid {

enum class Activation : uint8_t {
  silu,       // x · σ(x)
  gelu,       // x · Φ(x), with erf: transformers' "gelu"
  gelu_tanh,  // transformers' "gelu_pytorch_tanh" and "gelu_new"
  relu,       // max(x, 0)
  relu2,      // max(x, 0)²: transformers' "relu2"
};

// x f32, on CUDA also bf16. Returns [T, d_ff] of x's type.
Tensor activation(Context& ctx, const Tensor& x, Activation act, bool gated, float gate_multiplier = 1);

struct ActivationForward {
  Tensor x, y;
  Activation act;
  bool gated;
  float gate_multiplier;
};
ELAPID_KERNEL(ActivationForward)
ELAPID_CUDA_KERNEL(ActivationForward)

}  // namespace elapid
