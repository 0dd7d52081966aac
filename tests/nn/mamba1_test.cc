#include "elapid/nn/mamba1.h"

#include "elapid/state/pool.h"
#include "tests/nn/bodies.h"

#include <numeric>

namespace elapid::testing {
namespace {

using reference::Expected;
using reference::kExpError;
using reference::kRounding;
using reference::kUnderflow;
using reference::Matrix;
using reference::Sequences;

struct Case {
  Mamba1Config config;
  Ragged ragged;
  DType dtype = DType::f32;
};

// A number and the largest error that a float32 computation may have made in it: the mixer is written out once, in
// these, and its tolerance follows from the formula itself.
struct Bounded {
  double value = 0, error = 0;
};
Bounded rounded(double value, double error) {
  return {value, error + kRounding * (std::abs(value) + error) + kUnderflow};
}
Bounded operator+(const Bounded& a, const Bounded& b) { return rounded(a.value + b.value, a.error + b.error); }
Bounded operator*(const Bounded& a, const Bounded& b) {
  return rounded(a.value * b.value, std::abs(a.value) * b.error + std::abs(b.value) * a.error + a.error * b.error);
}
Bounded silu(const Bounded& x) {
  const reference::Approximate y = reference::silu(x.value);
  return {y.value, y.error * (1 + x.error) + reference::kSteepestSilu * x.error};
}
Bounded softplus(const Bounded& x) {
  const reference::Approximate y = reference::softplus(x.value);
  return {y.value, y.error * (1 + x.error) + x.error};
}
// e^x of an x that goes through two further products on its way to a power of two.
Bounded exp(const Bounded& x) {
  const double value = std::exp(x.value), error = x.error + 3 * kRounding * std::abs(x.value);
  return {value, value * (std::expm1(error) + kRounding * kExpError * std::exp(error))};
}

using Row = std::vector<Bounded>;

Row row_of(const Matrix& m, int64_t r) {
  Row row;
  for (int64_t c = 0; c < m.cols; ++c) row.push_back({m(r, c), 0});
  return row;
}

// In any order, each product rounded.
Bounded dot(const Row& a, const Row& b) {
  double value = 0, error = 0, terms = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const Bounded term = a[i] * b[i];
    value += term.value;
    error += term.error;
    terms += std::abs(term.value) + term.error;
  }
  return {value, error + kRounding * reference::roundings(static_cast<int64_t>(a.size())) * terms};
}

Row linear(const Row& x, const Matrix& weight, const Matrix& bias = {}) {
  Row y;
  for (int64_t o = 0; o < weight.rows; ++o) {
    const Bounded sum = dot(x, row_of(weight, o));
    y.push_back(bias ? sum + Bounded{bias[o], 0} : sum);
  }
  return y;
}

Row norm(const Row& x, const Matrix& weight, float eps) {
  const Bounded squares = dot(x, x), count{1.0 / static_cast<double>(x.size()), 0};
  const Bounded mean = squares * count + Bounded{static_cast<double>(eps), 0};
  const double scale = 1 / std::sqrt(mean.value);
  // The mean is a quotient, not a product with a rounded inverse; the root and the inverse are rounded.
  const Bounded inverse{scale, 1 / std::sqrt(mean.value - mean.error) - scale + 3 * kRounding * scale};
  Row y;
  for (size_t i = 0; i < x.size(); ++i) {
    y.push_back(x[i] * inverse);
    if (weight) y.back() = y.back() * Bounded{weight[static_cast<int64_t>(i)], 0};
  }
  return y;
}

// The formula of mamba1.h, written out: one token and one channel after the other.
Expected expected(const Mamba1Config& c, const Weights& w, const Tensor& h, const Tensor& add, float alpha,
                  const Sequences& sequences) {
  const Matrix x = reference::matrix_of(h), residual = reference::matrix_of(add);
  const Matrix taps = w["conv1d.weight"], A = w["A_log"], D = w["D"], dt_bias = w["dt_bias"];
  const auto d_inner = static_cast<size_t>(c.d_inner), d_state = static_cast<size_t>(c.d_state);
  const auto rank = static_cast<size_t>(c.dt_rank);
  Expected out(x.rows, c.d_model);
  for (int64_t s = 0; s < sequences.count(); ++s) {
    std::vector<Row> inputs;  // of the convolution
    std::vector<Row> state(d_inner, Row(d_state));
    for (int64_t t = sequences.begin(s); t < sequences.end(s); ++t) {
      const Row xz = linear(row_of(x, t), w["in_proj.weight"], w["in_proj.bias"]);
      inputs.emplace_back(xz.begin(), xz.begin() + c.d_inner);
      Row u;
      for (size_t i = 0; i < d_inner; ++i) {
        Bounded sum = c.conv_bias ? Bounded{w["conv1d.bias"][static_cast<int64_t>(i)], 0} : Bounded{};
        for (int64_t k = 0; k < c.d_conv; ++k) {
          const int64_t at = static_cast<int64_t>(inputs.size()) - c.d_conv + k;
          if (at >= 0) sum = sum + Bounded{taps(k, static_cast<int64_t>(i)), 0} * inputs[static_cast<size_t>(at)][i];
        }
        u.push_back(silu(sum));
      }
      const Row dtbc = linear(u, w["x_proj.weight"]);
      Row dt(dtbc.begin(), dtbc.begin() + c.dt_rank), B(dtbc.begin() + c.dt_rank, dtbc.end() - c.d_state);
      Row C(dtbc.end() - c.d_state, dtbc.end());
      EXPECT_EQ(dt.size() + B.size() + C.size(), rank + 2 * d_state);
      if (c.bcdt_norm) {
        dt = norm(dt, w["dt_norm.weight"], c.bcdt_norm_eps);
        B = norm(B, w["B_norm.weight"], c.bcdt_norm_eps);
        C = norm(C, w["C_norm.weight"], c.bcdt_norm_eps);
      }
      dt = linear(dt, w["dt_proj.weight"]);
      Row v;
      for (size_t i = 0; i < d_inner; ++i) {
        const auto channel = static_cast<int64_t>(i);
        const Bounded step = softplus(dt[i] + Bounded{dt_bias[channel], 0});
        for (size_t n = 0; n < d_state; ++n) {
          const Bounded decay = exp(step * Bounded{A(channel, static_cast<int64_t>(n)), 0});
          state[i][n] = decay * state[i][n] + step * u[i] * B[n];
        }
        v.push_back((dot(C, state[i]) + Bounded{D[channel], 0} * u[i]) * silu(xz[d_inner + i]));
      }
      const Row y = linear(v, w["out_proj.weight"], w["out_proj.bias"]);
      for (int64_t o = 0; o < c.d_model; ++o) {
        const Bounded sum =
            y[static_cast<size_t>(o)] * Bounded{static_cast<double>(alpha), 0} + Bounded{residual(t, o), 0};
        out.value(t, o) = sum.value;
        out.tolerance(t, o) = sum.error;
      }
    }
  }
  return out;
}

Operation make(Workbench& bench, const Case& c) {
  StateSpec spec;
  const auto mixer = std::make_shared<Mamba1>(c.config, 0, spec);
  const Weights weights(bench, *mixer, c.dtype);
  const Sequences sequences = sequences_of(c.ragged);
  const int64_t tokens = sequences.offsets.back(), width = c.config.d_model;
  const Tensor h = bench.matrix(tokens, width, {-2, 2}, false);
  const Tensor residual = bench.matrix(tokens, width, kMixed, false);
  bench.writable(residual);
  const Batch batch = bench.batch(sequences);
  const float alpha = 0.5f;
  const auto run = [=](Context& ctx) {
    mixer->forward(ctx, h, {.alpha = alpha, .add = residual, .out = residual}, {.batch = batch});
    return std::vector{residual};
  };
  return {run, {expected(c.config, weights, h, residual, alpha, sequences)}};
}

std::string describe_case(const Case& c) {
  const Mamba1Config& m = c.config;
  return concat(describe(c.ragged), ", ", m.d_model, " -> ", m.d_inner, " x ", m.d_state, " rank ", m.dt_rank, " taps ",
                m.d_conv, m.proj_bias ? " proj bias" : "", m.conv_bias ? " conv bias" : "",
                !m.bcdt_norm          ? ""
                : m.bcdt_norm_weights ? " norms with weights"
                                      : " norms",
                " ", name_of(c.dtype));
}

const Mamba1Config kMamba{.d_model = 24, .d_inner = 48, .d_state = 16, .dt_rank = 2};
const Mamba1Config kFalcon{
    .d_model = 20, .d_inner = 33, .d_state = 8, .dt_rank = 5, .d_conv = 3, .bcdt_norm = true, .bcdt_norm_eps = 1e-3f};
const Mamba1Config kJamba{.d_model = 16,
                          .d_inner = 32,
                          .d_state = 17,
                          .dt_rank = 7,
                          .proj_bias = true,
                          .conv_bias = false,
                          .bcdt_norm = true,
                          .bcdt_norm_weights = true};

TEST(Mamba1, IsItsFormula) {
  Op<Case> op{"mamba1", {}, describe_case, make, false, kSmallestBodyShare};
  for (const Mamba1Config& config : {kMamba, kFalcon, kJamba}) {
    for (const std::vector<int64_t>& lengths :
         std::vector<std::vector<int64_t>>{{}, {1}, {2}, {40}, {1, 0, 5, 1, 19}}) {
      op.cases.push_back({config, {lengths}, lengths.size() % 2 == 0 ? DType::f32 : DType::bf16});
    }
  }
  check_forward(op);
}

// Every operator in the mixer gives the same bits for a token whatever comes with it, and the states carry the rest:
// so does the mixer, for any cut of a prompt and any neighbours.
TEST(Mamba1, AnySplitLeavesTheSameBits) {
  for (const Mamba1Config& config : {kMamba, kFalcon, kJamba}) {
    Workbench bench(2);
    const auto spec = std::make_shared<StateSpec>();
    Mamba1 mixer(config, 0, *spec);
    const Weights weights(bench, mixer, DType::bf16);
    constexpr int64_t kTokens = 45;
    const int64_t width = config.d_model;
    const Tensor h = bench.matrix(kTokens, width, kMixed, false);
    for_each_isa([&](Isa) {
      Lab lab(3);
      Context ctx = lab.ctx();
      StatePool states(spec, 4);
      // Rows [begin, end) of h as one sequence, after a neighbour.
      const auto forward = [&](int64_t begin, int64_t end, int64_t slot, StatePool* pool) {
        const Batch batch = bench.batch({{0, 3, 3 + end - begin}, {kNoSlot, slot}});
        const Tensor rows = ctx.arena.alloc({3 + end - begin, width}, DType::f32),
                     out = ctx.arena.alloc(rows.shape, DType::f32);
        std::memcpy(rows.data, h.row<float>(20), static_cast<size_t>(3 * width) * sizeof(float));
        std::memcpy(rows.row<float>(3), h.row<float>(begin),
                    static_cast<size_t>((end - begin) * width) * sizeof(float));
        mixer.forward(ctx, rows, {.out = out}, {.batch = batch, .states = pool});
        return bits_of(out.slice(3, 3 + end - begin));
      };
      const auto contents = [&](const Slot& slot) {
        Bits all;
        for (int64_t i = 0; i < 2; ++i) {
          const Bits bits = bits_of(states.entry(i).slice(slot.index(), slot.index() + 1));
          all.insert(all.end(), bits.begin(), bits.end());
        }
        return all;
      };
      const Slot first = states.acquire();
      const Bits whole = forward(0, kTokens, first.index(), &states), state = contents(first);
      EXPECT_EQ(forward(0, kTokens, kNoSlot, nullptr), whole) << "without a state";
      for (const int64_t piece : {1, 2, 3, 7, 16, 44}) {
        const Slot slot = states.acquire();
        Bits pieced;
        for (int64_t begin = 0; begin < kTokens; begin += piece) {
          const Bits part = forward(begin, std::min(begin + piece, kTokens), slot.index(), &states);
          pieced.insert(pieced.end(), part.begin(), part.end());
        }
        EXPECT_EQ(pieced, whole) << "pieces of " << piece;
        EXPECT_EQ(contents(slot), state) << "pieces of " << piece;
      }
    });
  }
}

// What checkpoints are mapped to, and what states hold.
TEST(Mamba1, ParametersAndStatesAreThoseOfItsOptions) {
  const auto names = [](const Mamba1Config& config) {
    StateSpec spec;
    Mamba1 mixer(config, 3, spec);
    EXPECT_EQ(spec.entries, (std::vector<StateEntry>{{"conv", 3, {config.d_conv - 1, config.d_inner}},
                                                     {"ssm", 3, {config.d_inner, config.d_state}}}));
    std::vector<std::string> all;
    mixer.visit("mamba1.", [&](const ParameterInfo& p) {
      all.push_back(p.name.substr(7));
      for (int i = 0; i < p.shape.rank; ++i) all.back() += concat(" ", p.shape[i]);
    });
    return all;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(names(kMamba),
            (Names{"in_proj.weight 96 24", "conv1d.weight 48 1 4", "conv1d.bias 48", "x_proj.weight 34 48",
                   "dt_proj.weight 48 2", "dt_bias 48", "A_log 48 16", "D 48", "out_proj.weight 24 48"}));
  EXPECT_EQ(names(kFalcon).size(), names(kMamba).size()) << "its norms have no weights";
  EXPECT_EQ(names(kJamba),
            (Names{"in_proj.weight 64 16", "in_proj.bias 64", "conv1d.weight 32 1 4", "x_proj.weight 41 32",
                   "dt_norm.weight 7", "B_norm.weight 17", "C_norm.weight 17", "dt_proj.weight 32 7", "dt_bias 32",
                   "A_log 32 17", "D 32", "out_proj.weight 16 32", "out_proj.bias 16"}));
}

}  // namespace
}  // namespace elapid::testing
