#pragma once

// The Mamba-2 recurrence in its chunked ("state-space dual") form, Dao & Gu 2024 (arXiv 2405.21060), section 6:
//
//   dt[t, h] = clamp(softplus(dt_raw[t, h] + dt_bias[h]), dt_min, dt_max)
//   S[t]     = exp(dt[t] · A) · S[t−1] + dt[t] · x[t] ⊗ B[t]          S: [head_dim, d_state] per head
//   y[t]     = S[t] · C[t] + D · x[t]
//
// Head h reads B and C of group h / (heads / groups). Within a chunk the outputs are matrix products (C Bᵀ masked by
// the decays, times x); between chunks the state carries over. A sequence of one token takes the recurrence itself,
// which reads and writes the state once. Which of the two depends on the sequence's own length only.

#include "elapid/core/batch.h"
#include "elapid/core/kernel.h"
#include "elapid/core/param.h"

namespace elapid {

// Tokens a chunk: within it, work grows with the square. 64 keeps a head's working set (state, chunk, decays) in L2.
inline constexpr int64_t kSsdChunk = 64;

struct SsdScan {
  // These of one type, f32 or on CUDA bf16:
  Tensor x;        // [T, heads · head_dim]
  Tensor dt;       // [T, heads], before bias and softplus
  Tensor B, C;     // [T, groups · d_state]
  Tensor A;        // [heads] f32, negative: −exp(A_log)
  Tensor D;        // [heads] or [heads · head_dim] f32, or empty
  Tensor dt_bias;  // [heads] f32, or empty
  int64_t groups = 1;
  float dt_min = 0, dt_max = __builtin_inff();
  // bf16: where there are tiles (on CUDA: for x of bf16, in sequences of two tokens and more), x, B, C, decayed scores
  // and states are rounded to bf16 as operands of products, in sequences of at least kSsdTiled tokens. Sums and the
  // state itself stay float32.
  Arithmetic arithmetic = Arithmetic::f32;
};
inline constexpr int64_t kSsdTiled = 16;

// state [slots, heads, head_dim, d_state] f32 or bf16, or empty when no sequence has a slot: initial states before,
// final ones after. In bf16, final states are rounded once a call, up or down by the element and the token (batch.past,
// 0 where that is empty) such that their mean over the tokens is kept (store_dithered() in cpu/kept.h); within a call
// states are f32. Returns y [T, heads · head_dim] of x's type.
Tensor ssd_scan(Context& ctx, const SsdScan& scan, const Batch& batch, const Tensor& state);

struct SsdScanForward {
  SsdScan in;
  Tensor y;
  Tensor offsets, slots, state;  // as in Batch; see above
  Tensor chunk_begin;            // [S+1] i64: index of each sequence's first chunk (sequences of one token have none)
  Tensor chunks;                 // scratch [chunks · groups, ssd_chunk_floats()]: what the heads of a group share
  Tensor scratch;                // scratch [threads, ssd_scratch_floats()]
  int64_t head_dim, d_state;
  Tensor past{};  // as in Batch
  // On CUDA, where a long sequence is cut into segments that run side by side. First each one's final state from zero
  // and the sum of its dt · A; then from these the state that the next segment begins with; then the outputs.
  // For bf16 `chunks` holds every chunk's time steps and decays, [chunks, heads, kSsdScalars · kSsdChunk].
  Tensor segment_begin{};  // [S+1] i64: index of each sequence's first segment (sequences of one token have none)
  Tensor carry_begin{};    // [S+1] i64: likewise of the states between its segments
  Tensor carries{}, carry_decay{};    // scratch [carries, heads, head_dim, d_state], [carries, heads] f32
  int64_t segments = 0, singles = 0;  // singles: sequences of one token
};
ELAPID_KERNEL(SsdScanForward)
ELAPID_AMX_KERNEL(SsdScanForward)
ELAPID_CUDA_KERNEL(SsdScanForward)
inline constexpr int64_t kMostSsdStates = 256;  // on CUDA
inline constexpr int64_t kSsdScalars = 3;

// Tokens of a segment. By the sequence's own length, so that its results do not depend on its neighbours: few enough
// that one short sequence fills a device, many enough that states between them are little beside x.
ELAPID_INLINE constexpr int64_t ssd_segment(int64_t length) {
  return length <= 4096 ? 256 : length <= 65536 ? 1024 : 8192;
}

ELAPID_INLINE constexpr int64_t ssd_padded(int64_t n) { return (n + 15) / 16 * 16; }
// d_state as the depth of tiles.
ELAPID_INLINE constexpr int64_t ssd_depth(int64_t d_state) { return (d_state + 31) / 32 * 32; }
// C Bᵀ [kSsdChunk, kSsdChunk]; C and Bᵀ in bf16 tiles.
ELAPID_INLINE constexpr int64_t ssd_chunk_floats(int64_t d_state, Arithmetic arithmetic) {
  return kSsdChunk * kSsdChunk + (arithmetic == Arithmetic::bf16 ? kSsdChunk * ssd_depth(d_state) : 0);
}
// Floats of scratch one thread needs: four rows of chunk scalars; transposed state, decayed scores, x twice; in tiles
// the same in bf16 beside it, products, and what comes into the state.
ELAPID_INLINE constexpr int64_t ssd_scratch_floats(int64_t head_dim, int64_t d_state, Arithmetic arithmetic) {
  const int64_t per_head = ssd_padded(head_dim) * (d_state + 2 * kSsdChunk) + kSsdChunk * kSsdChunk;
  const int64_t per_group = d_state * kSsdChunk;
  const int64_t tiles = ssd_padded(head_dim) * (ssd_depth(d_state) / 2 * 5 + 3 * kSsdChunk) + kSsdChunk * kSsdChunk / 2;
  const int64_t floats = per_head > per_group ? per_head : per_group;
  return 4 * kSsdChunk + ssd_padded(arithmetic == Arithmetic::bf16 && tiles > floats ? tiles : floats);
}

}  // namespace elapid
