#include "elapid/ops/gather_rows/gather_rows.h"

#include "elapid/ops/gather_rows/gather_rows_reference.h"
#include "tests/ops/harness.h"

namespace elapid::testing {
namespace {

struct Case {
  int64_t tokens, width, step;  // every step-th row
  bool strided = false;
  DType activations = DType::f32;
};

Op<Case> op() {
  Op<Case> op;
  op.name = "gather_rows";
  op.exact = true;
  for (const int64_t tokens : {0, 1, 2, 63, 64, 65, 300}) {
    for (const int64_t width : {1, 15, 16, 33}) {
      for (const int64_t step : {1, 2, 7, 1000}) op.cases.push_back({tokens, width, step, (tokens + width) % 2 == 0});
    }
  }
  op.describe = [](const Case& c) {
    return concat(c.tokens, " x ", c.width, ", every ", c.step, "th row", c.strided ? " strided" : "");
  };
  op.make = [](Workbench& bench, const Case& c) {
    const Tensor x = bench.matrix(c.tokens, c.width, kMixed, c.strided, c.activations);
    reference::GatherRowsInputs in{reference::matrix_of(x), {}};
    for (int64_t row = 0; row < c.tokens; row += c.step) in.rows.push_back(row);
    const Tensor rows = bench.integers(in.rows);
    return Operation{[=, &bench](Context& ctx) { return std::vector{gather_rows(ctx, bench.at(ctx)(x), rows)}; },
                     {reference::gather_rows(in)}};
  };
  return op;
}

Op<Case> in_bf16(Op<Case> op) {
  op.name += " of bf16";
  for (Case& c : op.cases) c.activations = DType::bf16;
  return op;
}

TEST(GatherRows, Forward) { check_forward(op()); }
TEST(GatherRows, OnCuda) { check_on_cuda(op()); }
TEST(GatherRows, Bf16OnCuda) { check_on_cuda(in_bf16(op())); }

TEST(GatherRows, AllRowsAreTheTensorItself) {
  Workbench bench(1);
  Lab lab;
  Context ctx = lab.ctx();
  const Tensor x = bench.matrix(3, 4, kMixed, true);
  EXPECT_EQ(gather_rows(ctx, x, bench.integers({0, 1, 2})).data, x.data);
  EXPECT_EQ(ctx.arena.used(), 0);
}

TEST(GatherRows, RowsThatDoNotIncreaseAreErrors) {
  Workbench bench(2);
  Lab lab;
  Context ctx = lab.ctx();
  const Tensor x = bench.matrix(3, 4, kMixed, false);
  for (const std::vector<int64_t>& rows : std::vector<std::vector<int64_t>>{{3}, {-1}, {1, 1}, {2, 1}, {0, 1, 2, 3}}) {
    EXPECT_THROW(gather_rows(ctx, x, bench.integers(rows)), Error);
  }
}

}  // namespace
}  // namespace elapid::testing
