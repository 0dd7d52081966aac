#pragma once

// elementwise.h in float64.

#include "elapid/ops/float64_reference.h"

namespace elapid::reference {

inline Expected concat_columns(const Matrix& a, const Matrix& b) {
  Expected y(a.rows, a.cols + b.cols);
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t c = 0; c < a.cols; ++c) y.value(r, c) = a(r, c);
    for (int64_t c = 0; c < b.cols; ++c) y.value(r, a.cols + c) = b(r, c);
  }
  return y;
}

// factor · (x ∘ factors + b); factors and b may be empty. Each operation is one rounding.
inline Expected scale_add(const Matrix& x, const Matrix& factors, const Matrix& b, double factor) {
  Expected y(x.rows, x.cols);
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) {
      const double product = factors ? x(r, c) * factors[c] : x(r, c), sum = b ? product + b(r, c) : product;
      y.value(r, c) = factor * sum;
      y.tolerance(r, c) =
          kRounding * std::abs(factor) *
              ((factors ? std::abs(product) : 0) + (b ? std::abs(sum) : 0) + (factor == 1 ? 0 : std::abs(sum))) +
          kUnderflow;
    }
  }
  return y;
}

inline Expected silu_gate(const Matrix& x, const Matrix& z) {
  Expected y(x.rows, x.cols);
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) {
      const Approximate gate = silu(z(r, c));
      y.value(r, c) = x(r, c) * gate.value;
      y.tolerance(r, c) = std::abs(x(r, c)) * gate.error + kRounding * std::abs(y.value(r, c)) + kUnderflow;
    }
  }
  return y;
}

}  // namespace elapid::reference
