#include "elapid/ops/ssd_scan/ssd_scan.h"

#include "elapid/ops/ssd_scan/ssd_scan_reference.h"
#include "tests/ops/harness.h"

#include <cmath>

namespace elapid::testing {
namespace {

constexpr float kInfinity = __builtin_inff();

struct Case {
  Ragged ragged;
  int64_t heads = 2, head_dim = 16, d_state = 16, groups = 1;
  enum { none, per_head, per_channel } D = per_head;
  bool dt_bias = true, strided = false;
  Range range = kMixed;                 // x, B, C and the state
  Range dt = {-4, 2}, A = {-4, -0.05};  // time steps as softplus makes them from trained models' values
  float dt_min = 0, dt_max = kInfinity;
  Arithmetic arithmetic = Arithmetic::f32;
  DType held = DType::f32;  // the state
  DType activations = DType::f32;
};

struct Operands {
  SsdScan in;
  Tensor state;
};

Operands operands(Workbench& bench, const Case& c) {
  Operands o;
  const int64_t tokens = sequences_of(c.ragged).offsets.back(), width = c.heads * c.head_dim;
  o.in.x = bench.matrix(tokens, width, c.range, c.strided, c.activations);
  o.in.dt = bench.matrix(tokens, c.heads, c.dt, c.strided, c.activations);
  o.in.B = bench.matrix(tokens, c.groups * c.d_state, c.range, c.strided, c.activations);
  o.in.C = bench.matrix(tokens, c.groups * c.d_state, c.range, c.strided, c.activations);
  o.in.A = bench.tensor({c.heads}, c.A);
  if (c.D != Case::none) o.in.D = bench.tensor({c.D == Case::per_head ? c.heads : width}, kMixed);
  if (c.dt_bias) o.in.dt_bias = bench.tensor({c.heads}, {-1, 1});
  o.in.groups = c.groups;
  o.in.dt_min = c.dt_min;
  o.in.dt_max = c.dt_max;
  o.in.arithmetic = c.arithmetic;
  if (c.ragged.slots != Slots::none) {
    o.state = bench.tensor({ragged_pool_rows(c.ragged), c.heads, c.head_dim, c.d_state}, c.range, c.held);
  }
  return o;
}

reference::SsdScanInputs inputs(const Operands& o) {
  using reference::matrix_of;
  return {matrix_of(o.in.x),
          matrix_of(o.in.dt),
          matrix_of(o.in.B),
          matrix_of(o.in.C),
          matrix_of(o.in.A),
          matrix_of(o.in.D),
          matrix_of(o.in.dt_bias),
          matrix_of(o.state),
          o.in.groups,
          static_cast<double>(o.in.dt_min),
          static_cast<double>(o.in.dt_max),
          {},
          o.state.dtype == DType::bf16,
          o.in.arithmetic == Arithmetic::bf16};
}

std::string describe_case(const Case& c) {
  const auto in = [](const char* name, Range r) { return concat(" ", name, " in ", r.low, " to ", r.high); };
  return concat(describe(c.ragged), ", heads ", c.heads, " head_dim ", c.head_dim, " d_state ", c.d_state, " groups ",
                c.groups,
                c.D == Case::none       ? ""
                : c.D == Case::per_head ? " D"
                                        : " D per channel",
                c.dt_bias ? " dt_bias" : "", c.strided ? " strided" : "", in("x", c.range), in("dt", c.dt),
                in("A", c.A), " limits ", c.dt_min, " ", c.dt_max, c.held == DType::bf16 ? " state in bf16" : "");
}

SsdScan located(const Located& at, SsdScan in) {
  for (Tensor* t : {&in.x, &in.dt, &in.B, &in.C, &in.A, &in.D, &in.dt_bias}) *t = at(*t);
  return in;
}

Operation make(Workbench& bench, const Case& c) {
  const Operands o = operands(bench, c);
  const reference::Sequences sequences = sequences_of(c.ragged);
  const Batch batch = bench.batch(sequences);
  for (const int64_t slot : sequences.slots) {
    if (slot >= 0) bench.writable(o.state.slice(slot, slot + 1));
  }
  reference::SsdScanExpected want = reference::ssd_scan(inputs(o), sequences);
  Operation operation;
  operation.run = [=, &bench](Context& ctx) {
    const Located at = bench.at(ctx);
    std::vector outputs{ssd_scan(ctx, located(at, o.in), batch, at(o.state))};
    if (o.state) outputs.push_back(at(o.state));
    return outputs;
  };
  if (c.activations == DType::bf16) want.y = written_in_bf16(std::move(want.y));
  operation.expected.push_back(std::move(want.y));
  if (o.state) operation.expected.push_back(std::move(want.state));
  operation.tiled = c.arithmetic == Arithmetic::bf16;
  if (operation.tiled) operation.runs_at = [](Isa isa) { return isa == Isa::amx; };  // elsewhere it is float32
  return operation;
}

Op<Case> shapes() {
  Op<Case> op{"ssd_scan", {}, describe_case, make};
  const int64_t head_dims[] = {16, 64, 1, 17, 8, 15}, d_states[] = {16, 128, 17, 8, 33, 1, 64};
  size_t i = 0;
  for (const Ragged& ragged : ragged_batches()) {
    Case c{ragged};
    c.heads = i % 3 == 0 ? 4 : 2;
    c.groups = i % 5 < 2 ? 2 : 1;
    c.head_dim = head_dims[i % 6];
    c.d_state = d_states[i % 7];
    c.D = i % 4 == 0 ? Case::none : i % 4 == 1 ? Case::per_channel : Case::per_head;
    c.dt_bias = i % 3 != 1;
    c.strided = i % 2 == 0;
    c.range = i % 8 < 5 ? kMixed : kPositive;
    op.cases.push_back(c);
    ++i;
  }
  Case model{{{130, 1, 20}, Slots::permuted}, 2, 64, 128};  // a head of the released models
  op.cases.push_back(model);
  model.range = kPositive;
  op.cases.push_back(model);
  return op;
}

// Values from the ends of what a model or a broken checkpoint may hold.
Op<Case> extremes() {
  Op<Case> op{"ssd_scan extremes", {}, describe_case, make};
  const Ragged ragged{{70, 1, 3, 129}, Slots::mixed};
  const auto add = [&](Range dt, Range A, Range range = kMixed, float dt_min = 0, float dt_max = kInfinity) {
    Case c{ragged};
    c.dt = dt;
    c.A = A;
    c.range = range;
    c.dt_min = dt_min;
    c.dt_max = dt_max;
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
  add({18, 22}, {-1, -1e-3});  // softplus's threshold
  add({-4, 2}, {-40, -20});    // decays that underflow within a chunk
  add({-4, 2}, {-4, -0.05}, {-1e11, 1e11});
  add({-4, 2}, {-4, -0.05}, {-1e-15, 1e-15});
  add({-4, 2}, {-4, -0.05}, {0, 0});
  add({-4, 2}, {-4, -0.05}, kMixed, 0.01f, 0.1f);
  add({-4, 2}, {-4, -0.05}, kPositive, 0.5f, 0.5f);
  add({-4, 2}, {-4, -0.05}, kMixed, 3, kInfinity);
  add({-1e4, 1e4}, {-1e30, -0.05}, kMixed, 0.001f, 0.1f);
  return op;
}

Op<Case> in_bf16(Op<Case> op) {
  op.name += " in bf16";
  for (Case& c : op.cases) c.arithmetic = Arithmetic::bf16;
  return op;
}

Op<Case> with_bf16_state(Op<Case> op) {
  op.name += " with states in bf16";
  for (Case& c : op.cases) c.held = DType::bf16;
  return op;
}

TEST(SsdScan, Forward) { check_forward(shapes()); }
TEST(SsdScan, ForwardWithBf16State) { check_forward(with_bf16_state(shapes())); }
TEST(SsdScan, Extremes) { check_forward(extremes()); }
void check_in_tiles(const Op<Case>& op) {
  if (available_isas().back() != Isa::amx) GTEST_SKIP() << "this machine has no AMX";
  check_forward(in_bf16(op));
}
TEST(SsdScan, ForwardInBf16) { check_in_tiles(shapes()); }
TEST(SsdScan, ForwardInBf16WithBf16State) { check_in_tiles(with_bf16_state(shapes())); }
TEST(SsdScan, ExtremesInBf16) { check_in_tiles(extremes()); }

// Changes far below half a step of bf16 add up over many calls as they do in float32, even where every call is like the
// last; rounded to the nearest, the state would stay what it was.
TEST(SsdScan, Bf16StatesFollowSlowChanges) {
  constexpr int64_t kSteps = 4000;
  Case c{{{1}, Slots::permuted}, 2, 32, 32};
  c.held = DType::bf16;
  c.dt_bias = false;
  for (const bool steady : {false, true}) {
    for (const bool input : {false, true}) {
      Workbench bench(5);
      Operands o = operands(bench, c);
      Batch batch = bench.batch(sequences_of(c.ragged));
      batch.past = bench.integers({0});
      const int64_t slot = batch.slots.ptr<int64_t>()[0];
      const Tensor state = o.state.slice(slot, slot + 1);
      for (int64_t h = 0; h < c.heads; ++h) o.in.A.ptr<float>()[h] = -1;
      for (int64_t i = 0; i < o.in.x.size(); ++i) o.in.x.ptr<float>()[i] = input ? 1 + static_cast<float>(i) / 32 : 0;
      for (int64_t i = 0; i < o.in.B.size(); ++i) o.in.B.ptr<float>()[i] = 0.5f + static_cast<float>(i) / 64;
      for_each_isa([&](Isa isa) {
        SCOPED_TRACE(concat(name_of(isa), steady ? " steady" : " changing", input ? " input" : ""));
        Lab lab;
        Context ctx = lab.ctx();
        std::vector<double> exact;
        for (int64_t i = 0; i < state.size(); ++i) {
          state.ptr<BFloat16>()[i] = to_bf16(1 + static_cast<float>(bench.draw()));
          exact.push_back(static_cast<double>(to_float(state.ptr<BFloat16>()[i])));
        }
        double dt = 1.0 / kSteps;
        for (int64_t t = 0; t < kSteps; ++t) {
          const Arena::Scope scope(ctx.arena);
          if (!steady) dt = (0.5 + bench.draw()) / kSteps;
          for (int64_t h = 0; h < c.heads; ++h) o.in.dt.ptr<float>()[h] = static_cast<float>(std::log(std::expm1(dt)));
          batch.past.ptr<int64_t>()[0] = t;
          ssd_scan(ctx, o.in, batch, o.state);
          for (size_t i = 0; i < exact.size(); ++i) {
            const double x = static_cast<double>(o.in.x.ptr<float>()[i / 32]);
            exact[i] = std::exp(-dt) * exact[i] + dt * x * static_cast<double>(o.in.B.ptr<float>()[i % 32]);
          }
        }
        double worst = 0, mean = 0;
        for (size_t i = 0; i < exact.size(); ++i) {
          const double off = static_cast<double>(to_float(state.ptr<BFloat16>()[i])) / exact[i] - 1;
          worst = std::max(worst, std::abs(off));
          mean += off / static_cast<double>(exact.size());
        }
        // A tenth of a token's step of bf16 (1/128) is what is at stake each time: 200 to 600 such steps were taken. In
        // a steady state thresholds are met evenly, else by chance.
        EXPECT_LT(std::abs(mean), 0.01);
        EXPECT_LT(worst, steady ? 0.06 : 0.2);
      });
    }
  }
}

// Sequences of several segments, each with a state of its own; more states and rows than a tile has.
Op<Case> for_cuda() {
  Op<Case> op{"ssd_scan on cuda", {}, describe_case, make};
  op.cases.push_back({{{700, 1, 300, 256, 257}, Slots::mixed}, 2, 16, 24});
  op.cases.push_back({{{600}, Slots::none}, 2, 64, 128});
  op.cases.push_back({{{5000}, Slots::permuted}, 1, 8, 16});
  op.cases.push_back({{{70, 1}, Slots::permuted}, 2, 128, 256});
  op.cases.push_back({{{130, 1}, Slots::permuted}, 3, 80, 128});
  op.cases.push_back({{{1, 1, 1, 0, 1}, Slots::mixed}, 4, 64, 256});
  op.cases.push_back({{{70, 1}, Slots::permuted}, 2, 20, 200});
  return op;
}

// What a kernel may do with bf16 activations: round operands of products, too.
Op<Case> of_bf16(Op<Case> op) {
  op = in_bf16(std::move(op));
  for (Case& c : op.cases) c.activations = DType::bf16;
  return op;
}

TEST(SsdScan, OnCuda) { check_on_cuda(shapes()); }
TEST(SsdScan, ExtremesOnCuda) { check_on_cuda(extremes()); }
TEST(SsdScan, LargerOnCuda) { check_on_cuda(for_cuda()); }
TEST(SsdScan, Bf16OnCuda) { check_on_cuda(of_bf16(shapes())); }
TEST(SsdScan, Bf16ExtremesOnCuda) { check_on_cuda(of_bf16(extremes())); }
TEST(SsdScan, Bf16LargerOnCuda) { check_on_cuda(of_bf16(for_cuda())); }

// Below AMX level bf16 arithmetic is float32, bit for bit; at it, sequences too short for tiles are.
TEST(SsdScan, ShortSequencesAreFloat32) {
  Case c{{{5, 1, kSsdTiled - 1, 2}, Slots::permuted}, 2, 17, 33};
  Workbench bench(4);
  Operands o = operands(bench, c);
  const Batch batch = bench.batch(sequences_of(c.ragged));
  bench.snapshot();
  for_each_isa([&](Isa) {
    Lab lab(2);
    Context ctx = lab.ctx();
    std::vector<Bits> results;
    for (const Arithmetic arithmetic : {Arithmetic::f32, Arithmetic::bf16}) {
      bench.restore();
      o.in.arithmetic = arithmetic;
      results.push_back(bits_of(ssd_scan(ctx, o.in, batch, o.state)));
      results.push_back(bits_of(o.state));
    }
    EXPECT_EQ(results[0], results[2]);
    EXPECT_EQ(results[1], results[3]);
  });
}

// Inputs near the end of float32's range, where only x is large: results are finite and within tolerance.
TEST(SsdScan, HugeInputs) {
  Op<Case> op{"ssd_scan huge x", {{{{70, 1, 3}, Slots::permuted}}}, describe_case, {}};
  op.make = [](Workbench& bench, const Case& c) {
    Operands o = operands(bench, c);
    for (int64_t i = 0; i < o.in.x.size(); ++i) o.in.x.ptr<float>()[i] *= 1e30f;
    const reference::Sequences sequences = sequences_of(c.ragged);
    const Batch batch = bench.batch(sequences);
    bench.writable(o.state);
    reference::SsdScanExpected want = reference::ssd_scan(inputs(o), sequences);
    const auto run = [=](Context& ctx) { return std::vector{ssd_scan(ctx, o.in, batch, o.state), o.state}; };
    return Operation{run, {std::move(want.y), std::move(want.state)}};
  };
  check_forward(op);
}

TEST(SsdScan, SequenceIsTheSameAloneAndNanStaysInIt) {
  for (const Arithmetic arithmetic : {Arithmetic::f32, Arithmetic::bf16}) {
    Case c{{{5, 1, 70, 1, 0, 2, 130, 64}, Slots::mixed}, 2, 17, 33, 1, Case::per_head, true, true};
    c.arithmetic = arithmetic;
    constexpr int64_t kBad = 2;
    Workbench bench(1);
    const Operands o = operands(bench, c);
    const reference::Sequences sequences = sequences_of(c.ragged);
    const Batch batch = bench.batch(sequences);
    std::vector<Batch> ones;
    for (int64_t s = 0; s < sequences.count(); ++s) ones.push_back(bench.batch(alone(sequences, s)));
    const int64_t bad_row = sequences.begin(kBad) + 30;
    for (const Tensor& broken : {o.in.x, o.in.dt, o.in.B, o.in.C}) {
      const float kept = broken.row<float>(bad_row)[0];
      broken.row<float>(bad_row)[0] = __builtin_nanf("");
      bench.snapshot();
      for_each_isa([&](Isa) {
        Lab lab(3);
        Context ctx = lab.ctx();
        bench.restore();
        const Tensor y = ssd_scan(ctx, o.in, batch, o.state);
        const Bits state = bits_of(o.state);
        EXPECT_TRUE(std::isnan(y.row<float>(bad_row)[0]));
        bench.restore();
        for (int64_t s = 0; s < sequences.count(); ++s) {
          const int64_t begin = sequences.begin(s), end = sequences.end(s);
          SsdScan one = o.in;
          for (Tensor* t : {&one.x, &one.dt, &one.B, &one.C}) *t = t->slice(begin, end);
          const Tensor part = ssd_scan(ctx, one, ones[static_cast<size_t>(s)], o.state);
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
}

// A sequence handed over in pieces, its state kept between calls.
TEST(SsdScan, AnySplitIsWithinTolerance) {
  Case c{{{200}, Slots::permuted}, 2, 17, 33};
  std::map<Isa, Share> worst;
  for (const Range range : {kMixed, kPositive}) {
    c.range = range;
    for (const int64_t piece : {1, 2, 3, 7, 64, 65, 200}) {
      SCOPED_TRACE(concat("pieces of ", piece));
      Workbench bench(2);
      const Operands o = operands(bench, c);
      const reference::Sequences whole = sequences_of(c.ragged);
      const int64_t slot = whole.slot(0), length = whole.end(0);
      bench.writable(o.state.slice(slot, slot + 1));
      reference::SsdScanInputs in = inputs(o);
      std::vector<Batch> pieces;
      for (int64_t begin = 0; begin < length; begin += piece) {
        in.resumed.push_back(begin);
        pieces.push_back(bench.batch({{0, std::min(piece, length - begin)}, {slot}}));
      }
      const Tensor y = bench.output(length, c.heads * c.head_dim, false);
      bench.writable(y);
      const reference::SsdScanExpected want = reference::ssd_scan(in, whole);
      const auto run = [&](Context& ctx) {
        for (size_t i = 0; i < pieces.size(); ++i) {
          const int64_t begin = static_cast<int64_t>(i) * piece, end = std::min(begin + piece, length);
          SsdScan part = o.in;
          for (Tensor* t : {&part.x, &part.dt, &part.B, &part.C}) *t = t->slice(begin, end);
          const Tensor out = ssd_scan(ctx, part, pieces[i], o.state);
          std::memcpy(y.row<float>(begin), out.data, static_cast<size_t>(out.bytes()));
        }
        return std::vector{y, o.state};
      };
      bench.snapshot();
      check_operation(bench, {run, {want.y, want.state}}, worst);
    }
  }
  report_shares("ssd_scan in pieces", worst);
}

// On CUDA: segments, too, are a matter of the sequence alone.
TEST(SsdScan, SequenceIsTheSameAloneAndNanStaysInItOnCuda) {
  std::string why;
  if (!has_cuda(why)) GTEST_SKIP() << why;
  for (const DType activations : {DType::f32, DType::bf16}) {
    Case c{{{5, 1, 70, 1, 0, 2, 600, 64}, Slots::mixed}, 2, 17, 33, 1, Case::per_head, true, true};
    c.activations = activations;
    constexpr int64_t kBad = 2;
    Workbench bench(1);
    const Operands o = operands(bench, c);
    const reference::Sequences sequences = sequences_of(c.ragged);
    const Batch batch = bench.batch(sequences);
    const int64_t bad_row = sequences.begin(kBad) + 30;
    if (activations == DType::f32) {
      o.in.x.row<float>(bad_row)[0] = __builtin_nanf("");
    } else {
      o.in.x.row<BFloat16>(bad_row)[0] = to_bf16(__builtin_nanf(""));
    }
    bench.snapshot();
    Lab lab(1, {DeviceType::cuda, 0});
    Context ctx = lab.ctx();
    const auto run = [&](int64_t begin, int64_t end, const Batch& part_of) {
      const Located at = bench.at(ctx);
      SsdScan part = located(at, o.in);
      for (Tensor* t : {&part.x, &part.dt, &part.B, &part.C}) *t = t->slice(begin, end);
      return copy_to_host(ctx, ssd_scan(ctx, part, part_of, at(o.state)));
    };
    bench.copy_to_device(ctx, true);
    const HostCopy y = run(0, sequences.offsets.back(), batch);
    const Bits state = bits_of(copy_to_host(ctx, bench.device_copy(o.state)).tensor);
    bench.restore();
    bench.copy_to_device(ctx, true);
    for (int64_t s = 0; s < sequences.count(); ++s) {
      const int64_t begin = sequences.begin(s), end = sequences.end(s);
      const HostCopy part = run(begin, end, bench.batch(alone(sequences, s)));
      EXPECT_EQ(bits_of(part.tensor), bits_of(y.tensor.slice(begin, end))) << "sequence " << s;
      const reference::Matrix values = reference::matrix_of(part.tensor);
      bool has_nan = false;
      for (const double value : values.values) has_nan = has_nan || std::isnan(value);
      EXPECT_EQ(has_nan, s == kBad) << "sequence " << s;
    }
    EXPECT_EQ(bits_of(copy_to_host(ctx, bench.device_copy(o.state)).tensor), state);
  }
}

TEST(SsdScan, OperandsThatDoNotFitAreErrors) {
  Workbench bench(3);
  const Operands o = operands(bench, {{{3, 2}, Slots::permuted}, 4, 4, 6, 2});
  Lab lab;
  Context ctx = lab.ctx();
  const auto run = [&](const SsdScan& in, const reference::Sequences& s, const Tensor& state) {
    return ssd_scan(ctx, in, bench.batch(s), state);
  };
  const reference::Sequences good{{0, 3, 5}, {0, 4}};
  EXPECT_NO_THROW(run(o.in, good, o.state));
  EXPECT_THROW(run(o.in, {{0, 3, 5}, {0, 5}}, o.state), Error) << "no such row";
  EXPECT_THROW(run(o.in, {{0, 3, 6}, {0, 1}}, o.state), Error) << "a token too many";
  EXPECT_THROW(run(o.in, good, {}), Error) << "a slot without a pool";
  EXPECT_THROW(run(o.in, good, o.state.reshape({5, 4, 6, 4})), Error);
  const auto broken = [&](const std::function<void(SsdScan&)>& change) {
    SsdScan in = o.in;
    change(in);
    EXPECT_THROW(run(in, good, o.state), Error);
  };
  broken([](SsdScan& in) { in.groups = 3; });
  broken([](SsdScan& in) { in.groups = 0; });
  broken([](SsdScan& in) { in.x = in.x.columns(0, 15); });
  broken([](SsdScan& in) { in.x = in.x.slice(0, 4); });
  broken([](SsdScan& in) { in.C = in.C.columns(0, 10); });
  broken([](SsdScan& in) { in.A = in.A.slice(0, 3); });
  broken([](SsdScan& in) { in.D = in.D.slice(0, 3); });
  broken([](SsdScan& in) { in.dt_bias = in.dt_bias.slice(0, 3); });
  broken([](SsdScan& in) { in.A = {}; });
}

}  // namespace
}  // namespace elapid::testing
