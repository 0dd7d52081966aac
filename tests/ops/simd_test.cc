#include "elapid/core/dtype.h"
#include "tests/ops/harness.h"
#include "tests/ops/simd_probe.h"

#include <bit>

namespace elapid::testing {
namespace {

constexpr float kInfinity = __builtin_inff();

// Every `stride`-th float of [low, high], negative ones included, and both ends.
std::vector<float> floats_between(float low, float high, uint32_t stride) {
  std::vector<float> values;
  const auto positive = [&](float from, float to, float sign) {
    for (uint64_t bits = std::bit_cast<uint32_t>(from); bits <= std::bit_cast<uint32_t>(to); bits += stride) {
      values.push_back(sign * std::bit_cast<float>(static_cast<uint32_t>(bits)));
    }
    values.push_back(sign * to);
  };
  if (low < 0) positive(high < 0 ? -high : 0.0f, -low, -1);
  if (high > 0) positive(low > 0 ? low : 0.0f, high, 1);
  return values;
}

// In units in the last place of the float32 nearest to `exact`.
double ulps(float got, double exact) {
  int exponent = 0;
  std::frexp(exact, &exponent);
  return std::abs(static_cast<double>(got) - exact) / std::ldexp(1, std::max(exponent, -125) - 24);
}

std::vector<float> apply(SimdFunction function, std::vector<float> x) {
  std::vector<float> y(x.size());
  Lab lab;
  const Shape shape(static_cast<int64_t>(x.size()));
  launch(lab.ctx(), SimdProbe{Tensor(x.data(), DType::f32, shape), Tensor(y.data(), DType::f32, shape), function});
  return y;
}

// The largest error in ulp must not exceed `limit`, at any level.
void check_accuracy(const std::string& name, SimdFunction function, const std::vector<float>& x, double limit,
                    const std::function<double(double)>& exact) {
  std::vector<double> expected;
  for (const float v : x) expected.push_back(exact(static_cast<double>(v)));
  std::vector<float> fused;
  for_each_isa([&](Isa isa) {
    const std::vector<float> y = apply(function, x);
    double worst = 0;
    size_t at = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double error = y[i] == expected[i] ? 0 : ulps(y[i], expected[i]);
      if (!(error <= worst)) worst = error, at = i;
    }
    const std::string level(name_of(isa));
    std::printf("[   ulp    ] %s %s: %.3f at %.9g (%zu values)\n", name.c_str(), level.c_str(), worst,
                static_cast<double>(x[at]), x.size());
    ::testing::Test::RecordProperty(name + "." + level + ".ulp", concat(worst));
    EXPECT_LE(worst, limit) << name << "(" << x[at] << ") is " << y[at] << ", expected " << expected[at];
    if (isa == Isa::baseline) return;
    if (fused.empty()) fused = y;
    EXPECT_EQ(y, fused) << "levels with fused multiply-add differ";
  });
}

// The limits are the errors that the specifications assume; an ulp is at most two roundings.
constexpr double kExpLimit = reference::kExpError / 2, kLogLimit = reference::kLogError / 2;
constexpr double kErfLimit = reference::kErfError / 2;

TEST(Simd, ExpIsAccurate) {
  const auto exact = [](double x) { return std::exp(x); };
  check_accuracy("exp", SimdFunction::exp, floats_between(-104.0f, 88.7228f, 997), kExpLimit, exact);
  check_accuracy("exp near 0", SimdFunction::exp, floats_between(-1.0f, 1.0f, 4999), kExpLimit, exact);
}

TEST(Simd, ExpAtTheEnds) {
  for_each_isa([&](Isa) {
    const std::vector<float> y = apply(
        SimdFunction::exp, {0.0f, -0.0f, kInfinity, -kInfinity, 1e30f, -1e30f, 89.0f, -105.0f, __builtin_nanf("")});
    const std::vector<float> expected = {1, 1, kInfinity, 0, kInfinity, 0, kInfinity, 0};
    EXPECT_EQ(std::vector(y.begin(), y.end() - 1), expected);
    EXPECT_TRUE(std::isnan(y.back()));
  });
}

// The probe's factor is ½, which rounds nothing. Results that are not normal numbers may be zero.
TEST(Simd, Exp2ProductIsAccurate) {
  const auto exact = [](double x) { return std::exp2(x / 2); };
  check_accuracy("exp2_product", SimdFunction::exp2_product, floats_between(-252.0f, 0.0f, 497), kExpLimit, exact);
  for_each_isa([&](Isa) {
    const std::vector<float> y =
        apply(SimdFunction::exp2_product, {0.0f, -0.0f, -2.0f, -254.0f, -1e4f, -1e30f, -kInfinity, __builtin_nanf("")});
    const std::vector<float> expected = {1, 1, 0.5f, 0, 0, 0, 0};
    EXPECT_EQ(std::vector(y.begin(), y.end() - 1), expected);
    EXPECT_TRUE(std::isnan(y.back()));
  });
}

TEST(Simd, LogIsAccurate) {
  const auto exact = [](double x) { return std::log(x); };
  const float largest = std::numeric_limits<float>::max(), smallest = std::numeric_limits<float>::min();
  check_accuracy("log", SimdFunction::log, floats_between(smallest, largest, 997), kLogLimit, exact);
  check_accuracy("log near 1", SimdFunction::log, floats_between(0.99f, 1.01f, 1), kLogLimit, exact);
  for_each_isa([&](Isa) { EXPECT_EQ(apply(SimdFunction::log, {1.0f})[0], 0.0f); });
}

// Down to subnormals.
TEST(Simd, Log1pIsAccurate) {
  check_accuracy("log1p", SimdFunction::log1p_of_fraction, floats_between(0.0f, 1.0f, 997), kLogLimit,
                 [](double x) { return std::log1p(x); });
  for_each_isa([&](Isa) {
    EXPECT_EQ(apply(SimdFunction::log1p_of_fraction, {0.0f})[0], 0.0f);
    EXPECT_TRUE(std::isnan(apply(SimdFunction::log1p_of_fraction, {__builtin_nanf("")})[0]));
  });
}

TEST(Simd, ErfIsAccurate) {
  const auto exact = [](double x) { return std::erf(x); };
  const float smallest = std::numeric_limits<float>::min();
  check_accuracy("erf", SimdFunction::erf, floats_between(smallest, 10.0f, 997), kErfLimit, exact);
  check_accuracy("erf near the border", SimdFunction::erf, floats_between(0.9f, 1.0f, 7), kErfLimit, exact);
  check_accuracy("erf in the middle", SimdFunction::erf, floats_between(0.25f, 4.0f, 61), kErfLimit, exact);
  // Odd, bit for bit.
  const std::vector<float> positive = floats_between(smallest, 10.0f, 9973);
  std::vector<float> negative = positive;
  for (float& x : negative) x = -x;
  for_each_isa([&](Isa) {
    std::vector<float> y = apply(SimdFunction::erf, negative);
    for (float& v : y) v = -v;
    EXPECT_EQ(y, apply(SimdFunction::erf, positive));
  });
}

TEST(Simd, ErfAtTheEnds) {
  for_each_isa([&](Isa) {
    const std::vector<float> y =
        apply(SimdFunction::erf, {0.0f, -0.0f, 4.0f, -4.0f, 1e30f, kInfinity, -kInfinity, 1e-40f, __builtin_nanf("")});
    const std::vector<float> expected = {0, 0, 1, -1, 1, 1, -1};
    EXPECT_EQ(std::vector(y.begin(), y.end() - 2), expected);
    EXPECT_TRUE(std::signbit(y[1]));
    EXPECT_NEAR(static_cast<double>(y[7]), std::erf(static_cast<double>(1e-40f)), 2 * reference::kUnderflow);
    EXPECT_TRUE(std::isnan(y.back()));
  });
}

// What the formulas of ops/math.h make of them, with the error that the specifications assume.
TEST(Simd, SiluAndSoftplusAreWithinTheirBounds) {
  const std::vector<float> x = floats_between(-1e4f, 1e4f, 1999);
  const struct {
    const char* name;
    SimdFunction function;
    reference::Approximate (*exact)(double);
  } functions[] = {{"silu", SimdFunction::silu, reference::silu},
                   {"softplus", SimdFunction::softplus, reference::softplus}};
  for (const auto& [name, function, exact] : functions) {
    reference::Expected expected(static_cast<int64_t>(x.size()), 1);
    for (size_t i = 0; i < x.size(); ++i) {
      const reference::Approximate y = exact(static_cast<double>(x[i]));
      expected.value.values[i] = y.value;
      expected.tolerance.values[i] = y.error + reference::kUnderflow;
    }
    std::map<Isa, Share> worst;
    for_each_isa([&](Isa isa) {
      std::vector<float> y = apply(function, x);
      worst[isa] = share_of(Tensor(y.data(), DType::f32, {static_cast<int64_t>(y.size()), 1}), expected);
      EXPECT_LE(worst[isa].worst, 1) << name << ", " << worst[isa].where;
    });
    report_shares(name, worst);
  }
}

TEST(Simd, NonFiniteValuesPassThroughTheFormulas) {
  for_each_isa([&](Isa) {
    const float nan = __builtin_nanf("");
    EXPECT_TRUE(std::isnan(apply(SimdFunction::silu, {nan})[0]));
    EXPECT_TRUE(std::isnan(apply(SimdFunction::softplus, {nan})[0]));
    EXPECT_EQ(apply(SimdFunction::silu, {kInfinity})[0], kInfinity);
    EXPECT_EQ(apply(SimdFunction::softplus, {kInfinity})[0], kInfinity);
    EXPECT_EQ(apply(SimdFunction::softplus, {-kInfinity})[0], 0.0f);
  });
}

// Loads and stores of 1 to 16 lanes touch exactly those (the workbench guards the rest); sums and maxima are the same
// bits at every level.
TEST(Simd, MovesAndReductions) {
  constexpr int64_t kCount = 16 * 16;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (int64_t run = 1; run <= 17; ++run) {
      SCOPED_TRACE(concat(name_of(dtype), ", runs of ", run));
      Workbench bench(1);
      SimdMoves moves;
      moves.x = bench.tensor({kCount}, kMixed);
      moves.weights = bench.tensor({kCount}, kMixed, dtype);
      moves.run = run;
      const auto output = [&](int64_t count) {
        const Tensor t = bench.output(1, count, false).reshape({count});
        bench.writable(t);
        return t;
      };
      moves.copies = output(kCount);
      moves.sums = output(kCount / 16);
      moves.maxima = output(kCount / 16);
      moves.even = output(kCount / 2);
      moves.odd = output(kCount / 2);
      bench.snapshot();
      Bits sums;
      for_each_isa([&](Isa) {
        Lab lab;
        bench.restore();
        launch(lab.ctx(), moves);
        EXPECT_EQ(bench.damage(), "");
        for (int64_t i = 0; i < kCount; ++i) {
          // A load gives 16 lanes at most: of a run of 17 the last is not stored.
          const float copy = moves.copies.ptr<float>()[i];
          const bool moved = i < kCount / run * run && i % run < 16;
          EXPECT_TRUE(moved ? copy == moves.x.ptr<float>()[i] : std::isnan(copy)) << "element " << i;
        }
        if (sums.empty()) sums = bits_of(moves.sums);
        EXPECT_EQ(bits_of(moves.sums), sums);
        for (int64_t block = 0; block < kCount / 16; ++block) {
          const float* x = moves.x.ptr<float>() + 16 * block;
          EXPECT_EQ(moves.maxima.ptr<float>()[block], *std::max_element(x, x + 16));
          double total = 0, terms = 0;
          for (int64_t i = 0; i < 16; ++i)
            total += static_cast<double>(x[i]), terms += std::abs(static_cast<double>(x[i]));
          EXPECT_NEAR(static_cast<double>(moves.sums.ptr<float>()[block]), total, 4 * reference::kRounding * terms);
        }
        const reference::Matrix weights = reference::matrix_of(moves.weights);
        for (int64_t i = 0; i < kCount / 2; ++i) {
          const int64_t even = dtype == DType::bf16 ? 2 * i : i / 16 * 32 + i % 16;
          const int64_t odd = dtype == DType::bf16 ? 2 * i + 1 : even + 16;
          EXPECT_EQ(static_cast<double>(moves.even.ptr<float>()[i]), weights[even]);
          EXPECT_EQ(static_cast<double>(moves.odd.ptr<float>()[i]), weights[odd]);
        }
      });
    }
  }
}

// Half-precision weights are widened by hardware where there is some: every value, subnormals and infinities included.
TEST(Simd, EveryHalfIsWidenedExactly) {
  std::vector<uint16_t> halves(65536);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  const auto count = static_cast<int64_t>(halves.size());
  std::vector<float> x(halves.size()), even(halves.size() / 2), odd(halves.size() / 2), none;
  const auto view = [](std::vector<float>& v) {
    return Tensor(v.data(), DType::f32, {static_cast<int64_t>(v.size())});
  };
  for_each_isa([&](Isa) {
    Lab lab;
    launch(lab.ctx(), SimdMoves{view(x), view(x), view(none), view(none), Tensor(halves.data(), DType::f16, {count}),
                                view(even), view(odd), 16});
    for (size_t i = 0; i < halves.size(); ++i) {
      const float got = i % 32 < 16 ? even[i / 32 * 16 + i % 16] : odd[i / 32 * 16 + i % 16];
      const float want = to_float(Float16{halves[i]});
      ASSERT_TRUE(got == want || (std::isnan(got) && std::isnan(want))) << "bits " << i;
    }
  });
}

}  // namespace
}  // namespace elapid::testing
