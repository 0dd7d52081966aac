#include "elapid/ops/elementwise/elementwise.h"

#include "elapid/ops/elementwise/elementwise_reference.h"
#include "tests/ops/harness.h"

namespace elapid::testing {
namespace {

struct Case {
  int64_t rows, width, other = 0;
  bool strided = false;
  float factor = 1;
  DType activations = DType::f32;
};

std::string describe(const Case& c) {
  return concat(c.rows, " x ", c.width, " and ", c.other, c.strided ? " strided" : "", " factor ", c.factor);
}

// Everywhere, on CUDA in bf16 as well.
void check(Op<Case> op) {
  check_forward(op);
  if (std::string why; !has_cuda(why)) return;
  check_on_cuda(op);
  for (Case& c : op.cases) c.activations = DType::bf16;
  const auto make = op.make;
  op.make = [make](Workbench& bench, const Case& c) {
    Operation operation = make(bench, c);
    for (reference::Expected& want : operation.expected) want = written_in_bf16(std::move(want));
    return operation;
  };
  check_on_cuda(op);
}

std::vector<Case> shapes() {
  std::vector<Case> cases;
  int64_t i = 0;
  for (const int64_t rows : {0, 1, 2, 15, 17, 40}) {
    for (const int64_t width : {1, 15, 16, 17, 33, 200}) {
      cases.push_back({rows, width, 1 + i % 20, i % 2 == 0, i % 3 == 0 ? 0.22f : -1.7f});
      ++i;
    }
  }
  return cases;
}

TEST(Elementwise, ConcatColumns) {
  Op<Case> op{"concat_columns", shapes(), describe, [](Workbench& bench, const Case& c) {
                const Tensor a = bench.matrix(c.rows, c.width, kMixed, c.strided, c.activations);
                const Tensor b = bench.matrix(c.rows, c.other, kMixed, !c.strided, c.activations);
                return Operation{[=, &bench](Context& ctx) {
                                   return std::vector{concat_columns(ctx, bench.at(ctx)(a), bench.at(ctx)(b))};
                                 },
                                 {reference::concat_columns(reference::matrix_of(a), reference::matrix_of(b))}};
              }};
  op.exact = true;
  check(op);
}

TEST(Elementwise, Add) {
  check(Op<Case>{"add", shapes(), describe, [](Workbench& bench, const Case& c) {
                   const Tensor a = bench.matrix(c.rows, c.width, kMixed, c.strided, c.activations);
                   const Tensor b = bench.matrix(c.rows, c.width, kMixed, !c.strided, c.activations);
                   return Operation{
                       [=, &bench](Context& ctx) { return std::vector{add(ctx, bench.at(ctx)(a), bench.at(ctx)(b))}; },
                       {reference::scale_add(reference::matrix_of(a), {}, reference::matrix_of(b), 1)}};
                 }});
}

TEST(Elementwise, Scale) {
  check(Op<Case>{"scale", shapes(), describe, [](Workbench& bench, const Case& c) {
                   const Tensor x = bench.matrix(c.rows, c.width, kMixed, c.strided, c.activations);
                   return Operation{
                       [=, &bench](Context& ctx) { return std::vector{scale(ctx, bench.at(ctx)(x), c.factor)}; },
                       {reference::scale_add(reference::matrix_of(x), {}, {}, static_cast<double>(c.factor))}};
                 }});
}

TEST(Elementwise, ScaleColumnsInPlace) {
  check(Op<Case>{"scale_columns", shapes(), describe, [](Workbench& bench, const Case& c) {
                   const Tensor x = bench.matrix(c.rows, c.width, kMixed, c.strided, c.activations);
                   const Tensor factors = bench.tensor({c.width}, kMixed);
                   const auto expected =
                       reference::scale_add(reference::matrix_of(x), reference::matrix_of(factors), {}, 1);
                   bench.writable(x);
                   return Operation{[=, &bench](Context& ctx) {
                                      const Tensor y = bench.at(ctx)(x);
                                      scale_columns(ctx, y, factors);
                                      return std::vector{y};
                                    },
                                    {expected}};
                 }});
}

TEST(Elementwise, SiluGate) {
  check(Op<Case>{"silu_gate", shapes(), describe, [](Workbench& bench, const Case& c) {
                   const Tensor x = bench.matrix(c.rows, c.width, kMixed, c.strided, c.activations);
                   const Tensor z = bench.matrix(c.rows, c.width, {-30, 30}, !c.strided, c.activations);
                   return Operation{[=, &bench](Context& ctx) {
                                      return std::vector{silu_gate(ctx, bench.at(ctx)(x), bench.at(ctx)(z))};
                                    },
                                    {reference::silu_gate(reference::matrix_of(x), reference::matrix_of(z))}};
                 }});
}

TEST(Elementwise, OperandsThatDoNotFitAreErrors) {
  Workbench bench(3);
  Lab lab;
  Context ctx = lab.ctx();
  const Tensor x = bench.matrix(2, 12, kMixed, false);
  EXPECT_THROW(add(ctx, x, x.columns(0, 11)), Error);
  EXPECT_THROW(silu_gate(ctx, x, x.slice(0, 1)), Error);
  EXPECT_THROW(concat_columns(ctx, x, x.slice(0, 1)), Error);
  EXPECT_THROW(scale_columns(ctx, x, bench.tensor({11}, kMixed)), Error);
  EXPECT_THROW(scale(ctx, bench.integers({1, 2}), 2), Error);
}

}  // namespace
}  // namespace elapid::testing
