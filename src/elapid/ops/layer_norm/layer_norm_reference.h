#pragma once

// layer_norm.h in float64: y = (x − mean) · rsqrt(mean((x − mean)²) + eps) · weight + bias over each row.

#include "elapid/ops/float64_reference.h"

namespace elapid::reference {

struct LayerNormInputs {
  Matrix x;             // [rows, d]
  Matrix weight, bias;  // [d], or empty
  double eps = 0;       // positive
};

inline Expected layer_norm(const LayerNormInputs& in) {
  const int64_t rows = in.x.rows, width = in.x.cols;
  const auto count = static_cast<double>(width);
  Expected y(rows, width);
  // A sum over a row: 16 partial sums, then four levels of pairs; then a quotient.
  const double sum_error = roundings((width + 15) / 16 + 4) + 1;
  // The squares' products, eps; the root halves all of that and adds its own and the inverse's.
  const double norm_error = (sum_error + 2) / 2 + 2;
  for (int64_t r = 0; r < rows; ++r) {
    double mean = 0, magnitude = 0;
    for (int64_t c = 0; c < width; ++c) {
      mean += in.x(r, c) / count;
      magnitude += std::abs(in.x(r, c)) / count;
    }
    const double mean_error = kRounding * sum_error * magnitude + kUnderflow;
    double variance = in.eps, variance_error = 0;
    for (int64_t c = 0; c < width; ++c) {
      const double v = in.x(r, c) - mean, error = mean_error + kRounding * std::abs(v);
      variance += v * v / count;
      variance_error += ((2 * std::abs(v) + error) * error + kUnderflow) / count;
    }
    const double scale = 1 / std::sqrt(variance);
    // The inverse root is convex, and a variance is not negative.
    const double largest = 1 / std::sqrt(std::max(variance - variance_error, in.eps));
    const double scale_error = (largest - scale) + kRounding * norm_error * largest;
    for (int64_t c = 0; c < width; ++c) {
      const double weight = in.weight ? in.weight[c] : 1.0, bias = in.bias ? in.bias[c] : 0.0;
      const double v = in.x(r, c) - mean, error = mean_error + kRounding * std::abs(v);
      const double normed = v * scale * weight;
      y.value(r, c) = normed + bias;
      // Two products and a sum more.
      y.tolerance(r, c) = (error * (scale + scale_error) + std::abs(v) * scale_error) * std::abs(weight) +
                          kRounding * (2 * std::abs(normed) + std::abs(normed + bias)) + 2 * kUnderflow;
    }
  }
  return y;
}

}  // namespace elapid::reference
