#include "elapid/nn/moe.h"

#include "elapid/ops/moe/moe_reference.h"
#include "tests/nn/bodies.h"

namespace elapid::testing {
namespace {

using reference::Expected;

struct Case {
  MoeConfig config;
  int64_t tokens;
  DType dtype = DType::f32;
  bool in_place = true;
};

Expected row_of(const Expected& m, int64_t row) {
  Expected r(1, m.value.cols);
  std::copy_n(m.value.values.begin() + row * m.value.cols, m.value.cols, r.value.values.begin());
  std::copy_n(m.tolerance.values.begin() + row * m.value.cols, m.value.cols, r.tolerance.values.begin());
  return r;
}

// The formula of moe.h, written out: one token and one of its experts after the other.
Expected expected(const MoeConfig& c, const Weights& w, const Tensor& h, const Tensor& add, float alpha) {
  const Expected x = exact(reference::matrix_of(h)), residual = exact(reference::matrix_of(add));
  const Expected logits = project(x, w["router.weight"]);
  const Router router{c.routing, c.top_k, c.groups, c.top_groups, c.normalize, c.routed_scale};
  const reference::RouteExpected routes = reference::route({logits.value, w["correction_bias"], router});
  const Expected in = c.d_latent > 0 ? project(x, w["latent_in.weight"], w["latent_in.bias"]) : x;
  Expected sum(x.value.rows, in.value.cols);
  for (int64_t t = 0; t < x.value.rows; ++t) {
    double logit_error = 0;
    for (int64_t e = 0; e < c.experts; ++e) logit_error = std::max(logit_error, logits.tolerance(t, e));
    reference::CombineInputs terms{
        reference::Matrix(c.top_k, sum.value.cols), reference::Matrix(1, c.top_k), {}, {}, 1};
    std::vector<double> error(static_cast<size_t>(sum.value.cols));
    for (int64_t k = 0; k < c.top_k; ++k) {
      const std::string expert = concat("experts.", routes.experts.value(t, k), ".");
      const Expected u = project(row_of(in, t), w[expert + "up_proj.weight"]);
      const Expected y = project(activate(u, c.act, c.gated), w[expert + "down_proj.weight"]);
      const double weight = routes.weights.value(t, k);
      // All logits wrong by ε change a softmax, or a quotient of sigmoids, by less than 2 ε of itself.
      const double weight_error = routes.weights.tolerance(t, k) + 2.1 * logit_error * std::abs(weight);
      terms.weights(0, k) = weight;
      terms.rows.push_back(k);
      for (int64_t j = 0; j < sum.value.cols; ++j) {
        terms.x(k, j) = y.value(0, j);
        error[static_cast<size_t>(j)] +=
            weight_error * std::abs(y.value(0, j)) + (std::abs(weight) + weight_error) * y.tolerance(0, j);
      }
    }
    if (c.d_latent == 0) {
      terms.alpha = static_cast<double>(alpha);
      terms.add = row_of(residual, t).value;
    }
    const Expected combined = reference::combine(terms);
    for (int64_t j = 0; j < sum.value.cols; ++j) {
      sum.value(t, j) = combined.value(0, j);
      sum.tolerance(t, j) = combined.tolerance(0, j) + std::abs(terms.alpha) * error[static_cast<size_t>(j)];
    }
  }
  if (c.d_latent == 0) return sum;
  return project(sum, w["latent_out.weight"], w["latent_out.bias"], residual, static_cast<double>(alpha));
}

Operation make(Workbench& bench, const Case& c) {
  StateSpec spec;
  const auto moe = std::make_shared<Moe>(c.config, 3, spec);
  EXPECT_TRUE(spec.entries.empty());
  const Weights weights(bench, *moe, c.dtype);
  const int64_t width = c.config.d_model;
  const Tensor h = bench.matrix(c.tokens, width, {-2, 2}, false);
  const Tensor residual = bench.matrix(c.tokens, width, kMixed, false);
  const Tensor out = c.in_place ? residual : bench.output(c.tokens, width, true);
  bench.writable(out);
  const float alpha = -0.22f;
  const auto run = [=](Context& ctx) {
    const Batch batch;
    moe->forward(ctx, h, {.alpha = alpha, .add = residual, .out = out}, {.batch = batch});
    return std::vector{out};
  };
  return {run, {expected(c.config, weights, h, residual, alpha)}};
}

std::string describe(const Case& c) {
  const MoeConfig& m = c.config;
  return concat(c.tokens, " tokens, ", m.d_model, " -> ", m.d_ff, ", ", m.top_k, " of ", m.experts, ", kind ",
                static_cast<int>(m.routing), " act ", static_cast<int>(m.act), m.gated ? " gated" : "", ", ",
                m.top_groups, " of ", m.groups, " groups", m.normalize ? " normalized" : "", " times ", m.routed_scale,
                m.correction_bias ? " bias" : "", " latent ", m.d_latent, " ", name_of(c.dtype));
}

const MoeConfig kGranite{.d_model = 40, .d_ff = 21, .experts = 10, .top_k = 4};
const MoeConfig kJamba{.d_model = 32, .d_ff = 40, .experts = 4, .top_k = 2, .routing = Routing::top_of_softmax};
const MoeConfig kNemotron{.d_model = 24,
                          .d_ff = 33,
                          .experts = 16,
                          .top_k = 5,
                          .act = Activation::relu2,
                          .gated = false,
                          .routing = Routing::sigmoid_groups,
                          .groups = 4,
                          .top_groups = 2,
                          .normalize = true,
                          .routed_scale = 2.5f,
                          .correction_bias = true};

std::vector<MoeConfig> configs() {
  MoeConfig latent = kNemotron, plain = kNemotron, wide = kGranite, one = kGranite;
  latent.d_latent = 10;
  latent.latent_bias = true;
  plain.groups = plain.top_groups = 1;
  plain.normalize = plain.correction_bias = false;
  wide.top_k = wide.experts;
  wide.act = Activation::gelu;
  one.experts = one.top_k = 1;
  return {kGranite, kJamba, kNemotron, latent, plain, wide, one};
}

TEST(Moe, IsItsFormula) {
  Op<Case> op{"moe", {}, describe, make, false, kSmallestBodyShare};
  int64_t i = 0;
  for (const int64_t tokens : {0, 1, 4, 50}) {
    for (const MoeConfig& config : configs()) {
      op.cases.push_back({config, tokens, i % 2 == 0 ? DType::f32 : DType::bf16, i % 3 != 2});
      ++i;
    }
  }
  check_forward(op);
}

TEST(Moe, TokenIsTheSameAloneAndInAnyBatch) {
  for (const MoeConfig& config : configs()) {
    Workbench bench(2);
    StateSpec spec;
    Moe moe(config, 0, spec);
    const Weights weights(bench, moe, DType::bf16);
    const Tensor h = bench.matrix(40, config.d_model, kMixed, false);
    const Batch batch;
    for_each_isa([&](Isa) {
      Lab lab(3);
      Context ctx = lab.ctx();
      const auto forward = [&](int64_t begin, int64_t end) {
        const Tensor out = ctx.arena.alloc({end - begin, config.d_model}, DType::f32);
        moe.forward(ctx, h.slice(begin, end), {.out = out}, {.batch = batch});
        return bits_of(out);
      };
      const Bits all = forward(0, 40);
      for (const int64_t count : {1, 2, 13, 39}) {
        for (int64_t begin = 0; begin + count <= 40; begin += count) {
          const auto first = all.begin() + begin * config.d_model;
          EXPECT_TRUE(std::equal(first, first + count * config.d_model, forward(begin, begin + count).begin()))
              << count << " tokens from " << begin;
        }
      }
    });
  }
}

TEST(Moe, ObserverSeesTheRoutersLogits) {
  Workbench bench(3);
  StateSpec spec;
  Moe moe(kNemotron, 17, spec);
  const Weights weights(bench, moe, DType::f32);
  const Tensor h = bench.matrix(6, 24, kMixed, false);
  const Expected logits = project(exact(reference::matrix_of(h)), weights["router.weight"]);
  Lab lab;
  Context ctx = lab.ctx();
  const Batch batch;
  int calls = 0;
  Observer observer;
  observer.router_logits = [&](int64_t layer, const Tensor& seen) {
    ++calls;
    EXPECT_EQ(layer, 17);
    EXPECT_TRUE(seen.shape == Shape(6, 16));
    EXPECT_LE(share_of(seen, logits).worst, 1);
  };
  const Tensor out = ctx.arena.alloc({6, 24}, DType::f32);
  moe.forward(ctx, h, {.out = out}, {.batch = batch, .observer = &observer});
  EXPECT_EQ(calls, 1);
  const Observer nobody;
  moe.forward(ctx, h, {.out = out}, {.batch = batch, .observer = &nobody});
}

TEST(Moe, ParametersAreThoseOfItsOptions) {
  const auto names = [](MoeConfig config) {
    config.experts = 2;
    config.top_k = 1;
    config.groups = config.top_groups = 1;
    StateSpec spec;
    Moe moe(config, 0, spec);
    std::vector<std::string> all;
    moe.visit("moe.", [&](const ParameterInfo& p) { all.push_back(concat(p.name, " ", p.shape[0], " ", p.shape[1])); });
    return all;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(names(kGranite), (Names{"moe.router.weight 2 40", "moe.experts.0.up_proj.weight 42 40",
                                    "moe.experts.0.down_proj.weight 40 21", "moe.experts.1.up_proj.weight 42 40",
                                    "moe.experts.1.down_proj.weight 40 21"}));
  MoeConfig latent = kNemotron;
  latent.d_latent = 10;
  latent.latent_bias = true;
  EXPECT_EQ(names(latent),
            (Names{"moe.router.weight 2 24", "moe.correction_bias 2 0", "moe.latent_in.weight 10 24",
                   "moe.latent_in.bias 10 0", "moe.experts.0.up_proj.weight 33 10",
                   "moe.experts.0.down_proj.weight 10 33", "moe.experts.1.up_proj.weight 33 10",
                   "moe.experts.1.down_proj.weight 10 33", "moe.latent_out.weight 24 10", "moe.latent_out.bias 24 0"}));
}

TEST(Moe, ConfigurationsThatCannotRouteAreErrors) {
  StateSpec spec;
  const auto bad = [&](MoeConfig config, auto change) {
    change(config);
    EXPECT_THROW(Moe(config, 0, spec), Error);
  };
  bad(kGranite, [](MoeConfig& c) { c.experts = 0; });
  bad(kGranite, [](MoeConfig& c) { c.experts = int64_t{1} << 60; });
  bad(kGranite, [](MoeConfig& c) { c.top_k = 11; });
  bad(kGranite, [](MoeConfig& c) { c.top_k = 0; });
  bad(kGranite, [](MoeConfig& c) { c.correction_bias = true; });
  bad(kJamba, [](MoeConfig& c) { c.normalize = true; });
  bad(kNemotron, [](MoeConfig& c) { c.groups = 3; });
  bad(kNemotron, [](MoeConfig& c) { c.top_groups = 1; });
}

}  // namespace
}  // namespace elapid::testing
