#pragma once

// Formulas shared by kernels, written once for any number-like V (F32 of cpu/simd.h; later CUDA's float). exp and log1p
// are found by argument-dependent lookup.

#include "elapid/core/inline.h"

namespace elapid {

// x · σ(x)
template <class V>
ELAPID_INLINE V silu(const V& x, const V& one, const V& zero) {
  return x / (one + exp(zero - x));
}

// ln(1 + eˣ), and x itself above 20, where the difference is below half an ulp (mamba_ssm's and PyTorch's threshold).
template <class V>
ELAPID_INLINE V softplus(const V& x, const V& threshold) {
  return if_greater(x, threshold, x, log1p(exp(x)));
}

}  // namespace elapid
