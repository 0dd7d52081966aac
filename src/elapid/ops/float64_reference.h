#pragma once

// What the operators' specifications (<op>/<op>_reference.h) are written with: float64 matrices, and expected values
// that carry the error a float32 implementation may make. For tests; nothing in the library includes it.
//
// Errors are counted in u = 2⁻²⁴, the largest relative error of one float32 rounding. A tolerance is u times the sum of
// the magnitudes of the terms that make up an output, each times the number of roundings it goes through, with what
// errors of exp and log1p add; plus what underflow may take. No tolerance is a number of its own.

#include "elapid/core/error.h"
#include "elapid/core/tensor.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

namespace elapid::reference {

struct Matrix {
  int64_t rows = 0, cols = 0;
  std::vector<double> values;

  Matrix() = default;
  Matrix(int64_t rows_, int64_t cols_) : rows(rows_), cols(cols_), values(static_cast<size_t>(rows_ * cols_)) {}

  double& operator()(int64_t row, int64_t col) { return values[static_cast<size_t>(row * cols + col)]; }
  double operator()(int64_t row, int64_t col) const { return values[static_cast<size_t>(row * cols + col)]; }
  // The element of a vector.
  double operator[](int64_t i) const { return values[static_cast<size_t>(i)]; }
  // An absent operand is an empty matrix.
  explicit operator bool() const { return !values.empty(); }
};

// The exact values of a tensor of any floating-point type and alignment; all leading dimensions together are the rows.
inline Matrix matrix_of(const Tensor& t) {
  if (!t) return {};
  Matrix m(t.rows(), t.cols());
  const auto read = [&]<class T>(T) {
    for (int64_t r = 0; r < m.rows; ++r) {
      for (int64_t c = 0; c < m.cols; ++c) {
        T value;
        const int64_t at = (r * t.row_stride() + c) * int64_t{sizeof(T)};
        std::memcpy(&value, static_cast<const char*>(t.data) + at, sizeof(T));
        m(r, c) = static_cast<double>(to_float(value));
      }
    }
  };
  switch (t.dtype) {
    case DType::f32: read(float{}); break;
    case DType::bf16: read(BFloat16{}); break;
    case DType::f16: read(Float16{}); break;
    default: fail(concat("reference: operands must be f32, bf16 or f16, got ", name_of(t.dtype)));
  }
  return m;
}

struct Expected {
  Matrix value, tolerance;

  Expected() = default;
  Expected(Matrix value_, Matrix tolerance_) : value(std::move(value_)), tolerance(std::move(tolerance_)) {}
  Expected(int64_t rows, int64_t cols) : value(rows, cols), tolerance(rows, cols) {}
};

// A ragged batch: sequence s holds rows offsets[s] … offsets[s+1]; its state is row slots[s] of the pool, −1 for none.
struct Sequences {
  std::vector<int64_t> offsets{0}, slots = {};
  std::vector<int64_t> past = {};  // tokens before these; none, when empty

  [[nodiscard]] int64_t count() const { return static_cast<int64_t>(slots.size()); }
  [[nodiscard]] int64_t begin(int64_t s) const { return offsets[static_cast<size_t>(s)]; }
  [[nodiscard]] int64_t end(int64_t s) const { return offsets[static_cast<size_t>(s) + 1]; }
  [[nodiscard]] int64_t slot(int64_t s) const { return slots[static_cast<size_t>(s)]; }
  [[nodiscard]] int64_t past_of(int64_t s) const { return past.empty() ? 0 : past[static_cast<size_t>(s)]; }
};

inline constexpr double kRounding = 0x1p-24;     // u
inline constexpr double kBf16Rounding = 0x1p-8;  // of an operand that is rounded to bf16
inline constexpr double kBf16Step = 0x1p-7;      // between bf16 neighbours, at most: rounding to either of them
inline constexpr double kUnderflow = 0x1p-149;   // the smallest subnormal: what a product may lose near zero
// exp and exp2_product of cpu/simd.h are within 1.25 ulp, log, log1p_of_fraction and erf within 1.5
// (tests/ops/simd_test.cc holds them to that); an ulp is at most 2 u.
inline constexpr double kExpError = 2.5;
inline constexpr double kLogError = 3;
inline constexpr double kErfError = 3;

// How often a term of a sum of n terms is rounded, in effect. At most n times. The roundings are independent, and each
// is at most uniform in ±u, with standard deviation u/√3: 4 √n u is 6.9 standard deviations (Higham & Mary 2019, "A new
// approach to probabilistic rounding error analysis").
inline double roundings(int64_t n) {
  const auto worst = static_cast<double>(n);
  return std::min(worst, 4 * std::sqrt(worst));
}

struct Approximate {
  double value, error;  // error: absolute
};

// x · σ(x) as x / (1 + e⁻ˣ): the error of exp, one sum, one quotient. Where e⁻ˣ is beyond float32 the result is −0,
// which loses less than 10⁻³⁶.
inline Approximate silu(double x) {
  constexpr double kLargestExponent = 88.72283905206835;  // ln of the largest float32
  const double value = x / (1 + std::exp(-x));
  if (-x > kLargestExponent) return {-0.0, std::abs(value)};
  return {value, kRounding * (kExpError + 2) * std::abs(value)};
}
inline constexpr double kSteepestSilu = 1.1;  // largest |d silu / dx|

// ln(1 + eˣ) of an x that was itself rounded once.
inline Approximate softplus(double x) {
  const double value = x > 30 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
  const double slope = 1 / (1 + std::exp(-x));
  return {value, kRounding * (std::abs(x) * slope + (kExpError + kLogError) * value) + 2 * kUnderflow};
}

// What a final state's tolerance becomes when it is held in bf16.
inline double in_bf16(double value, double tolerance) {
  return tolerance + kBf16Step * (std::abs(value) + tolerance) + 0x1p16 * kUnderflow;
}

}  // namespace elapid::reference
