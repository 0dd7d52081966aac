#include "elapid/ops/layer_norm/layer_norm.h"

#include "elapid/ops/layer_norm/layer_norm_reference.h"
#include "tests/ops/harness.h"

namespace elapid::testing {
namespace {

struct Case {
  int64_t rows, width;
  bool weight = true, bias = true, strided = false;
  Range range = kMixed;
  float eps = 1e-5f;
  DType from = DType::f32, to = DType::f32;
};

Operation make(Workbench& bench, const Case& c) {
  const Tensor x = bench.matrix(c.rows, c.width, c.range, c.strided, c.from);
  const Param weight = c.weight ? bench.param(bench.tensor({c.width}, kMixed)) : Param{};
  const Param bias = c.bias ? bench.param(bench.tensor({c.width}, kMixed)) : Param{};
  const reference::LayerNormInputs in{reference::matrix_of(x), reference::matrix_of(weight.value),
                                      reference::matrix_of(bias.value), static_cast<double>(c.eps)};
  const auto run = [=, &bench](Context& ctx) {
    const Located at = bench.at(ctx);
    ctx.activations = c.to;
    return std::vector{layer_norm(ctx, at(x), at(weight), at(bias), c.eps)};
  };
  reference::Expected want = reference::layer_norm(in);
  if (c.to == DType::bf16) want = written_in_bf16(std::move(want));
  return {run, {std::move(want)}};
}

std::string describe(const Case& c) {
  return concat(c.rows, " x ", c.width, c.weight ? "" : " no weight", c.bias ? "" : " no bias",
                c.strided ? " strided" : "", " x in ", c.range.low, " to ", c.range.high, " eps ", c.eps);
}

// Rows 0 and beyond a task; widths around a vector; rows far from zero, equal elements, and magnitudes where squares
// come near the ends of float32.
Op<Case> op() {
  Op<Case> op{"layer_norm", {}, describe, make};
  int64_t i = 0;
  for (const int64_t rows : {0, 1, 5, 8, 9, 17}) {
    for (const int64_t width : {1, 2, 15, 16, 17, 31, 33, 100, 768, 2561}) {
      op.cases.push_back({rows, width, i % 3 != 0, i % 4 != 1, i % 2 == 0, i % 4 < 2 ? kMixed : kPositive});
      ++i;
    }
  }
  op.cases.push_back({3, 40, true, true, false, {1000, 1001}});
  op.cases.push_back({3, 41, true, false, false, {1e6, 1e6}});
  op.cases.push_back({3, 40, true, true, false, {-1e18, 1e18}});
  op.cases.push_back({3, 40, true, false, false, {-1e-18, 1e-18}, 1e-12f});
  op.cases.push_back({3, 40, true, true, false, {0, 0}});
  return op;
}

TEST(LayerNorm, Forward) { check_forward(op()); }
TEST(LayerNorm, OnCuda) { check_on_cuda(op()); }
TEST(LayerNorm, Bf16OnCuda) {
  for (const DType from : {DType::f32, DType::bf16}) {
    Op<Case> rounded = op();
    rounded.name += concat(" of ", name_of(from), " in bf16");
    for (Case& c : rounded.cases) c.from = from, c.to = DType::bf16;
    check_on_cuda(rounded);
  }
}

TEST(LayerNorm, RowIsTheSameAloneAndNanStaysInIt) {
  Workbench bench(1);
  constexpr int64_t kRows = 21, kWidth = 57, kBad = 9;
  const Tensor x = bench.matrix(kRows, kWidth, kMixed, true);
  const Param weight = bench.param(bench.tensor({kWidth}, kMixed)), bias = bench.param(bench.tensor({kWidth}, kMixed));
  x.row<float>(kBad)[3] = __builtin_nanf("");
  for_each_isa([&](Isa) {
    Lab lab(3);
    Context ctx = lab.ctx();
    const Tensor y = layer_norm(ctx, x, weight, bias, 1e-5f);
    for (int64_t r = 0; r < kRows; ++r) {
      EXPECT_EQ(bits_of(y.slice(r, r + 1)), bits_of(layer_norm(ctx, x.slice(r, r + 1), weight, bias, 1e-5f)));
      for (int64_t c = 0; c < kWidth; ++c) EXPECT_EQ(std::isnan(y.row<float>(r)[c]), r == kBad);
    }
  });
}

TEST(LayerNorm, OperandsThatDoNotFitAreErrors) {
  Workbench bench(3);
  Lab lab;
  Context ctx = lab.ctx();
  const Tensor x = bench.matrix(2, 12, kMixed, false);
  const Param fits = bench.param(bench.tensor({12}, kMixed)), short_one = bench.param(bench.tensor({11}, kMixed));
  const Param half = bench.param(bench.tensor({12}, kMixed, DType::bf16));
  EXPECT_NO_THROW(layer_norm(ctx, x, fits, fits, 1e-5f));
  EXPECT_THROW(layer_norm(ctx, x, short_one, fits, 1e-5f), Error);
  EXPECT_THROW(layer_norm(ctx, x, fits, short_one, 1e-5f), Error);
  EXPECT_THROW(layer_norm(ctx, x, half, fits, 1e-5f), Error);
  EXPECT_THROW(layer_norm(ctx, half.value.reshape({1, 12}), fits, fits, 1e-5f), Error);
}

}  // namespace
}  // namespace elapid::testing
