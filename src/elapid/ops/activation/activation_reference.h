#pragma once

// activation.h in float64: y[t, j] = act(m · x[t, j]), times x[t, d_ff + j] when gated.

#include "elapid/ops/activation/activation.h"
#include "elapid/ops/float64_reference.h"

namespace elapid::reference {

// x/2 · (1 + erf(x/√2)). The argument of erf is rounded twice (√½ and the product); below 0 the sum cancels, and the
// absolute error of erf stays.
inline Approximate gelu(double x) {
  constexpr double kTwoOverRootPi = 1.1283791670955126;
  const double z = x * std::sqrt(0.5), value = x / 2 * std::erfc(-z);
  const double argument = 2 * std::abs(z) * kTwoOverRootPi * std::exp(-z * z);
  const double bracket = kErfError * std::abs(std::erf(z)) + argument + std::erfc(-z);
  return {value, kRounding * (std::abs(x) / 2 * bracket + std::abs(value))};
}

// x / (1 + e⁻ᵍ), g = 2 √(2/π) · (x + 0.044715 x³). g goes through at most six roundings: two constants, the square, the
// multiply-add (twice without fused multiply-add), the product with x. Where e⁻ᵍ is beyond float32 the result is −0.
inline Approximate gelu_tanh(double x) {
  constexpr double kLargestExponent = 88.72283905206835;  // ln of the largest float32
  const double g = 2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x), value = x / (1 + std::exp(-g));
  const double g_error = 6 * kRounding * std::abs(g);
  if (-g + g_error > kLargestExponent) return {-0.0, std::abs(value) + std::abs(x) * std::exp(g)};
  const double below = 1 / (1 + std::exp(g));  // 1 − σ(g): what an error of e⁻ᵍ comes to in the quotient
  return {value, std::abs(value) * (below * (g_error + kRounding * kExpError) + 2 * kRounding)};
}

// act(m · x) of an x that may itself be wrong.
inline Approximate activation(Activation act, Approximate x, double multiplier = 1) {
  const double u = multiplier * x.value;
  const double u_error = std::abs(multiplier) * x.error + (multiplier == 1 ? 0 : kRounding * std::abs(u) + kUnderflow);
  constexpr double kSteepestGelu = 1.13;
  switch (act) {
    case Activation::silu: {
      const Approximate y = silu(u);
      return {y.value, y.error + kSteepestSilu * u_error};
    }
    case Activation::gelu: {
      const Approximate y = gelu(u);
      return {y.value, y.error + kSteepestGelu * u_error};
    }
    case Activation::gelu_tanh: {
      const Approximate y = gelu_tanh(u);
      return {y.value, y.error + kSteepestGelu * u_error};
    }
    case Activation::relu: return {std::max(u, 0.0), u > -u_error ? u_error : 0};
    case Activation::relu2: {
      const double r = std::max(u, 0.0), r_error = u > -u_error ? u_error : 0;
      return {r * r, kRounding * r * r + (2 * r + r_error) * r_error};
    }
  }
  return {0, 0};
}

struct ActivationInputs {
  Matrix x;  // [T, d_ff], gated [T, 2 · d_ff]
  Activation act = Activation::silu;
  bool gated = false;
  double gate_multiplier = 1;
};

inline Expected activation(const ActivationInputs& in) {
  const int64_t width = in.gated ? in.x.cols / 2 : in.x.cols;
  Expected y(in.x.rows, width);
  for (int64_t t = 0; t < in.x.rows; ++t) {
    for (int64_t j = 0; j < width; ++j) {
      const Approximate a = activation(in.act, {in.x(t, j), 0}, in.gate_multiplier);
      const double up = in.gated ? in.x(t, width + j) : 1;
      y.value(t, j) = a.value * up;
      y.tolerance(t, j) = a.error * std::abs(up) + (in.gated ? kRounding * std::abs(a.value * up) : 0) + 2 * kUnderflow;
    }
  }
  return y;
}

}  // namespace elapid::reference
