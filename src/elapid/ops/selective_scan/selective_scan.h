#pragma once

// The Mamba-1 recurrence, Gu & Dao 2023 (arXiv 2312.00752), section 3; mamba_ssm's selective_scan_fn:
//
//   dt[t, c]   = softplus(dt_raw[t, c] + dt_bias[c])
//   h[t, c, n] = exp(dt[t, c] · A[c, n]) · h[t−1, c, n] + dt[t, c] · x[t, c] · B[t, n]
//   y[t, c]    = Σ_n C[t, n] · h[t, c, n] + D[c] · x[t, c],   times silu(z[t, c]) where there is a gate
//
// Channel c reads B and C of group c / (channels / groups). A decay below the smallest normal float32 may count as
// zero.
//
// x, dt, B, C, z and y are of one type, f32 or on CUDA bf16; the rest is f32.
//
// Every element of h and y is the same operations in the same order however a sequence is cut into calls: a prompt at
// once, in pieces or token by token leaves the same bits.

#include "elapid/core/batch.h"
#include "elapid/core/kernel.h"

namespace elapid {

struct SelectiveScan {
  Tensor x;        // [T, channels]
  Tensor dt;       // [T, channels], before bias and softplus
  Tensor B, C;     // [T, groups · d_state]
  Tensor A;        // [channels, d_state] f32, not positive: −exp(A_log)
  Tensor D;        // [channels] f32, or empty
  Tensor dt_bias;  // [channels] f32, or empty
  Tensor z;        // [T, channels], or empty: no gate
  int64_t groups = 1;
};

// state [slots, channels, d_state] f32 or bf16, or empty when no sequence has a slot: initial states before, final ones
// after. In bf16, as ssd_scan()'s, and then how a sequence is cut does show. Returns y [T, channels].
Tensor selective_scan(Context& ctx, const SelectiveScan& scan, const Batch& batch, const Tensor& state);

struct SelectiveScanForward {
  SelectiveScan in;
  Tensor y;
  Tensor offsets, slots, state;  // as in Batch; see above
  Tensor scratch;                // scratch [threads, selective_scan_scratch_floats()]
  int64_t d_state;
  int64_t longest;  // tokens of the longest sequence
  Tensor past;      // as in Batch, on the host
};
ELAPID_KERNEL(SelectiveScanForward)
ELAPID_CUDA_KERNEL(SelectiveScanForward)
inline constexpr int64_t kMostScanStates = 256;  // on CUDA

// Vectors of sixteen channels in one task, at most, and tokens whose time steps are computed together.
inline constexpr int64_t kSelectiveScanVectors = 4, kSelectiveScanTokens = 8;
// Floats of scratch one thread needs: the state and A with channels in the lanes, two values for each time step.
ELAPID_INLINE constexpr int64_t selective_scan_scratch_floats(int64_t d_state) {
  return 16 * 2 * kSelectiveScanVectors * (d_state + kSelectiveScanTokens);
}

}  // namespace elapid
