#pragma once

// rms_norm.h in float64: y = u · rsqrt(mean(u²) + eps) · weight over each group of columns; u = x, or x · silu(z); or
// that of x times silu(z).

#include "elapid/ops/float64_reference.h"

namespace elapid::reference {

struct RmsNormInputs {
  Matrix x;       // [rows, d]
  Matrix z;       // [rows, d], or empty
  Matrix weight;  // [d], or empty
  double eps = 0;
  int64_t groups = 1;
  bool norm_before_gate = false;
};

inline Expected rms_norm(const RmsNormInputs& in) {
  const int64_t rows = in.x.rows, width = in.x.cols / in.groups;
  Expected y(rows, in.x.cols);
  // The sum of squares: 16 partial sums, then four levels of pairs; a square is rounded on its own without fused
  // multiply-add. The mean and eps are one rounding each; the root halves all of that and adds its own and the
  // inverse's.
  const double norm_error = (roundings((width + 15) / 16 + 4) + 1 + 2) / 2 + 2;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t group = 0; group < in.groups; ++group) {
      std::vector<Approximate> u;
      double squares = 0, square_error = 0;
      for (int64_t c = group * width; c < (group + 1) * width; ++c) {
        Approximate value{in.x(r, c), 0};
        if (in.z && !in.norm_before_gate) {
          const Approximate gate = silu(in.z(r, c));
          value = {in.x(r, c) * gate.value, std::abs(in.x(r, c)) * gate.error};
          value.error += kRounding * std::abs(value.value) + kUnderflow;
        }
        u.push_back(value);
        squares += value.value * value.value;
        square_error += 2 * std::abs(value.value) * value.error + kUnderflow;
      }
      const double mean = squares / static_cast<double>(width) + in.eps;
      const double mean_error = square_error / static_cast<double>(width);
      const double scale = 1 / std::sqrt(mean);
      const double scale_error = scale * (kRounding * norm_error + (mean > 0 ? mean_error / mean / 2 : 0));
      for (int64_t i = 0; i < width; ++i) {
        const int64_t c = group * width + i;
        const double weight = in.weight ? in.weight[c] : 1.0;
        const Approximate& v = u[static_cast<size_t>(i)];
        y.value(r, c) = v.value * scale * weight;
        // Two products more.
        y.tolerance(r, c) = (v.error * scale + std::abs(v.value) * scale_error) * std::abs(weight) +
                            kRounding * 2 * std::abs(y.value(r, c)) + 2 * kUnderflow;
        if (in.z && in.norm_before_gate) {
          const Approximate gate = silu(in.z(r, c));
          y.tolerance(r, c) = y.tolerance(r, c) * std::abs(gate.value) + std::abs(y.value(r, c)) * gate.error;
          y.value(r, c) *= gate.value;
          y.tolerance(r, c) += kRounding * std::abs(y.value(r, c)) + kUnderflow;
        }
      }
    }
  }
  return y;
}

}  // namespace elapid::reference
