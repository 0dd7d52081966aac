#pragma once

// Formulas shared by kernels, written once for any number-like V (F32 of cpu/simd.h; later CUDA's float). exp,
// log1p_of_fraction, min and max are found by argument-dependent lookup.

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

}  // namespace elapid
