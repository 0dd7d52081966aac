#pragma once

// ssd_scan.h in float64, token by token:
//   dt = clamp(softplus(dt_raw + dt_bias), dt_min, dt_max)
//   S  = exp(dt · A) · S + dt · x ⊗ B
//   y  = S · C + D · x
//
// The tolerance follows the same recurrence. Beside S run M, the sum of the magnitudes of the terms in S, and E, the
// error that a float32 implementation may have made in them, in u. It covers the chunked form and the single step
// alike: the partial sums of either are sums of terms decayed to a common token, so each token adds one rounding of M.

#include "elapid/ops/float64_reference.h"
#include "elapid/ops/ssd_scan/ssd_scan.h"

namespace elapid::reference {

struct SsdScanInputs {
  Matrix x;        // [T, heads · head_dim]
  Matrix dt;       // [T, heads]
  Matrix B, C;     // [T, groups · d_state]
  Matrix A;        // [heads]
  Matrix D;        // [heads] or [heads · head_dim], or empty
  Matrix dt_bias;  // [heads], or empty
  Matrix state;    // [slots · heads · head_dim, d_state], or empty
  int64_t groups = 1;
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();
  std::vector<int64_t> resumed;  // tokens at which another call takes over the state: chunks begin anew
  bool bf16_state = false;       // final states are rounded to bf16
  bool bf16 = false;             // operands of products may be rounded to bf16, where subnormals count as zero
};

struct SsdScanExpected {
  Expected y;      // [T, heads · head_dim]
  Expected state;  // the pool afterwards
};

inline Approximate ssd_time_step(const SsdScanInputs& in, int64_t token, int64_t head) {
  const Approximate dt = softplus(in.dt(token, head) + (in.dt_bias ? in.dt_bias[head] : 0.0));
  if (std::isnan(dt.value)) return dt;
  // Beyond a limit by more than its error, dt is the limit exactly.
  const bool fixed = dt.value + dt.error < in.dt_min || dt.value - dt.error > in.dt_max;
  return {std::clamp(dt.value, in.dt_min, in.dt_max), fixed ? 0 : dt.error};
}

inline SsdScanExpected ssd_scan(const SsdScanInputs& in, const Sequences& sequences) {
  const int64_t heads = in.dt.cols, head_dim = in.x.cols / heads, d_state = in.B.cols / in.groups;
  // Past e^−104 float32 has only zero, so an implementation may cap a step at any larger distance.
  constexpr double kFarthestStep = 200;
  // Of B and weighted x as they enter the state; of C and the state, or of scores' B and C, mixed scores and x, in y.
  const double in_state = in.bf16 ? 2 * kBf16Rounding / kRounding : 0;
  const double in_output = in.bf16 ? 4 * kBf16Rounding / kRounding : 0;
  const double flushed = in.bf16 ? std::numeric_limits<float>::min() : 0;
  struct Element {
    double value = 0;    // S
    double terms = 0;    // M
    double error = 0;    // E
    double history = 0;  // magnitudes of all terms ever added, not decayed: what underflowing decays may lose a part of
  };
  SsdScanExpected out{{in.x.rows, in.x.cols}, {in.state.rows, in.state.cols}};
  out.state.value = in.state;
  for (int64_t s = 0; s < sequences.count(); ++s) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t group = h / (heads / in.groups), kept = sequences.slot(s) * heads + h;
      std::vector<Element> state(static_cast<size_t>(head_dim * d_state));
      if (sequences.slot(s) >= 0) {
        for (int64_t i = 0; i < head_dim * d_state; ++i) {
          const double initial = in.state(kept * head_dim + i / d_state, i % d_state);
          state[static_cast<size_t>(i)] = {initial, std::abs(initial), 0, std::abs(initial)};
        }
      }
      double distance = 0;  // |sum of steps| within the chunk
      int64_t call = sequences.begin(s);
      for (int64_t t = sequences.begin(s); t < sequences.end(s); ++t) {
        const Approximate dt = ssd_time_step(in, t, h);
        const double step = dt.value * in.A[h], decay = std::exp(step);
        if (std::find(in.resumed.begin(), in.resumed.end(), t) != in.resumed.end()) call = t;
        const bool chunk_begins = (t - call) % kSsdChunk == 0;
        if (chunk_begins) distance = 0;
        distance += std::min(std::abs(step), kFarthestStep);
        // Decaying through this token: the step's own error, its share of the rounding of a difference of sums of
        // steps, the rounding of the sum; an exp and a product for each chunk that the state is carried into.
        double through = 0;
        if (decay > 0) {
          through = std::abs(in.A[h]) * dt.error / kRounding + 2 * std::abs(step) + distance;
          if (chunk_begins) through += kExpError + 2;
        }
        for (int64_t p = 0; p < head_dim; ++p) {
          const double x = in.x(t, h * head_dim + p);
          double y = 0, y_terms = 0, y_error = 0, history = 0;
          for (int64_t n = 0; n < d_state; ++n) {
            Element& e = state[static_cast<size_t>(p * d_state + n)];
            const double xb = x * in.B(t, group * d_state + n), term = dt.value * xb;
            e.error = decay * (e.error + through * e.terms);
            e.value = decay * e.value + term;
            e.terms = decay * e.terms + std::abs(term);
            e.history += std::abs(term);
            // The term: dt's error, an exp and four products. Its joining the sum: one rounding.
            e.error += std::abs(xb) * dt.error / kRounding + (kExpError + 4) * std::abs(term) + e.terms;
            e.error += in_state * std::abs(term) +
                       flushed / kRounding * (std::abs(x) + std::abs(in.B(t, group * d_state + n)));
            const double c = in.C(t, group * d_state + n);
            y += c * e.value;
            y_terms += std::abs(c) * e.terms;
            y_error += std::abs(c) * e.error;
            history += std::abs(c) * e.history;
            y_error += in_output * std::abs(c) * e.terms + flushed / kRounding * (std::abs(c) + e.terms);
          }
          const double skip =
              in.D ? in.D[in.D.values.size() == static_cast<size_t>(heads) ? h : h * head_dim + p] * x : 0.0;
          const int64_t column = h * head_dim + p;
          out.y.value(t, column) = y + skip;
          // The sum over d_state with its products, the decay of the whole, D · x.
          out.y.tolerance(t, column) =
              kRounding * (y_error + (roundings(d_state) + 2) * y_terms + 2 * std::abs(skip) + std::abs(y + skip)) +
              kUnderflow * (4 * history + static_cast<double>(d_state) + 1);
        }
      }
      if (sequences.slot(s) < 0 || sequences.begin(s) == sequences.end(s)) continue;
      for (int64_t i = 0; i < head_dim * d_state; ++i) {
        const Element& e = state[static_cast<size_t>(i)];
        const int64_t row = kept * head_dim + i / d_state, column = i % d_state;
        out.state.value(row, column) = e.value;
        const double tolerance = kRounding * e.error + kUnderflow * (4 * e.history + 4);
        out.state.tolerance(row, column) = in.bf16_state ? in_bf16(e.value, tolerance) : tolerance;
      }
    }
  }
  return out;
}

}  // namespace elapid::reference
