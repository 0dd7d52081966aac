#pragma once

// selective_scan.h in float64, token by token:
//   dt = softplus(dt_raw + dt_bias)
//   h  = exp(dt · A) · h + dt · x · B
//   y  = (C · h + D · x) · silu(z)
//
// The tolerance follows the same recurrence. Beside h run the sum of the magnitudes of its terms and the error that a
// float32 implementation may have made in them.

#include "elapid/ops/float64_reference.h"
#include "elapid/ops/selective_scan/selective_scan.h"

namespace elapid::reference {

struct SelectiveScanInputs {
  Matrix x;        // [T, channels]
  Matrix dt;       // [T, channels]
  Matrix B, C;     // [T, groups · d_state]
  Matrix A;        // [channels, d_state]
  Matrix D;        // [channels], or empty
  Matrix dt_bias;  // [channels], or empty
  Matrix z;        // [T, channels], or empty
  Matrix state;    // [slots · channels, d_state], or empty
  int64_t groups = 1;
  bool bf16_state = false;  // final states are rounded to bf16
};

struct SelectiveScanExpected {
  Expected y;      // [T, channels]
  Expected state;  // the pool afterwards
};

inline SelectiveScanExpected selective_scan(const SelectiveScanInputs& in, const Sequences& sequences) {
  constexpr double kSmallestNormal = 0x1p-126;
  const int64_t channels = in.x.cols, d_state = in.A.cols;
  struct Element {
    double value = 0;
    double terms = 0;      // magnitudes of the terms in it
    double error = 0;      // in u
    double underflow = 0;  // in the smallest subnormal; decays only shrink it
  };
  SelectiveScanExpected out{{in.x.rows, channels}, {in.state.rows, in.state.cols}};
  out.state.value = in.state;
  for (int64_t s = 0; s < sequences.count(); ++s) {
    const int64_t slot = sequences.slot(s);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t first = c / (channels / in.groups) * d_state, row = slot * channels + c;
      std::vector<Element> state(static_cast<size_t>(d_state));
      for (int64_t n = 0; slot >= 0 && n < d_state; ++n) {
        state[static_cast<size_t>(n)] = {in.state(row, n), std::abs(in.state(row, n)), 0, 0};
      }
      for (int64_t t = sequences.begin(s); t < sequences.end(s); ++t) {
        const Approximate dt = softplus(in.dt(t, c) + (in.dt_bias ? in.dt_bias[c] : 0.0));
        double y = 0, y_terms = 0, y_error = 0, y_underflow = 0;
        for (int64_t n = 0; n < d_state; ++n) {
          Element& h = state[static_cast<size_t>(n)];
          const double step = dt.value * in.A(c, n), decay = std::exp(step);
          const double b = in.B(t, first + n), xb = in.x(t, c) * b, term = dt.value * xb;
          // The exponent: dt's error; the constant log2(e), its product with dt and without fused multiply-add that
          // with A. The exponential. Without fused multiply-add, the product of decay and state.
          double through = 0;
          if (decay > 0) through = std::abs(in.A(c, n)) * (dt.error + kUnderflow) / kRounding + 3 * std::abs(step);
          through += kExpError + 1;
          h.error = decay * (h.error + through * h.terms);
          if (decay < kSmallestNormal) h.error += decay * h.terms / kRounding;
          h.underflow += h.terms + std::abs(b) + 3;
          h.value = decay * h.value + term;
          h.terms = decay * h.terms + std::abs(term);
          // The term: dt's error and two products. Its joining the sum: one rounding.
          h.error += std::abs(xb) * dt.error / kRounding + 2 * std::abs(term) + h.terms;
          const double weight = in.C(t, first + n);
          y += weight * h.value;
          y_terms += std::abs(weight) * h.terms;
          y_error += std::abs(weight) * h.error;
          y_underflow += std::abs(weight) * h.underflow + 1;
        }
        const double skip = in.D ? in.D[c] * in.x(t, c) : 0.0;
        // The sum over d_state with its products, D · x.
        double error = kRounding * (y_error + (roundings(d_state) + 1) * y_terms + 2 * std::abs(skip) + std::abs(y)) +
                       kUnderflow * (y_underflow + 1);
        y += skip;
        if (in.z) {
          const Approximate gate = silu(in.z(t, c));
          error = error * (std::abs(gate.value) + gate.error) +
                  std::abs(y) * (gate.error + kRounding * std::abs(gate.value)) + kUnderflow;
          y *= gate.value;
        }
        out.y.value(t, c) = y;
        out.y.tolerance(t, c) = error;
      }
      if (slot < 0 || sequences.begin(s) == sequences.end(s)) continue;
      for (int64_t n = 0; n < d_state; ++n) {
        const Element& h = state[static_cast<size_t>(n)];
        out.state.value(row, n) = h.value;
        const double tolerance = kRounding * h.error + kUnderflow * h.underflow;
        out.state.tolerance(row, n) = in.bf16_state ? in_bf16(h.value, tolerance) : tolerance;
      }
    }
  }
  return out;
}

}  // namespace elapid::reference
