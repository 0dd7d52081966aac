#pragma once

// Rotary position embedding (Su et al. 2021, arXiv 2104.09864), and a factor on everything:
//   (y[a], y[b]) = alpha · scaling · (x[a] cos θ − x[b] sin θ,  x[b] cos θ + x[a] sin θ),   θ = position · f[i]
// for the first 2 · |f| elements of each head, paired as halves (a, b = i, i + |f|) or neighbours (2 i, 2 i + 1); the
// others are alpha · x. Positions are those of the sequence: batch.past and on. Angles are exact to float64, and sine
// and cosine are rounded once, so that positions of millions are as good as the first.

#include "elapid/core/batch.h"
#include "elapid/core/kernel.h"

namespace elapid {

struct Rotary {
  Tensor inverse_frequencies;  // f, [n] f32, in host memory; n ≥ 0
  float scaling = 1;           // of sine and cosine, hence of what is rotated alone
  bool interleaved = false;    // neighbours, else halves
  float alpha = 1;
};

// x [T, heads · head_dim] f32, on CUDA also bf16. Writes to `out`, of the same type and shape, which may be x itself;
// without one, to a new tensor.
Tensor rotary(Context& ctx, const Tensor& x, int64_t heads, const Rotary& rotary, const Batch& batch,
              const Tensor& out = {});

struct RotaryForward {
  Tensor x, inverse_frequencies, y;
  Tensor offsets, past;  // as in Batch
  Tensor turns;          // scratch [T, 2, n] or, interleaved, [T, 2, 2 n]: cosines, then sines, as lanes need them
  int64_t head_dim;
  float scaling, alpha;
  bool interleaved;
};
ELAPID_KERNEL(RotaryForward)
ELAPID_CUDA_KERNEL(RotaryForward)

}  // namespace elapid
