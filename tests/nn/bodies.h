#pragma once

// Bodies on the operators' harness: parameters drawn for whatever a body visits, and float64 values that carry the
// error of what they were computed from through further operators.

#include "elapid/nn/parameter.h"
#include "elapid/ops/activation/activation_reference.h"
#include "elapid/ops/matmul/matmul_reference.h"
#include "tests/ops/harness.h"

#include <map>
#include <string>

namespace elapid::testing {

// Gives every parameter of a body values from the workbench, matrices in `dtype`, and keeps them as float64; taps and
// decays in the form that the operators get: [K, channels], and A itself.
class Weights {
 public:
  template <class Body>
  Weights(Workbench& bench, Body& body, DType dtype) {
    body.visit("", [&](const ParameterInfo& info) {
      const bool matrix = info.role == Role::matrix || info.role == Role::router;
      Shape shape = info.shape;
      Range range{-0.5, 0.5};
      if (matrix) {
        // Sums over inputs stay near 1.
        range.high = 1.7 / std::sqrt(static_cast<double>(shape[1]));
        range.low = -range.high;
      } else if (info.role == Role::conv_taps) {
        shape = {shape[2], shape[0]};
      } else if (info.role == Role::decay) {
        range = {-4, -0.05};
      } else {
        require(info.role == Role::vector, "weights: roles must be matrix, vector, conv_taps or decay, got another");
      }
      const Tensor rows = bench.tensor(shape, range, matrix ? dtype : DType::f32);
      values_[info.name] = reference::matrix_of(rows);
      *info.param = {info.name, rows, Packing::rows};
      if (!matrix) return;
      const Tensor memory = bench.output(1, packed_bytes(rows.shape, rows.dtype) / 4, false);
      *info.param = {info.name, pack_weight(threads(1), rows, memory.data), Packing::tiles};
    });
  }

  // Empty when the body has none of that name.
  [[nodiscard]] reference::Matrix operator[](const std::string& name) const {
    const auto found = values_.find(name);
    return found == values_.end() ? reference::Matrix() : found->second;
  }
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const auto& [name, value] : values_) all.push_back(name);
    return all;
  }

 private:
  std::map<std::string, reference::Matrix> values_;
};

inline reference::Expected exact(const reference::Matrix& m) { return {m, reference::Matrix(m.rows, m.cols)}; }

// A body's tolerance is its operators' tolerances, each carried through the following ones by absolute values: bounds
// of bounds, of which less is used than of one operator's. Still some 10⁻⁵ of the values.
inline constexpr double kSmallestBodyShare = 0.005;

// y = alpha · (x · Wᵀ + bias) + add of operands that have errors: matmul's own, and theirs through the formula.
inline reference::Expected project(const reference::Expected& x, const reference::Matrix& weight,
                                   const reference::Matrix& bias = {}, const reference::Expected& add = {},
                                   double alpha = 1) {
  reference::Expected y = reference::matmul({x.value, weight, bias, add.value, alpha});
  for (int64_t r = 0; r < y.value.rows; ++r) {
    for (int64_t o = 0; o < y.value.cols; ++o) {
      double error = 0;
      for (int64_t k = 0; k < weight.cols; ++k) error += std::abs(weight(o, k)) * x.tolerance(r, k);
      // Roundings of what is itself wrong are larger by that share.
      y.tolerance(r, o) += (1 + 1e-3) * std::abs(alpha) * error + (add.value ? add.tolerance(r, o) : 0);
    }
  }
  return y;
}

// act(m · u), or with gated columns act(m · gate) · up.
inline reference::Expected activate(const reference::Expected& u, Activation act, bool gated, double multiplier = 1) {
  const int64_t width = gated ? u.value.cols / 2 : u.value.cols;
  reference::Expected v(u.value.rows, width);
  for (int64_t t = 0; t < v.value.rows; ++t) {
    for (int64_t j = 0; j < width; ++j) {
      const reference::Approximate a = reference::activation(act, {u.value(t, j), u.tolerance(t, j)}, multiplier);
      v.value(t, j) = a.value;
      v.tolerance(t, j) = a.error + 2 * reference::kUnderflow;
      if (!gated) continue;
      const double up = u.value(t, width + j), up_error = u.tolerance(t, width + j);
      v.value(t, j) = a.value * up;
      v.tolerance(t, j) = a.error * (std::abs(up) + up_error) + std::abs(a.value) * up_error +
                          reference::kRounding * std::abs(a.value * up) + 2 * reference::kUnderflow;
    }
  }
  return v;
}

}  // namespace elapid::testing
