#include "elapid/ops/selective_scan/selective_scan.h"

#include "elapid/ops/selective_scan/selective_scan_reference.h"
#include "tests/ops/harness.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace elapid::testing {
namespace {

constexpr float kInfinity = __builtin_inff();

struct Case {
  Ragged ragged;
  int64_t channels = 32, d_state = 16, groups = 1;
  bool D = true, dt_bias = true, z = true, strided = false;
  Range range = kMixed;                 // x, B, C and the state
  Range dt = {-4, 2}, A = {-4, -0.05};  // time steps as softplus makes them from trained models' values
  Range gate = {-4, 4};
  DType held = DType::f32;  // the state
  DType activations = DType::f32;
};

struct Operands {
  SelectiveScan in;
  Tensor state;
};

Operands operands(Workbench& bench, const Case& c) {
  Operands o;
  const int64_t tokens = sequences_of(c.ragged).offsets.back();
  o.in.x = bench.matrix(tokens, c.channels, c.range, c.strided, c.activations);
  o.in.dt = bench.matrix(tokens, c.channels, c.dt, c.strided, c.activations);
  o.in.B = bench.matrix(tokens, c.groups * c.d_state, c.range, c.strided, c.activations);
  o.in.C = bench.matrix(tokens, c.groups * c.d_state, c.range, c.strided, c.activations);
  o.in.A = bench.matrix(c.channels, c.d_state, c.A, c.strided);
  if (c.D) o.in.D = bench.tensor({c.channels}, kMixed);
  if (c.dt_bias) o.in.dt_bias = bench.tensor({c.channels}, {-1, 1});
  if (c.z) o.in.z = bench.matrix(tokens, c.channels, c.gate, c.strided, c.activations);
  o.in.groups = c.groups;
  if (c.ragged.slots != Slots::none) {
    o.state = bench.tensor({ragged_pool_rows(c.ragged), c.channels, c.d_state}, c.range, c.held);
  }
  return o;
}

reference::SelectiveScanInputs inputs(const Operands& o) {
  using reference::matrix_of;
  return {matrix_of(o.in.x),  matrix_of(o.in.dt), matrix_of(o.in.B),           matrix_of(o.in.C),
          matrix_of(o.in.A),  matrix_of(o.in.D),  matrix_of(o.in.dt_bias),     matrix_of(o.in.z),
          matrix_of(o.state), o.in.groups,        o.state.dtype == DType::bf16};
}

std::string describe_case(const Case& c) {
  const auto in = [](const char* name, Range r) { return concat(" ", name, " in ", r.low, " to ", r.high); };
  return concat(describe(c.ragged), ", channels ", c.channels, " d_state ", c.d_state, " groups ", c.groups,
                c.D ? " D" : "", c.dt_bias ? " dt_bias" : "", c.z ? " z" : "", c.strided ? " strided" : "",
                in("x", c.range), in("dt", c.dt), in("A", c.A), in("gate", c.gate),
                c.held == DType::bf16 ? " state in bf16" : "");
}

SelectiveScan located(const Located& at, SelectiveScan in) {
  for (Tensor* t : {&in.x, &in.dt, &in.B, &in.C, &in.A, &in.D, &in.dt_bias, &in.z}) *t = at(*t);
  return in;
}

Operation make(Workbench& bench, const Case& c) {
  const Operands o = operands(bench, c);
  const reference::Sequences sequences = sequences_of(c.ragged);
  const Batch batch = bench.batch(sequences);
  for (const int64_t slot : sequences.slots) {
    if (slot >= 0) bench.writable(o.state.slice(slot, slot + 1));
  }
  reference::SelectiveScanExpected want = reference::selective_scan(inputs(o), sequences);
  Operation operation;
  operation.run = [=, &bench](Context& ctx) {
    const Located at = bench.at(ctx);
    std::vector outputs{selective_scan(ctx, located(at, o.in), batch, at(o.state))};
    if (o.state) outputs.push_back(at(o.state));
    return outputs;
  };
  if (c.activations == DType::bf16) want.y = written_in_bf16(std::move(want.y));
  operation.expected.push_back(std::move(want.y));
  if (o.state) operation.expected.push_back(std::move(want.state));
  return operation;
}

Op<Case> shapes() {
  Op<Case> op{"selective_scan", {}, describe_case, make};
  const int64_t channels[] = {32, 1, 16, 17, 45, 6}, d_states[] = {16, 1, 17, 8, 33, 3, 12, 32, 6};
  size_t i = 0;
  for (const Ragged& ragged : ragged_batches()) {
    Case c{ragged};
    c.groups = i % 5 < 2 ? 3 : 1;
    c.channels = c.groups * channels[i % 6];
    c.d_state = d_states[i % 9];
    c.D = i % 4 != 0;
    c.dt_bias = i % 3 != 1;
    c.z = i % 7 < 4;
    c.strided = i % 2 == 0;
    c.range = i % 8 < 5 ? kMixed : kPositive;
    op.cases.push_back(c);
    ++i;
  }
  for (int64_t d_state = 1; d_state <= 33; ++d_state) op.cases.push_back({{{1, 2, 19}, Slots::mixed}, 18, d_state});
  op.cases.push_back({{{70, 1, 1}, Slots::permuted}, 1536, 16});  // Mamba 130m; several tasks
  op.cases.push_back({{{1, 1, 1}, Slots::permuted}, 1536, 16});
  return op;
}

// Values from the ends of what a model or a broken checkpoint may hold.
Op<Case> extremes() {
  Op<Case> op{"selective_scan extremes", {}, describe_case, make};
  const auto add = [&](Range dt, Range A, Range range = kMixed, Range gate = {-4, 4}) {
    Case c{{{70, 1, 3, 129}, Slots::mixed}, 20, 13};
    c.dt = dt;
    c.A = A;
    c.range = range;
    c.gate = gate;
    op.cases.push_back(c);
  };
  add({1e4, 1e4}, {-16, -1});                              // dt huge
  add({-1e4, -1e4}, {-16, -1});                            // dt zero: nothing decays, nothing enters
  add({-90, -85}, {-16, -1});                              // dt subnormal
  add({-100, 100}, {-16, -1});                             // everything between, beside each other
  add({-4, 2}, {-double{kInfinity}, -double{kInfinity}});  // nothing is remembered
  add({-4, 2}, {-1e30, -1e30});
  add({-1e4, -1e4}, {-1e30, -1e30});
  add({-4, 2}, {0, 0});  // nothing is forgotten
  add({-4, 2}, {-1e-30, -1e-30});
  add({18, 22}, {-1, -1e-3});  // where softplus becomes linear
  add({4, 4}, {-22, -21});     // decays around the smallest normal number
  add({-4, 2}, {-40, -20});
  add({-4, 2}, {-4, -0.05}, {-1e11, 1e11});
  add({-4, 2}, {-4, -0.05}, {-1e-15, 1e-15});
  add({-4, 2}, {-4, -0.05}, {-1e-30, 1e-30});
  add({-4, 2}, {-4, -0.05}, {0, 0});
  add({-4, 2}, {-4, -0.05}, kMixed, {-120, 120});
  add({-4, 2}, {-4, -0.05}, kMixed, {-1e4, 1e4});
  return op;
}

Op<Case> with_bf16_state(Op<Case> op) {
  op.name += " with states in bf16";
  for (Case& c : op.cases) c.held = DType::bf16;
  return op;
}

// Several tiles of states and more of them than a lane has.
Op<Case> for_cuda() {
  Op<Case> op{"selective_scan on cuda", {}, describe_case, make};
  for (const int64_t d_state : {16, 48, 64, 100, 128, 250, 256}) {
    op.cases.push_back({{{33, 1, 70}, Slots::mixed}, 40, d_state});
    op.cases.push_back({{{1, 1, 1, 1, 0, 1, 1}, Slots::mixed}, 40, d_state});
  }
  op.cases.push_back({{{1000}, Slots::permuted}, 24, 16});
  return op;
}

Op<Case> in_bf16(Op<Case> op) {
  op.name += " of bf16";
  for (Case& c : op.cases) c.activations = DType::bf16;
  return op;
}

TEST(SelectiveScan, Forward) { check_forward(shapes()); }
TEST(SelectiveScan, ForwardWithBf16State) { check_forward(with_bf16_state(shapes())); }
TEST(SelectiveScan, Extremes) { check_forward(extremes()); }
TEST(SelectiveScan, OnCuda) { check_on_cuda(shapes()); }
TEST(SelectiveScan, ExtremesOnCuda) { check_on_cuda(extremes()); }
TEST(SelectiveScan, LargerOnCuda) { check_on_cuda(for_cuda()); }
TEST(SelectiveScan, Bf16OnCuda) { check_on_cuda(in_bf16(shapes())); }
TEST(SelectiveScan, Bf16ExtremesOnCuda) { check_on_cuda(in_bf16(extremes())); }
TEST(SelectiveScan, Bf16LargerOnCuda) { check_on_cuda(in_bf16(for_cuda())); }

// Inputs near the end of float32's range, where only x is large: results are finite and within tolerance.
TEST(SelectiveScan, HugeInputs) {
  Op<Case> op{"selective_scan huge x", {{{{70, 1, 3}, Slots::permuted}}}, describe_case, {}};
  op.make = [](Workbench& bench, const Case& c) {
    Operands o = operands(bench, c);
    for (int64_t i = 0; i < o.in.x.size(); ++i) o.in.x.ptr<float>()[i] *= 1e30f;
    const reference::Sequences sequences = sequences_of(c.ragged);
    const Batch batch = bench.batch(sequences);
    bench.writable(o.state);
    reference::SelectiveScanExpected want = reference::selective_scan(inputs(o), sequences);
    const auto run = [=](Context& ctx) { return std::vector{selective_scan(ctx, o.in, batch, o.state), o.state}; };
    return Operation{run, {std::move(want.y), std::move(want.state)}};
  };
  check_forward(op);
}

TEST(SelectiveScan, SequenceIsTheSameAloneAndNanStaysInIt) {
  const Case c{{{5, 1, 70, 1, 0, 2, 130, 64}, Slots::mixed}, 36, 19, 2, true, true, true, true};
  constexpr int64_t kBad = 2;
  Workbench bench(1);
  const Operands o = operands(bench, c);
  const reference::Sequences sequences = sequences_of(c.ragged);
  const Batch batch = bench.batch(sequences);
  std::vector<Batch> ones;
  for (int64_t s = 0; s < sequences.count(); ++s) ones.push_back(bench.batch(alone(sequences, s)));
  const int64_t bad_row = sequences.begin(kBad) + 30;
  for (const Tensor& broken : {o.in.x, o.in.dt, o.in.B, o.in.C, o.in.z}) {
    const float kept = broken.row<float>(bad_row)[0];
    broken.row<float>(bad_row)[0] = __builtin_nanf("");
    bench.snapshot();
    for_each_isa([&](Isa) {
      Lab lab(3);
      Context ctx = lab.ctx();
      bench.restore();
      const Tensor y = selective_scan(ctx, o.in, batch, o.state);
      const Bits state = bits_of(o.state);
      EXPECT_TRUE(std::isnan(y.row<float>(bad_row)[0]));
      EXPECT_FALSE(std::isnan(y.row<float>(bad_row)[c.channels - 1])) << "another group";
      bench.restore();
      for (int64_t s = 0; s < sequences.count(); ++s) {
        const int64_t begin = sequences.begin(s), end = sequences.end(s);
        SelectiveScan one = o.in;
        for (Tensor* t : {&one.x, &one.dt, &one.B, &one.C, &one.z}) *t = t->slice(begin, end);
        const Tensor part = selective_scan(ctx, one, ones[static_cast<size_t>(s)], o.state);
        EXPECT_EQ(bits_of(part), bits_of(y.slice(begin, end))) << "sequence " << s;
        for (const uint32_t bits : bits_of(part)) {
          EXPECT_FALSE(s != kBad && std::isnan(std::bit_cast<float>(bits)));
        }
      }
      EXPECT_EQ(bits_of(o.state), state);
    });
    broken.row<float>(bad_row)[0] = kept;
  }
}

// A sequence handed over in pieces, its state kept between calls, is the same bits as in one call: what a prompt leaves
// does not depend on how it was cut. Infinite time steps included.
TEST(SelectiveScan, AnySplitIsTheSame) {
  for (const int64_t d_state : {16, 1, 7, 35}) {
    for (const Slots slots : {Slots::permuted, Slots::none}) {
      const Case c{{{150}, slots}, 39, d_state};
      Workbench bench(2);
      const Operands o = operands(bench, c);
      const reference::Sequences whole = sequences_of(c.ragged);
      const int64_t slot = whole.slot(0), length = whole.end(0);
      o.in.dt.row<float>(60)[3] = kInfinity;
      const Batch batch = bench.batch(whole);
      std::map<int64_t, Batch> pieces;  // by length
      for (int64_t size = 1; size <= 65; ++size) pieces[size] = bench.batch({{0, size}, {slot}});
      bench.snapshot();
      for_each_isa([&](Isa) {
        Lab lab(2);
        Context ctx = lab.ctx();
        bench.restore();
        const Bits y = bits_of(selective_scan(ctx, o.in, batch, o.state)), state = bits_of(o.state);
        for (const int64_t piece : {1, 2, 3, 7, 15, 16, 17, 64, 65}) {
          bench.restore();
          Bits pieced;
          const int64_t end = slots == Slots::none ? piece : length;  // without a slot, only the first piece is alike
          for (int64_t begin = 0; begin < end; begin += piece) {
            const int64_t size = std::min(piece, end - begin);
            SelectiveScan part = o.in;
            for (Tensor* t : {&part.x, &part.dt, &part.B, &part.C, &part.z}) *t = t->slice(begin, begin + size);
            const Bits bits = bits_of(selective_scan(ctx, part, pieces.at(size), o.state));
            pieced.insert(pieced.end(), bits.begin(), bits.end());
          }
          EXPECT_TRUE(std::equal(pieced.begin(), pieced.end(), y.begin())) << "pieces of " << piece;
          if (slots != Slots::none) {
            EXPECT_EQ(bits_of(o.state), state) << "pieces of " << piece;
          }
        }
      });
    }
  }
}

// The same on CUDA, and a sequence alone has the bits that it has in a batch: one token and many, with one share of the
// states a lane or two.
TEST(SelectiveScan, AnySplitIsTheSameOnCuda) {
  std::string why;
  if (!has_cuda(why)) GTEST_SKIP() << why;
  for (const int64_t d_state : {16, 7, 35}) {
    const Case c{{{150, 1, 40}, Slots::permuted}, 39, d_state};
    Workbench bench(2);
    const Operands o = operands(bench, c);
    const reference::Sequences sequences = sequences_of(c.ragged);
    const Batch batch = bench.batch(sequences);
    bench.snapshot();
    Lab lab(1, {DeviceType::cuda, 0});
    Context ctx = lab.ctx();
    const auto run = [&](int64_t begin, int64_t end, const Batch& part_of) {
      const Located at = bench.at(ctx);
      SelectiveScan part = located(at, o.in);
      for (Tensor* t : {&part.x, &part.dt, &part.B, &part.C, &part.z}) *t = t->slice(begin, end);
      return bits_of(copy_to_host(ctx, selective_scan(ctx, part, part_of, at(o.state))).tensor);
    };
    const auto state = [&] { return bits_of(copy_to_host(ctx, bench.device_copy(o.state)).tensor); };
    bench.copy_to_device(ctx, true);
    const Bits y = run(0, sequences.offsets.back(), batch), left = state();
    for (const int64_t piece : {1, 2, 31, 33, 64, 150}) {
      bench.restore();
      bench.copy_to_device(ctx, true);
      Bits pieced;
      for (int64_t s = 0; s < sequences.count(); ++s) {
        for (int64_t begin = sequences.begin(s); begin < sequences.end(s); begin += piece) {
          const int64_t end = std::min(begin + piece, sequences.end(s));
          const Bits bits = run(begin, end, bench.batch({{0, end - begin}, {sequences.slot(s)}}));
          pieced.insert(pieced.end(), bits.begin(), bits.end());
        }
      }
      EXPECT_TRUE(pieced == y) << "pieces of " << piece;
      EXPECT_TRUE(state() == left) << "pieces of " << piece;
    }
  }
}

TEST(SelectiveScan, OperandsThatDoNotFitAreErrors) {
  Workbench bench(3);
  const Operands o = operands(bench, {{{3, 2}, Slots::permuted}, 12, 6, 2});
  Lab lab;
  Context ctx = lab.ctx();
  const auto run = [&](const SelectiveScan& in, const reference::Sequences& s, const Tensor& state) {
    return selective_scan(ctx, in, bench.batch(s), state);
  };
  const reference::Sequences good{{0, 3, 5}, {0, 4}};
  EXPECT_NO_THROW(run(o.in, good, o.state));
  EXPECT_THROW(run(o.in, {{0, 3, 5}, {0, 5}}, o.state), Error) << "no such row";
  EXPECT_THROW(run(o.in, {{0, 3, 6}, {0, 1}}, o.state), Error) << "a token too many";
  EXPECT_THROW(run(o.in, good, {}), Error) << "a slot without a pool";
  EXPECT_THROW(run(o.in, good, o.state.reshape({5, 6, 12})), Error);
  const auto broken = [&](const std::function<void(SelectiveScan&)>& change) {
    SelectiveScan in = o.in;
    change(in);
    EXPECT_THROW(run(in, good, o.state), Error);
  };
  broken([](SelectiveScan& in) { in.groups = 5; });
  broken([](SelectiveScan& in) { in.groups = 0; });
  broken([](SelectiveScan& in) { in.groups = 1; });
  broken([](SelectiveScan& in) { in.x = in.x.columns(0, 10); });
  broken([](SelectiveScan& in) { in.x = in.x.slice(0, 4); });
  broken([](SelectiveScan& in) { in.dt = in.dt.columns(0, 10); });
  broken([](SelectiveScan& in) { in.B = in.B.slice(0, 4); });
  broken([](SelectiveScan& in) { in.C = in.C.columns(0, 10); });
  broken([](SelectiveScan& in) { in.A = in.A.slice(0, 11); });
  broken([](SelectiveScan& in) { in.A = in.A.columns(0, 5); });
  broken([](SelectiveScan& in) { in.A = {}; });
  broken([](SelectiveScan& in) { in.D = in.D.slice(0, 3); });
  broken([](SelectiveScan& in) { in.D.dtype = DType::i32; });
  broken([](SelectiveScan& in) { in.dt_bias = in.dt_bias.slice(0, 3); });
  broken([](SelectiveScan& in) { in.z = in.z.columns(0, 11); });
  broken([](SelectiveScan& in) { in.z = in.z.slice(0, 4); });
}

}  // namespace
}  // namespace elapid::testing
