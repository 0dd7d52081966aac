#include "elapid/ops/rms_norm/rms_norm.h"

#include "elapid/ops/rms_norm/rms_norm_reference.h"
#include "tests/ops/harness.h"

namespace elapid::testing {
namespace {

struct Case {
  int64_t rows, width;
  int64_t groups = 1;
  bool gated = false, weight = true, strided = false;
  Range range = kMixed, gate = {-4, 4};
  float eps = 1e-5f;
  bool norm_before_gate = false;
  DType from = DType::f32, to = DType::f32;
};

Operation make(Workbench& bench, const Case& c) {
  const Tensor x = bench.matrix(c.rows, c.width, c.range, c.strided, c.from);
  const Tensor z = c.gated ? bench.matrix(c.rows, c.width, c.gate, c.strided, c.from) : Tensor{};
  const Param weight = c.weight ? bench.param(bench.tensor({c.width}, kMixed)) : Param{};
  const reference::RmsNormInputs in{reference::matrix_of(x),
                                    reference::matrix_of(z),
                                    reference::matrix_of(weight.value),
                                    static_cast<double>(c.eps),
                                    c.groups,
                                    c.norm_before_gate};
  const auto run = [=, &bench](Context& ctx) {
    const Located at = bench.at(ctx);
    ctx.activations = c.to;
    return std::vector{c.gated ? gated_rms_norm(ctx, at(x), at(z), at(weight), c.eps, c.groups, c.norm_before_gate)
                               : rms_norm(ctx, at(x), at(weight), c.eps)};
  };
  reference::Expected want = reference::rms_norm(in);
  if (c.to == DType::bf16) want = written_in_bf16(std::move(want));
  return {run, {std::move(want)}};
}

std::string describe(const Case& c) {
  return concat(c.rows, " x ", c.width, c.gated ? " gated" : "", " groups ", c.groups, c.weight ? "" : " no weight",
                c.strided ? " strided" : "", " x in ", c.range.low, " to ", c.range.high, " gate in ", c.gate.low,
                " to ", c.gate.high, " eps ", c.eps, c.norm_before_gate ? " norm before gate" : "");
}

// Rows 0 and beyond a task; widths around a vector; magnitudes where squares come near the ends of float32.
Op<Case> plain() {
  Op<Case> op{"rms_norm", {}, describe, make};
  int64_t i = 0;
  for (const int64_t rows : {0, 1, 5, 8, 9, 17}) {
    for (const int64_t width : {1, 2, 15, 16, 17, 31, 33, 100, 768, 2561}) {
      op.cases.push_back({rows, width, 1, false, i % 3 != 0, i % 2 == 0, i % 4 < 2 ? kMixed : kPositive});
      ++i;
    }
  }
  op.cases.push_back({3, 40, 1, false, true, false, {-1e18, 1e18}});
  op.cases.push_back({3, 40, 1, false, true, false, {-1e-18, 1e-18}, {}, 1e-12f});
  op.cases.push_back({3, 40, 1, false, true, false, {0, 0}});
  return op;
}

Op<Case> gated() {
  Op<Case> op{"gated_rms_norm", {}, describe, make};
  int64_t i = 0;
  for (const int64_t rows : {0, 1, 8, 9}) {
    for (const int64_t groups : {1, 2, 3, 8}) {
      for (const int64_t width : {1, 15, 16, 17, 24, 300}) {
        op.cases.push_back(
            {rows, groups * width, groups, true, i % 3 != 0, i % 2 == 0, i % 4 < 2 ? kMixed : kPositive});
        ++i;
      }
    }
  }
  for (size_t n = op.cases.size(), k = 0; k < n; k += 3) {
    op.cases.push_back(op.cases[k]);
    op.cases.back().norm_before_gate = true;
  }
  op.cases.push_back({5, 48, 1, true, true, false, kMixed, {-120, 120}});
  op.cases.push_back({5, 48, 1, true, true, false, kMixed, {-120, 120}, 1e-5f, true});
  op.cases.push_back({5, 48, 2, true, true, false, kMixed, {-1e4, 1e4}});
  op.cases.push_back({5, 48, 2, true, true, false, {0, 0}});
  return op;
}

TEST(RmsNorm, Forward) { check_forward(plain()); }
TEST(RmsNorm, GatedForward) { check_forward(gated()); }

Op<Case> in_bf16(Op<Case> op, DType from) {
  op.name += concat(" of ", name_of(from), " in bf16");
  for (Case& c : op.cases) c.from = from, c.to = DType::bf16;
  // Rows that do not fit into shared memory, and whole packs of a wide row.
  op.cases.push_back(op.cases.back());
  op.cases.back().width = 16384;
  return op;
}
TEST(RmsNorm, OnCuda) {
  check_on_cuda(plain());
  check_on_cuda(gated());
}
TEST(RmsNorm, Bf16OnCuda) {
  check_on_cuda(in_bf16(plain(), DType::f32));
  check_on_cuda(in_bf16(plain(), DType::bf16));
  check_on_cuda(in_bf16(gated(), DType::bf16));
}

TEST(RmsNorm, RowIsTheSameAloneAndNanStaysInIt) {
  Workbench bench(1);
  constexpr int64_t kRows = 21, kWidth = 57, kBad = 9;
  const Tensor x = bench.matrix(kRows, kWidth, kMixed, true), z = bench.matrix(kRows, kWidth, kMixed, true);
  const Param weight = bench.param(bench.tensor({kWidth}, kMixed));
  x.row<float>(kBad)[3] = __builtin_nanf("");
  z.row<float>(kBad + 1)[3] = __builtin_nanf("");
  for_each_isa([&](Isa) {
    Lab lab(3);
    Context ctx = lab.ctx();
    const Tensor y = rms_norm(ctx, x, weight, 1e-5f), gated = gated_rms_norm(ctx, x, z, weight, 1e-5f, 3);
    for (int64_t r = 0; r < kRows; ++r) {
      const Tensor row = x.slice(r, r + 1), gate = z.slice(r, r + 1);
      EXPECT_EQ(bits_of(y.slice(r, r + 1)), bits_of(rms_norm(ctx, row, weight, 1e-5f)));
      EXPECT_EQ(bits_of(gated.slice(r, r + 1)), bits_of(gated_rms_norm(ctx, row, gate, weight, 1e-5f, 3)));
      EXPECT_EQ(std::isnan(y.row<float>(r)[0]), r == kBad);
      EXPECT_EQ(std::isnan(gated.row<float>(r)[0]), r == kBad || r == kBad + 1);
      EXPECT_FALSE(std::isnan(gated.row<float>(r)[kWidth - 1])) << "another group";
    }
  });
}

// The norm is defined in float32: squares that overflow give an infinite mean and a zero result, never NaN.
TEST(RmsNorm, OverflowingSquaresGiveZero) {
  Workbench bench(2);
  const Tensor x = bench.matrix(2, 40, {0.5e30, 1.5e30}, false);
  for_each_isa([&](Isa) {
    Lab lab;
    Context ctx = lab.ctx();
    const Tensor y = rms_norm(ctx, x, {}, 1e-5f);
    for (int64_t i = 0; i < 80; ++i) EXPECT_EQ(y.ptr<float>()[i], 0.0f);
  });
}

TEST(RmsNorm, OperandsThatDoNotFitAreErrors) {
  Workbench bench(3);
  Lab lab;
  Context ctx = lab.ctx();
  const Tensor x = bench.matrix(2, 12, kMixed, false), z = bench.matrix(2, 12, kMixed, false);
  EXPECT_THROW(rms_norm(ctx, x, bench.param(bench.tensor({11}, kMixed)), 1e-5f), Error);
  EXPECT_THROW(gated_rms_norm(ctx, x, z.columns(0, 11), {}, 1e-5f), Error);
  EXPECT_THROW(gated_rms_norm(ctx, x, z.slice(0, 1), {}, 1e-5f), Error);
  EXPECT_THROW(gated_rms_norm(ctx, x, z, {}, 1e-5f, 5), Error);
  EXPECT_THROW(gated_rms_norm(ctx, x, z, {}, 1e-5f, 0), Error);
}

}  // namespace
}  // namespace elapid::testing
