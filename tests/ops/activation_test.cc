#include "elapid/ops/activation/activation.h"

#include "elapid/ops/activation/activation_reference.h"
#include "tests/ops/harness.h"

namespace elapid::testing {
namespace {

constexpr Activation kActivations[] = {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu,
                                       Activation::relu2};
constexpr const char* kNames[] = {"silu", "gelu", "gelu_tanh", "relu", "relu2"};

struct Case {
  Activation act;
  int64_t rows, width;
  bool gated = false, strided = false;
  Range range{-4, 4};
  float multiplier = 1;
  DType activations = DType::f32;
};

Operation make(Workbench& bench, const Case& c) {
  const Tensor x = bench.matrix(c.rows, c.gated ? 2 * c.width : c.width, c.range, c.strided, c.activations);
  const reference::ActivationInputs in{reference::matrix_of(x), c.act, c.gated, static_cast<double>(c.multiplier)};
  reference::Expected want = reference::activation(in);
  if (c.activations == DType::bf16) want = written_in_bf16(std::move(want));
  return {[=, &bench](Context& ctx) {
            return std::vector{activation(ctx, bench.at(ctx)(x), c.act, c.gated, c.multiplier)};
          },
          {std::move(want)}};
}

std::string describe(const Case& c) {
  return concat(c.rows, " x ", c.width, c.gated ? " gated" : "", c.strided ? " strided" : "", " x in ", c.range.low,
                " to ", c.range.high, " times ", c.multiplier);
}

// Widths around a vector and a task's piece of a row; each function by itself, so that each must come near its
// tolerance.
Op<Case> op(Activation act) {
  Op<Case> op{kNames[static_cast<int>(act)], {}, describe, make};
  int64_t i = 0;
  for (const int64_t rows : {0, 1, 3, 17}) {
    for (const int64_t width : {0, 1, 15, 16, 17, 100, 2048, 2049, 5000}) {
      if (rows == 17 && width > 100) continue;
      op.cases.push_back({act, rows, width, i % 2 == 0, i % 3 == 0, {-4, 4}, i % 4 < 2 ? 1.0f : 0.8f});
      ++i;
    }
  }
  for (const Range range : {Range{-1e-3, 1e-3}, Range{-12, -2}, Range{2, 12}, Range{-120, 120}, Range{-1e15, 1e15},
                            Range{-1e-30, 1e-30}, Range{0, 0}}) {
    op.cases.push_back({act, 5, 200, false, false, range});
    op.cases.push_back({act, 5, 200, false, false, range, -1.75f});
  }
  return op;
}

TEST(Activation, Silu) { check_forward(op(Activation::silu)); }
TEST(Activation, Gelu) { check_forward(op(Activation::gelu)); }
TEST(Activation, GeluTanh) { check_forward(op(Activation::gelu_tanh)); }
TEST(Activation, Relu) { check_forward(op(Activation::relu)); }
TEST(Activation, Relu2) { check_forward(op(Activation::relu2)); }

Op<Case> in_bf16(Op<Case> op) {
  op.name += " of bf16";
  for (Case& c : op.cases) c.activations = DType::bf16;
  return op;
}

TEST(Activation, OnCuda) {
  for (const Activation act : kActivations) check_on_cuda(op(act));
}
TEST(Activation, Bf16OnCuda) {
  for (const Activation act : kActivations) check_on_cuda(in_bf16(op(act)));
}

// The definitions as written down, with erf and tanh themselves.
TEST(Activation, ReferencesAreTheDefinitions) {
  const double x[] = {-3, -0.5, 0, 0.7, 2.5};
  const double expected[][5] = {
      {-0.14227761953270035, -0.1887703343990727, 0, 0.46773144051771626, 2.3103545499468914},
      {-0.00404969409489031, -0.15426876936299344, 0, 0.5306254434438489, 2.4844758366855597},
      {-0.0036373920817729943, -0.15428599017485606, 0, 0.5305701347051167, 2.484915733910001},
      {0, 0, 0, 0.7, 2.5},
      {0, 0, 0, 0.49, 6.25},
  };
  for (const Activation act : kActivations) {
    for (size_t i = 0; i < 5; ++i) {
      EXPECT_NEAR(reference::activation(act, {x[i], 0}).value, expected[static_cast<size_t>(act)][i], 1e-12)
          << kNames[static_cast<size_t>(act)] << " of " << x[i];
    }
  }
}

TEST(Activation, NonFiniteValuesStayWhereTheyAre) {
  Workbench bench(1);
  const Tensor x = bench.matrix(3, 80, kMixed, true);
  x.row<float>(1)[7] = __builtin_nanf("");
  x.row<float>(1)[40 + 9] = __builtin_nanf("");
  x.row<float>(1)[11] = __builtin_inff();
  for_each_isa([&](Isa) {
    Lab lab(2);
    Context ctx = lab.ctx();
    for (const Activation act : kActivations) {
      SCOPED_TRACE(kNames[static_cast<int>(act)]);
      const Tensor y = activation(ctx, x, act, true);
      for (int64_t t = 0; t < 3; ++t) {
        for (int64_t j = 0; j < 40; ++j) {
          EXPECT_EQ(std::isnan(y.row<float>(t)[j]), t == 1 && (j == 7 || j == 9)) << t << ", " << j;
          EXPECT_EQ(std::isinf(y.row<float>(t)[j]), t == 1 && j == 11) << t << ", " << j;
        }
      }
    }
  });
}

TEST(Activation, OperandsThatDoNotFitAreErrors) {
  Workbench bench(2);
  Lab lab;
  Context ctx = lab.ctx();
  EXPECT_THROW(activation(ctx, bench.matrix(2, 5, kMixed, false), Activation::silu, true), Error);
  EXPECT_THROW(activation(ctx, bench.tensor({2, 4}, kMixed, DType::bf16), Activation::silu, true), Error);
}

}  // namespace
}  // namespace elapid::testing
