#pragma once

// rotary.h in float64: the first 2 n elements of each head are rotated by position · f[i], the others copied; all of
// them times alpha.

#include "elapid/ops/float64_reference.h"

namespace elapid::reference {

struct RotaryInputs {
  Matrix x;                    // [T, heads · head_dim]
  Matrix inverse_frequencies;  // [n]
  int64_t heads = 1;
  bool interleaved = false;
  double scaling = 1, alpha = 1;
};

inline Expected rotary(const RotaryInputs& in, const Sequences& sequences) {
  const int64_t head_dim = in.x.cols / in.heads, n = static_cast<int64_t>(in.inverse_frequencies.values.size());
  Expected out(in.x.rows, in.x.cols);
  for (int64_t s = 0; s < sequences.count(); ++s) {
    for (int64_t t = sequences.begin(s); t < sequences.end(s); ++t) {
      const auto position = static_cast<double>(sequences.past_of(s) + t - sequences.begin(s));
      for (int64_t h = 0; h < in.heads; ++h) {
        const int64_t column = h * head_dim;
        const auto put = [&](int64_t at, double same, double crossed) {
          out.value(t, column + at) = same + crossed;
          // Sine and cosine are rounded, then a product, then their sum.
          out.tolerance(t, column + at) = kRounding * 3 * (std::abs(same) + std::abs(crossed)) + 4 * kUnderflow;
        };
        for (int64_t i = 0; i < n; ++i) {
          const int64_t a = in.interleaved ? 2 * i : i, b = in.interleaved ? 2 * i + 1 : i + n;
          const double angle = position * in.inverse_frequencies[i], factor = in.scaling * in.alpha;
          const double c = factor * std::cos(angle), si = factor * std::sin(angle);
          put(a, in.x(t, column + a) * c, -in.x(t, column + b) * si);
          put(b, in.x(t, column + b) * c, in.x(t, column + a) * si);
        }
        for (int64_t d = 2 * n; d < head_dim; ++d) put(d, in.alpha * in.x(t, column + d), 0);
      }
    }
  }
  return out;
}

}  // namespace elapid::reference
