#include "elapid/nn/mlp.h"

#include "tests/nn/bodies.h"

namespace elapid::testing {
namespace {

using reference::Expected;

struct Case {
  MlpConfig config;
  int64_t tokens;
  DType dtype = DType::f32;
  bool in_place = true;
};

// The formula of mlp.h, written out.
Expected expected(const MlpConfig& c, const Weights& w, const Tensor& h, const Tensor& add, float alpha) {
  const Expected x = exact(reference::matrix_of(h)), residual = exact(reference::matrix_of(add));
  Expected u = project(x, w["up_proj.weight"], w["up_proj.bias"]);
  if (c.adapter_rank > 0) u = project(project(x, w["adapter.a.weight"]), w["adapter.b.weight"], {}, u);
  const Expected v = activate(u, c.act, c.gated, static_cast<double>(c.gate_multiplier));
  const auto scale = static_cast<double>(alpha);
  if (!c.post_proj) return project(v, w["down_proj.weight"], w["down_proj.bias"], residual, scale);
  return project(project(v, w["down_proj.weight"], w["down_proj.bias"]), w["post_proj.weight"], {}, residual, scale);
}

Operation make(Workbench& bench, const Case& c) {
  StateSpec spec;
  const auto mlp = std::make_shared<Mlp>(c.config, 0, spec);
  EXPECT_TRUE(spec.entries.empty());
  const Weights weights(bench, *mlp, c.dtype);
  const Tensor h = bench.matrix(c.tokens, c.config.d_model, {-2, 2}, false);
  const Tensor residual = bench.matrix(c.tokens, c.config.d_out, kMixed, false);
  const Tensor out = c.in_place ? residual : bench.output(c.tokens, c.config.d_out, true);
  bench.writable(out);
  const float alpha = 0.5f;
  const auto run = [=](Context& ctx) {
    const Batch batch;
    mlp->forward(ctx, h, {.alpha = alpha, .add = residual, .out = out}, {.batch = batch});
    return std::vector{out};
  };
  return {run, {expected(c.config, weights, h, residual, alpha)}};
}

std::string describe(const Case& c) {
  const MlpConfig& m = c.config;
  return concat(c.tokens, " tokens, ", m.d_model, " -> ", m.d_ff, " -> ", m.d_out, " act ", static_cast<int>(m.act),
                m.gated ? " gated" : "", m.bias ? " bias" : "", " gate times ", m.gate_multiplier,
                m.post_proj ? " post" : "", " adapter ", m.adapter_rank, " ", name_of(c.dtype));
}

TEST(Mlp, IsItsFormula) {
  Op<Case> op{"mlp", {}, describe, make, false, kSmallestBodyShare};
  int64_t i = 0;
  for (const int64_t tokens : {0, 1, 3, 29}) {
    for (const Activation act :
         {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu, Activation::relu2}) {
      for (const bool gated : {false, true}) {
        const MlpConfig config{.d_model = 40,
                               .d_ff = 33,
                               .d_out = i % 2 == 0 ? 40 : 24,
                               .act = act,
                               .gated = gated,
                               .bias = i % 3 == 0,
                               .gate_multiplier = i % 4 == 1 ? 0.75f : 1.0f,
                               .post_proj = i % 3 == 1,
                               .adapter_rank = i % 4 == 3 ? 5 : 0};
        op.cases.push_back({config, tokens, i % 2 == 0 ? DType::f32 : DType::bf16, i % 3 != 2});
        ++i;
      }
    }
  }
  check_forward(op);
}

TEST(Mlp, RowIsTheSameAlone) {
  Workbench bench(1);
  StateSpec spec;
  Mlp mlp({.d_model = 40, .d_ff = 33, .d_out = 40, .post_proj = true, .adapter_rank = 4}, 0, spec);
  const Weights weights(bench, mlp, DType::bf16);
  const Tensor h = bench.matrix(30, 40, kMixed, false);
  const Batch batch;
  for_each_isa([&](Isa) {
    Lab lab(3);
    Context ctx = lab.ctx();
    const auto forward = [&](const Tensor& rows) {
      const Tensor out = ctx.arena.alloc({rows.rows(), 40}, DType::f32);
      mlp.forward(ctx, rows, {.out = out}, {.batch = batch});
      return out;
    };
    const Tensor all = forward(h);
    for (int64_t t = 0; t < 30; ++t) {
      EXPECT_EQ(bits_of(forward(h.slice(t, t + 1))), bits_of(all.slice(t, t + 1)));
    }
  });
}

// What checkpoints are mapped to.
TEST(Mlp, ParametersAreThoseOfItsOptions) {
  const auto shapes = [](const MlpConfig& config) {
    StateSpec spec;
    Mlp mlp(config, 0, spec);
    std::map<std::string, std::pair<int64_t, int64_t>> all;
    mlp.visit("mlp.", [&](const ParameterInfo& p) { all[p.name] = {p.shape[0], p.shape[1]}; });
    return all;
  };
  using Shapes = std::map<std::string, std::pair<int64_t, int64_t>>;
  EXPECT_EQ(shapes({.d_model = 3, .d_ff = 5, .d_out = 7, .gated = false}),
            (Shapes{{"mlp.up_proj.weight", {5, 3}}, {"mlp.down_proj.weight", {7, 5}}}));
  EXPECT_EQ(shapes({.d_model = 3, .d_ff = 5, .d_out = 7, .bias = true, .post_proj = true, .adapter_rank = 2}),
            (Shapes{{"mlp.up_proj.weight", {10, 3}},
                    {"mlp.up_proj.bias", {10, 0}},
                    {"mlp.adapter.a.weight", {2, 3}},
                    {"mlp.adapter.b.weight", {10, 2}},
                    {"mlp.down_proj.weight", {7, 5}},
                    {"mlp.down_proj.bias", {7, 0}},
                    {"mlp.post_proj.weight", {7, 7}}}));
}

}  // namespace
}  // namespace elapid::testing
