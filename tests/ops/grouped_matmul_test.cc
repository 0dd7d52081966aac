#include "elapid/ops/matmul/grouped_matmul.h"

#include "elapid/ops/matmul/grouped_matmul_reference.h"
#include "tests/ops/harness.h"
#include "tests/ops/packed.h"

namespace elapid::testing {
namespace {

struct Case {
  std::vector<int64_t> rows;  // of each group
  int64_t in, out;
  DType dtype = DType::f32;
  Range range = kMixed;
  bool strided = false;
  Arithmetic arithmetic = Arithmetic::f32;
};

std::vector<int64_t> offsets_of(const std::vector<int64_t>& rows) {
  std::vector<int64_t> offsets = {0};
  for (const int64_t n : rows) offsets.push_back(offsets.back() + n);
  return offsets;
}

Operation make(Workbench& bench, const Case& c) {
  reference::GroupedMatmulInputs in;
  in.offsets = offsets_of(c.rows);
  const Tensor x = bench.matrix(in.offsets.back(), c.in, c.range, c.strided);
  const bool rounds = c.arithmetic == Arithmetic::bf16;
  const auto operand = [&](const Tensor& t) {
    return rounds ? rounded_to_bf16(reference::matrix_of(t)) : reference::matrix_of(t);
  };
  in.x = operand(x);
  std::vector<Param> weights;
  for (size_t g = 0; g < c.rows.size(); ++g) {
    const Tensor rows = bench.tensor({c.out, c.in}, c.range, c.dtype, Alignment::none);
    in.weights.push_back(operand(rows));
    weights.push_back(packed(bench, rows, c.arithmetic));
  }
  const Tensor offsets = bench.integers(in.offsets);
  return {[=](Context& ctx) { return std::vector{grouped_matmul(ctx, x, weights, offsets)}; },
          {reference::grouped_matmul(in)},
          rounds};
}

// On CUDA weights are rows as they are, aligned to their elements.
template <DType activations>
Operation make_on_cuda(Workbench& bench, const Case& c) {
  reference::GroupedMatmulInputs in;
  in.offsets = offsets_of(c.rows);
  const Tensor x = bench.matrix(in.offsets.back(), c.in, c.range, c.strided, activations);
  const bool rounds = c.arithmetic == Arithmetic::bf16;
  in.x = rounds ? rounded_to_bf16(reference::matrix_of(x)) : reference::matrix_of(x);
  std::vector<Param> weights;
  for (size_t g = 0; g < c.rows.size(); ++g) {
    const Tensor rows = bench.tensor({c.out, c.in}, c.range, c.dtype);
    in.weights.push_back(reference::matrix_of(rows));
    weights.push_back({"weight", rows, Packing::rows, c.arithmetic});
  }
  const Tensor offsets = bench.integers(in.offsets);
  const auto run = [=, &bench](Context& ctx) {
    const Located at = bench.at(ctx);
    const std::vector<Param> there = at(weights);
    return std::vector{grouped_matmul(ctx, at(x), there, at(offsets))};
  };
  return {run, {reference::grouped_matmul(in)}};
}

std::string describe(const Case& c) {
  std::string text = "rows";
  for (const int64_t n : c.rows) text += concat(" ", n);
  return concat(text, ", ", c.in, " -> ", c.out, " ", name_of(c.dtype), c.range.low < 0 ? " mixed" : " positive",
                c.strided ? " strided" : "", c.arithmetic == Arithmetic::bf16 ? " in bf16" : "");
}

// Groups of none, few and many rows beside each other, first and last; depths and widths around blocks and tasks.
TEST(GroupedMatmul, Forward) {
  Op<Case> op{"grouped_matmul", {}, describe, make};
  const std::vector<std::vector<int64_t>> groups = {{0},
                                                    {5},
                                                    {0, 0, 0},
                                                    {1, 1, 1, 1},
                                                    {0, 1, 0, 2, 13, 0},
                                                    {25, 0, 3, 1, 12, 97, 1},
                                                    {2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0},
                                                    {200, 1}};
  const int64_t depths[] = {64, 257, 33, 300, 1}, widths[] = {48, 130, 33, 16, 257, 0};
  size_t i = 0;
  for (const std::vector<int64_t>& rows : groups) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      for (const Arithmetic arithmetic : {Arithmetic::f32, Arithmetic::bf16}) {
        op.cases.push_back(
            {rows, depths[i % 5], widths[i % 6], dtype, i % 2 == 0 ? kMixed : kPositive, i % 3 == 0, arithmetic});
        ++i;
      }
    }
  }
  op.cases.push_back({{1, 0, 1, 14}, 1100, 700, DType::bf16, kPositive});  // several tasks of several blocks
  check_forward(op);
}

