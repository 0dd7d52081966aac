#pragma once

// Device functions that scans share.

#include "elapid/cuda/launch.cuh"

namespace elapid::cuda {

inline constexpr float kLog2e = 1.4426950408889634f;

// 2^x in one instruction, within 2^−22 of it; what is below the smallest normal float32 is zero.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ln(1 + eˣ) with log1p on [0, 1] alone, half the instructions of log1pf: beyond √2 − 1, ln 2 + ln((1 + e) / 2).
__device__ inline float softplus_short(float x) {
  const float e = expf(-fabsf(x));
  const bool far = e > 0.41421356f;
  const float r = far ? fmaf(e, 0.5f, -0.5f) : e;
  // ln(1 + r) on [√½ − 1, √2 − 1], the same fit as cpu/simd.h's log_tail().
  const float z = r * r;
  float p = 7.0376836292e-2f;
  p = fmaf(p, r, -1.1514610310e-1f);
  p = fmaf(p, r, 1.1676998740e-1f);
  p = fmaf(p, r, -1.2420140846e-1f);
  p = fmaf(p, r, 1.4249322787e-1f);
  p = fmaf(p, r, -1.6668057665e-1f);
  p = fmaf(p, r, 2.0000714765e-1f);
  p = fmaf(p, r, -2.4999993993e-1f);
  p = fmaf(p, r, 3.3333331174e-1f);
  const float y = r + fmaf(z, -0.5f, p * r * z);
  return fmaxf(x, 0) + (far ? y + 0.69314718246f : y);
}

// x · σ(x) with a reciprocal to one ulp in place of a division.
__device__ inline float silu_short(float x) {
  float reciprocal;
  asm("rcp.approx.f32 %0, %1;" : "=f"(reciprocal) : "f"(1 + expf(-x)));
  return x * reciprocal;
}

// N floats at once where they are aligned to it.
template <int N>
struct alignas(N * sizeof(float) < 16 ? N * sizeof(float) : 16) Floats {
  float at[N];
};

}  // namespace elapid::cuda
