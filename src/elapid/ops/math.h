#pragma once

// Formulas shared by kernels, written once for any number-like V (F32 of cpu/simd.h; later CUDA's float). exp,
// log1p_of_fraction, erf, fma, min and max are found by argument-dependent lookup.

#include "elapid/core/inline.h"

namespace elapid {

// x · σ(x)
template <class V>
ELAPID_INLINE V silu(const V& x, const V& one, const V& zero) {
  return x / (one + exp(zero - x));
}

// ln(1 + eˣ). Above 20 it is x itself, as mamba_ssm and PyTorch have it: the rest is below half an ulp.
template <class V>
ELAPID_INLINE V softplus(const V& x, const V& zero) {
  return max(zero, x) + log1p_of_fraction(exp(min(zero - x, x)));
}

// x · Φ(x), Φ the normal distribution's: x/2 · (1 + erf(x/√2)).
template <class V>
ELAPID_INLINE V gelu(const V& x, const V& half, const V& one, const V& root_half) {
  return half * x * (one + erf(x * root_half));
}

// x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), with (1 + tanh z) / 2 = 1 / (1 + e⁻²ᶻ): no cancellation. `linear` is
// 2 √(2/π), `cubic` 0.044715 times that.
inline constexpr float kGeluTanhLinear = 1.5957691216057308f, kGeluTanhCubic = 0.07135481627260025f;
template <class V>
ELAPID_INLINE V gelu_tanh(const V& x, const V& one, const V& zero, const V& linear, const V& cubic) {
  return x / (one + exp(zero - x * fma(cubic, x * x, linear)));
}

template <class V>
ELAPID_INLINE V relu(const V& x, const V& zero) {
  return max(zero, x);  // in this order NaN stays NaN
}

}  // namespace elapid
