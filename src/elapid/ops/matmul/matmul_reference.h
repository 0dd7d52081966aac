#pragma once

// matmul.h in float64: y = alpha · (x · Wᵀ + bias) + add.

#include "elapid/ops/float64_reference.h"
#include "elapid/ops/matmul/matmul.h"

namespace elapid::reference {

struct MatmulInputs {
  Matrix x;       // [rows, in]
  Matrix weight;  // [out, in]
  Matrix bias;    // [out], or empty
  Matrix add;     // [rows, out], or empty
  double alpha = 1;
};

inline Expected matmul(const MatmulInputs& in) {
  const int64_t rows = in.x.rows, depth = in.weight.cols, out = in.weight.rows;
  Expected y(rows, out);
  // A product joins a partial sum of at most kAccumulate products, that one the sum of partial sums; then come bias and
  // alpha. Without fused multiply-add the product is rounded on its own, too.
  const int64_t chain = std::min(depth, kAccumulate) + (depth + kAccumulate - 1) / kAccumulate;
  const double per_term = 1 + roundings(chain) + 2;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < out; ++o) {
      double sum = 0, terms = 0;
      for (int64_t k = 0; k < depth; ++k) {
        sum += in.x(r, k) * in.weight(o, k);
        terms += std::abs(in.x(r, k) * in.weight(o, k));
      }
      if (in.bias) {
        sum += in.bias[o];
        terms += std::abs(in.bias[o]);
      }
      const double value = in.alpha * sum + (in.add ? in.add(r, o) : 0.0);
      const double underflow = (static_cast<double>(depth) * std::abs(in.alpha) + 1) * kUnderflow;
      y.value(r, o) = value;
      y.tolerance(r, o) =
          kRounding * (per_term * std::abs(in.alpha) * terms + (in.add ? std::abs(value) : 0.0)) + underflow;
    }
  }
  return y;
}

}  // namespace elapid::reference