template <DType activations>
Op<Case> on_cuda_cases() {
  Op<Case> op{concat("grouped_matmul of ", name_of(activations)), {}, describe, make_on_cuda<activations>};
  const std::vector<std::vector<int64_t>> groups = {
      {0}, {5}, {0, 0, 0}, {1, 1, 1, 1}, {0, 1, 0, 2, 13, 0}, {25, 0, 3, 1, 12, 97, 1}, {200, 1}, {300, 129}};
  const int64_t depths[] = {64, 257, 33, 304, 1}, widths[] = {48, 130, 33, 16, 257, 1100};
  size_t i = 0;
  for (const std::vector<int64_t>& rows : groups) {
    for (const auto& [dtype, arithmetic] :
         {std::pair{DType::f32, Arithmetic::f32}, std::pair{DType::bf16, Arithmetic::f32},
          std::pair{DType::bf16, Arithmetic::bf16}}) {
      op.cases.push_back(
          {rows, depths[i % 5], widths[i % 6], dtype, i % 2 == 0 ? kMixed : kPositive, i % 3 == 0, arithmetic});
      ++i;
    }
    op.cases.push_back({rows, 512, 264, DType::bf16, kMixed, false, Arithmetic::bf16});
  }
  std::vector<int64_t> many(40);
  for (size_t g = 0; g < many.size(); ++g) many[g] = g % 7 == 3 ? 2 : 0;
  op.cases.push_back({many, 1536, 130, DType::bf16, kMixed, false, Arithmetic::bf16});
  return op;
}

TEST(GroupedMatmul, OnCuda) { check_on_cuda(on_cuda_cases<DType::f32>()); }
TEST(GroupedMatmul, Bf16OnCuda) { check_on_cuda(on_cuda_cases<DType::bf16>()); }

// The kernel is matmul's: each row's bits are those of matmul() of that row alone with its group's weight.
TEST(GroupedMatmul, RowHasTheBitsOfMatmulAlone) {
  const std::vector<int64_t> rows = {3, 0, 40, 1, 13, 101, 1};
  const std::vector<int64_t> offsets = offsets_of(rows);
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    Workbench bench(3);
    const Tensor x = bench.matrix(offsets.back(), 300, kMixed, true), at = bench.integers(offsets);
    std::vector<Param> weights;
    for (size_t g = 0; g < rows.size(); ++g) weights.push_back(packed(bench, bench.tensor({150, 300}, kMixed, dtype)));
    for_each_isa([&](Isa) {
      Lab lab(2);
      Context ctx = lab.ctx();
      const Tensor y = grouped_matmul(ctx, x, weights, at);
      for (size_t g = 0; g < rows.size(); ++g) {
        for (int64_t r = offsets[g]; r < offsets[g + 1]; ++r) {
          ASSERT_EQ(bits_of(y.slice(r, r + 1)), bits_of(matmul(ctx, x.slice(r, r + 1), weights[g])))
              << "row " << r << " of group " << g;
        }
      }
    });
  }
}

TEST(GroupedMatmul, OperandsThatDoNotFitAreErrors) {
  Workbench bench(5);
  Lab lab;
  Context ctx = lab.ctx();
  const Tensor rows = bench.tensor({6, 8}, kMixed), x = bench.matrix(3, 8, kMixed, false);
  const Tensor offsets = bench.integers({0, 1, 3});
  const Param weight = packed(bench, rows);
  const auto call = [&](const Tensor& operand, const std::vector<Param>& weights, const Tensor& at) {
    grouped_matmul(ctx, operand, weights, at);
  };
  EXPECT_NO_THROW(call(x, {weight, weight}, offsets));
  EXPECT_THROW(call(x, {}, bench.integers({0})), Error);
  EXPECT_THROW(call(x, {weight, bench.param(rows)}, offsets), Error) << "not packed";
  EXPECT_THROW(call(x, {weight, packed(bench, bench.tensor({5, 8}, kMixed))}, offsets), Error) << "another shape";
  EXPECT_THROW(call(x, {weight, packed(bench, bench.tensor({6, 8}, kMixed, DType::f16))}, offsets), Error);
  const Param other = packed(bench, bench.tensor({6, 8}, kMixed, DType::bf16), Arithmetic::bf16);
  EXPECT_NO_THROW(call(x, {other, other}, offsets));
  EXPECT_THROW(call(x, {packed(bench, bench.tensor({6, 8}, kMixed, DType::bf16)), other}, offsets), Error);
  EXPECT_THROW(call(x.columns(0, 7), {weight, weight}, offsets), Error);
  EXPECT_THROW(call(x, {weight, weight}, bench.integers({0, 3})), Error);
  EXPECT_THROW(call(x, {weight, weight}, bench.integers({1, 1, 3})), Error);
  EXPECT_THROW(call(x, {weight, weight}, bench.integers({0, 1, 4})), Error);
  EXPECT_THROW(call(x, {weight, weight}, bench.integers({0, 4, 3})), Error);
  EXPECT_THROW(call(x, {weight, weight}, bench.integers({0, 1, 3}, DType::i32)), Error);
}

}  // namespace
}  // namespace elapid::testing
