#pragma once

// Depthwise causal convolution over time, with bias, SiLU and a window that outlives the call:
//   y[t, c] = act( bias[c] + Σ_k weight[k, c] · x[t − K + 1 + k, c] ),  k = 0 … K−1
// where x before the sequence's first token comes from its state (the last K−1 inputs, oldest first), or is zero.
// Afterwards the state holds the last K−1 inputs. The reference is causal-conv1d's causal_conv1d_fn.

#include "elapid/core/batch.h"
#include "elapid/core/kernel.h"
#include "elapid/core/param.h"

namespace elapid {

inline constexpr int64_t kMostConvTaps = 64;

struct CausalConv1d {
  Param weight;      // [K, channels] f32, the last row multiplies the current input (transposed from the checkpoint)
  Param bias;        // [channels] f32, or empty
  bool silu = true;  // else no activation
};

// x [T, channels] f32, on CUDA also bf16; state [slots, K−1, channels] f32, or empty when no sequence has a slot.
// Returns [T, channels] of x's type.
Tensor causal_conv1d(Context& ctx, const Tensor& x, const CausalConv1d& conv, const Batch& batch, const Tensor& state);

struct CausalConv1dForward {
  Tensor x, weight, bias, y;
  Tensor offsets, slots, state;  // as in Batch; see above
  bool silu;
  int64_t longest;  // tokens of the longest sequence
};
ELAPID_KERNEL(CausalConv1dForward)
ELAPID_CUDA_KERNEL(CausalConv1dForward)

}  // namespace elapid
