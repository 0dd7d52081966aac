#pragma once

// causal_conv1d.h in float64: y[t, c] = act(bias[c] + Σ_k weight[k, c] · x[t − K + 1 + k, c]) within each sequence,
// after the K−1 inputs that its state holds; then the state holds the last K−1 inputs.

#include "elapid/ops/float64_reference.h"

namespace elapid::reference {

struct CausalConv1dInputs {
  Matrix x;       // [T, channels]
  Matrix weight;  // [K, channels]
  Matrix bias;    // [channels], or empty
  Matrix state;   // [slots · (K−1), channels], or empty
  bool silu = true;
};

struct CausalConv1dExpected {
  Expected y;      // [T, channels]
  Expected state;  // the pool afterwards; exact
};

inline CausalConv1dExpected causal_conv1d(const CausalConv1dInputs& in, const Sequences& sequences) {
  const int64_t taps = in.weight.rows, channels = in.x.cols;
  CausalConv1dExpected out{{in.x.rows, channels}, {in.state.rows, in.state.cols}};
  out.state.value = in.state;
  // A product joins a sum of the bias and at most K products; without fused multiply-add it is rounded on its own, too.
  const double per_term = 1 + roundings(taps + 1);
  for (int64_t s = 0; s < sequences.count(); ++s) {
    const int64_t begin = sequences.begin(s), length = sequences.end(s) - begin, slot = sequences.slot(s);
    // Input `at` of the sequence, negative ones from the state.
    const auto input = [&](int64_t at, int64_t c) {
      if (at >= 0) return in.x(begin + at, c);
      return slot < 0 ? 0.0 : in.state(slot * (taps - 1) + taps - 1 + at, c);
    };
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t t = 0; t < length; ++t) {
        double sum = in.bias ? in.bias[c] : 0.0, terms = std::abs(sum);
        for (int64_t k = 0; k < taps; ++k) {
          const double term = in.weight(k, c) * input(t - taps + 1 + k, c);
          sum += term;
          terms += std::abs(term);
        }
        const double error = kRounding * per_term * terms + static_cast<double>(taps) * kUnderflow;
        const Approximate activated = silu(sum);
        out.y.value(begin + t, c) = in.silu ? activated.value : sum;
        out.y.tolerance(begin + t, c) = in.silu ? kSteepestSilu * error + activated.error : error;
      }
      for (int64_t j = 0; slot >= 0 && j < taps - 1; ++j) {
        out.state.value(slot * (taps - 1) + j, c) = input(length - (taps - 1) + j, c);
      }
    }
  }
  return out;
}

}  // namespace elapid::reference
