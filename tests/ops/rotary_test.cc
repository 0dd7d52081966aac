#include "elapid/ops/rotary/rotary.h"

#include "elapid/ops/rotary/rotary_reference.h"
#include "tests/ops/harness.h"

#include <array>

namespace elapid::testing {
namespace {

struct Case {
  Ragged ragged;
  std::array<int64_t, 5> past{};  // of the first sequences that have a slot
  int64_t heads = 3, head_dim = 16, pairs = 8;
  bool interleaved = false, in_place = false, strided = false;
  float scaling = 1, alpha = 1;
  DType activations = DType::f32;
};

struct Operands {
  Tensor x, out;
  Rotary rotary;
  reference::Sequences sequences;
};

Operands operands(Workbench& bench, const Case& c) {
  Operands o;
  o.sequences = sequences_of(c.ragged);
  o.sequences.past.assign(o.sequences.slots.size(), 0);
  size_t next = 0;
  for (size_t s = 0; s < o.sequences.slots.size(); ++s) {
    if (o.sequences.slots[s] >= 0 && next < c.past.size()) o.sequences.past[s] = c.past[next++];
  }
  const int64_t tokens = o.sequences.offsets.back(), width = c.heads * c.head_dim;
  o.x = bench.matrix(tokens, width, kMixed, c.strided, c.activations);
  o.out = c.in_place ? o.x : c.strided ? bench.output(tokens, width, true, c.activations) : Tensor();
  if (o.out) bench.writable(o.out);
  std::vector<float> f;
  for (int64_t i = 0; i < c.pairs; ++i) {
    f.push_back(static_cast<float>(std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(c.pairs))));
  }
  o.rotary = {bench.floats(f), c.scaling, c.interleaved, c.alpha};
  return o;
}

Op<Case> op() {
  Op<Case> op;
  op.name = "rotary";
  const int64_t dims[][2] = {{16, 8}, {2, 1}, {64, 32}, {17, 8}, {80, 20}, {40, 17}, {5, 0}, {3, 1}};
  const std::array<int64_t, 5> pasts[] = {{}, {5, 1'000'000, 63}, {70'000'000'000}};
  size_t i = 0;
  for (const Ragged& ragged : ragged_batches()) {
    const auto& dim = dims[i % std::size(dims)];
    op.cases.push_back({ragged, pasts[i % 3], 1 + static_cast<int64_t>(i % 4), dim[0], dim[1], i % 2 == 0, i % 5 < 2,
                        i % 3 == 0, i % 4 == 0 ? 1.25f : 1, i % 7 == 0 ? 0.4f : 1});
    ++i;
  }
  op.cases.push_back({{{3000, 1}, Slots::permuted}, {1'000'000, 3}, 2, 64, 32});
  op.describe = [](const Case& c) {
    return concat(describe(c.ragged), ", heads ", c.heads, " of ", c.head_dim, " pairs ", c.pairs,
                  c.interleaved ? " interleaved" : "", c.in_place ? " in place" : "", c.strided ? " strided" : "",
                  " alpha ", c.alpha);
  };
  op.make = [](Workbench& bench, const Case& c) {
    const Operands o = operands(bench, c);
    const Batch batch = bench.batch(o.sequences);
    reference::Expected want =
        reference::rotary({reference::matrix_of(o.x), reference::matrix_of(o.rotary.inverse_frequencies), c.heads,
                           c.interleaved, static_cast<double>(c.scaling), static_cast<double>(c.alpha)},
                          o.sequences);
    if (c.activations == DType::bf16) want = written_in_bf16(std::move(want));
    return Operation{[=, &bench](Context& ctx) {
                       const Located at = bench.at(ctx);
                       return std::vector{rotary(ctx, at(o.x), c.heads, o.rotary, batch, at(o.out))};
                     },
                     {std::move(want)}};
  };
  return op;
}

Op<Case> in_bf16(Op<Case> op) {
  op.name += " of bf16";
  for (Case& c : op.cases) c.activations = DType::bf16;
  return op;
}

TEST(Rotary, Forward) { check_forward(op()); }
TEST(Rotary, OnCuda) { check_on_cuda(op()); }
TEST(Rotary, Bf16OnCuda) { check_on_cuda(in_bf16(op())); }

TEST(Rotary, AnySplitIsTheSame) {
  for (const bool interleaved : {false, true}) {
    Workbench bench(1);
    const Operands o = operands(bench, {{{50}, Slots::permuted}, {1000}, 2, 20, 9, interleaved});
    const Batch whole = bench.batch(o.sequences), first = bench.batch({{0, 17}, {0}, {1000}}),
                second = bench.batch({{0, 33}, {0}, {1017}});
    Lab lab(2);
    Context ctx = lab.ctx();
    const Tensor y = rotary(ctx, o.x, 2, o.rotary, whole);
    EXPECT_EQ(bits_of(rotary(ctx, o.x.slice(0, 17), 2, o.rotary, first)), bits_of(y.slice(0, 17)));
    EXPECT_EQ(bits_of(rotary(ctx, o.x.slice(17, 50), 2, o.rotary, second)), bits_of(y.slice(17, 50)));
  }
}

TEST(Rotary, OperandsThatDoNotFitAreErrors) {
  Workbench bench(2);
  const Operands o = operands(bench, {{{5}, Slots::permuted}, {3}, 2, 8, 4});
  Lab lab;
  Context ctx = lab.ctx();
  const Batch batch = bench.batch(o.sequences);
  EXPECT_NO_THROW(rotary(ctx, o.x, 2, o.rotary, batch));
  EXPECT_THROW(rotary(ctx, o.x, 3, o.rotary, batch), Error);
  EXPECT_THROW(rotary(ctx, o.x, 4, o.rotary, batch), Error) << "more pairs than a head has";
  EXPECT_THROW(rotary(ctx, o.x, 2, o.rotary, batch, o.x.slice(0, 4)), Error);
  EXPECT_THROW(rotary(ctx, o.x, 2, o.rotary, bench.batch({{0, 5}, {1}})), Error) << "a slot, but no past";
  EXPECT_THROW(rotary(ctx, o.x, 2, o.rotary, bench.batch({{0, 4}, {-1}})), Error);
}

}  // namespace
}  // namespace elapid::testing
