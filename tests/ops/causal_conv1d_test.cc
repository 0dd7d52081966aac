#include "elapid/ops/causal_conv1d/causal_conv1d.h"

#include "elapid/ops/causal_conv1d/causal_conv1d_reference.h"
#include "tests/ops/harness.h"

namespace elapid::testing {
namespace {

struct Case {
  Ragged ragged;
  int64_t channels = 40, taps = 4;
  bool silu = true, bias = true, strided = false;
  Range range = kMixed;
  DType activations = DType::f32;
};

struct Operands {
  Tensor x, state;
  CausalConv1d conv;
};

Operands operands(Workbench& bench, const Case& c) {
  Operands o;
  const int64_t tokens = sequences_of(c.ragged).offsets.back();
  o.x = bench.matrix(tokens, c.channels, c.range, c.strided, c.activations);
  o.conv.weight = bench.param(bench.tensor({c.taps, c.channels}, c.range));
  if (c.bias) o.conv.bias = bench.param(bench.tensor({c.channels}, c.range));
  o.conv.silu = c.silu;
  if (c.ragged.slots != Slots::none) {
    o.state = bench.tensor({ragged_pool_rows(c.ragged), c.taps - 1, c.channels}, c.range);
  }
  return o;
}

reference::CausalConv1dExpected expected(const Operands& o, const reference::Sequences& sequences) {
  return reference::causal_conv1d({reference::matrix_of(o.x), reference::matrix_of(o.conv.weight.value),
                                   reference::matrix_of(o.conv.bias.value), reference::matrix_of(o.state), o.conv.silu},
                                  sequences);
}

Op<Case> op() {
  Op<Case> op;
  op.name = "causal_conv1d";
  const int64_t channels[] = {40, 1, 16, 17, 15, 33}, taps[] = {4, 2, 3, 1, 7};
  size_t i = 0;
  for (const Ragged& ragged : ragged_batches()) {
    op.cases.push_back(
        {ragged, channels[i % 6], taps[i % 5], i % 4 != 3, i % 3 != 2, i % 2 == 0, i % 7 < 4 ? kMixed : kPositive});
    ++i;
  }
  op.cases.push_back({{{70, 1, 3}, Slots::permuted}, 20, kMostConvTaps, false, true, true, kPositive});
  op.cases.push_back({{{40, 1}, Slots::permuted}, 1792, 4});                           // Mamba-2 130m; several tasks
  op.cases.push_back({{{20, 1}, Slots::mixed}, 40, 4, true, true, false, {-60, 60}});  // SiLU far out
  op.describe = [](const Case& c) {
    return concat(describe(c.ragged), ", channels ", c.channels, " taps ", c.taps, c.silu ? " silu" : "",
                  c.bias ? " bias" : "", c.strided ? " strided" : "", " in ", c.range.low, " to ", c.range.high);
  };
  op.make = [](Workbench& bench, const Case& c) {
    const Operands o = operands(bench, c);
    const reference::Sequences sequences = sequences_of(c.ragged);
    const Batch batch = bench.batch(sequences);
    for (const int64_t slot : sequences.slots) {
      if (slot >= 0) bench.writable(o.state.slice(slot, slot + 1));
    }
    reference::CausalConv1dExpected want = expected(o, sequences);
    Operation operation;
    operation.run = [=, &bench](Context& ctx) {
      const Located at = bench.at(ctx);
      const CausalConv1d conv{at(o.conv.weight), at(o.conv.bias), o.conv.silu};
      std::vector outputs{causal_conv1d(ctx, at(o.x), conv, batch, at(o.state))};
      if (o.state) outputs.push_back(at(o.state));
      return outputs;
    };
    if (c.activations == DType::bf16) want.y = written_in_bf16(std::move(want.y));
    operation.expected.push_back(std::move(want.y));
    if (o.state) operation.expected.push_back(std::move(want.state));
    return operation;
  };
  return op;
}

Op<Case> in_bf16(Op<Case> op) {
  op.name += " of bf16";
  for (Case& c : op.cases) c.activations = DType::bf16;
  return op;
}

TEST(CausalConv1d, Forward) { check_forward(op()); }
TEST(CausalConv1d, OnCuda) { check_on_cuda(op()); }
TEST(CausalConv1d, Bf16OnCuda) { check_on_cuda(in_bf16(op())); }

TEST(CausalConv1d, SequenceIsTheSameAloneAndNanStaysInIt) {
  const Case c{{{5, 1, 70, 1, 0, 2, 33}, Slots::mixed}, 37, 4, true, true, true};
  constexpr int64_t kBad = 2;
  Workbench bench(1);
  const Operands o = operands(bench, c);
  const reference::Sequences sequences = sequences_of(c.ragged);
  o.x.row<float>(sequences.begin(kBad) + 30)[3] = __builtin_nanf("");
  const Batch batch = bench.batch(sequences);
  std::vector<Batch> ones;
  for (int64_t s = 0; s < sequences.count(); ++s) ones.push_back(bench.batch(alone(sequences, s)));
  bench.snapshot();
  for_each_isa([&](Isa) {
    Lab lab(3);
    Context ctx = lab.ctx();
    bench.restore();
    const Tensor y = causal_conv1d(ctx, o.x, o.conv, batch, o.state);
    const Bits state = bits_of(o.state);
    bench.restore();
    for (int64_t s = 0; s < sequences.count(); ++s) {
      const int64_t begin = sequences.begin(s), end = sequences.end(s);
      const Tensor part = causal_conv1d(ctx, o.x.slice(begin, end), o.conv, ones[static_cast<size_t>(s)], o.state);
      EXPECT_EQ(bits_of(part), bits_of(y.slice(begin, end))) << "sequence " << s;
      for (int64_t t = begin; t < end; ++t) {
        const bool reached = s == kBad && t >= begin + 30 && t < begin + 30 + c.taps;
        for (int64_t i = 0; i < c.channels; ++i) EXPECT_EQ(std::isnan(y.row<float>(t)[i]), reached && i == 3);
      }
    }
    EXPECT_EQ(bits_of(o.state), state);
  });
}

// A sequence handed over in pieces, its window kept between calls, is the same bits as in one call.
TEST(CausalConv1d, AnySplitIsTheSame) {
  for (const int64_t taps : {1, 2, 4, 7}) {
    const Case c{{{200}, Slots::permuted}, 37, taps};
    Workbench bench(2);
    const Operands o = operands(bench, c);
    const reference::Sequences whole = sequences_of(c.ragged);
    const int64_t slot = whole.slot(0), length = whole.end(0);
    const Batch batch = bench.batch(whole);
    std::map<int64_t, Batch> pieces;  // by length
    for (int64_t size = 1; size <= 65; ++size) pieces[size] = bench.batch({{0, size}, {slot}});
    bench.snapshot();
    for_each_isa([&](Isa) {
      Lab lab(2);
      Context ctx = lab.ctx();
      bench.restore();
      const Bits y = bits_of(causal_conv1d(ctx, o.x, o.conv, batch, o.state)), state = bits_of(o.state);
      for (const int64_t piece : {1, 2, 3, 7, 64, 65}) {
        bench.restore();
        Bits pieced;
        for (int64_t begin = 0; begin < length; begin += piece) {
          const int64_t size = std::min(piece, length - begin);
          const Tensor x = o.x.slice(begin, begin + size);
          const Bits part = bits_of(causal_conv1d(ctx, x, o.conv, pieces.at(size), o.state));
          pieced.insert(pieced.end(), part.begin(), part.end());
        }
        EXPECT_EQ(pieced, y) << "pieces of " << piece;
        EXPECT_EQ(bits_of(o.state), state) << "pieces of " << piece;
      }
    });
  }
}

TEST(CausalConv1d, AnySplitIsTheSameOnCuda) {
  std::string why;
  if (!has_cuda(why)) GTEST_SKIP() << why;
  for (const int64_t taps : {2, 4, 7}) {
    const Case c{{{200}, Slots::permuted}, 40, taps};
    Workbench bench(2);
    const Operands o = operands(bench, c);
    const reference::Sequences whole = sequences_of(c.ragged);
    const int64_t slot = whole.slot(0), length = whole.end(0);
    bench.snapshot();
    Lab lab(1, {DeviceType::cuda, 0});
    Context ctx = lab.ctx();
    const auto run = [&](int64_t begin, int64_t end) {
      const Located at = bench.at(ctx);
      const CausalConv1d conv{at(o.conv.weight), at(o.conv.bias), o.conv.silu};
      const Batch batch = bench.batch({{0, end - begin}, {slot}});
      return bits_of(copy_to_host(ctx, causal_conv1d(ctx, at(o.x).slice(begin, end), conv, batch, at(o.state))).tensor);
    };
    const auto state = [&] { return bits_of(copy_to_host(ctx, bench.device_copy(o.state)).tensor); };
    bench.copy_to_device(ctx, true);
    const Bits y = run(0, length), left = state();
    for (const int64_t piece : {1, 2, 3, 31, 65}) {
      bench.restore();
      bench.copy_to_device(ctx, true);
      Bits pieced;
      for (int64_t begin = 0; begin < length; begin += piece) {
        const Bits bits = run(begin, std::min(begin + piece, length));
        pieced.insert(pieced.end(), bits.begin(), bits.end());
      }
      EXPECT_TRUE(pieced == y) << taps << " taps, pieces of " << piece;
      EXPECT_TRUE(state() == left) << taps << " taps, pieces of " << piece;
    }
  }
}

TEST(CausalConv1d, OperandsThatDoNotFitAreErrors) {
  Workbench bench(3);
  const Operands o = operands(bench, {{{3, 2}, Slots::permuted}, 8, 4});
  Lab lab;
  Context ctx = lab.ctx();
  const auto run = [&](const reference::Sequences& s, const Tensor& state) {
    return causal_conv1d(ctx, o.x, o.conv, bench.batch(s), state);
  };
  EXPECT_NO_THROW(run({{0, 3, 5}, {0, 4}}, o.state));
  EXPECT_THROW(run({{0, 3, 5}, {0, 5}}, o.state), Error) << "no such row";
  EXPECT_THROW(run({{0, 3, 5}, {0, -2}}, o.state), Error);
  EXPECT_THROW(run({{0, 3, 4}, {0, 1}}, o.state), Error) << "a token too few";
  EXPECT_THROW(run({{0, 6, 5}, {0, 1}}, o.state), Error) << "decreasing";
  EXPECT_THROW(run({{1, 3, 5}, {0, 1}}, o.state), Error);
  EXPECT_THROW(run({{0, 5}, {0, 1}}, o.state), Error);
  EXPECT_THROW(run({{0, 3, 5}, {0, 1}}, {}), Error) << "a slot without a pool";
  EXPECT_THROW(run({{0, 3, 5}, {0, 1}}, o.state.reshape({5, 4, 6})), Error);
  CausalConv1d narrow = o.conv;
  narrow.bias.value = narrow.bias.value.slice(0, 7);
  EXPECT_THROW(causal_conv1d(ctx, o.x, narrow, bench.batch({{0, 5}, {-1}}), {}), Error);
}

}  // namespace
}  // namespace elapid::testing
