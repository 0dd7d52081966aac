#include "elapid/ops/moe/moe.h"

#include "elapid/ops/moe/aux_loss.h"
#include "elapid/ops/moe/moe_reference.h"
#include "tests/ops/harness.h"

#include <algorithm>
#include <list>

namespace elapid::testing {
namespace {

constexpr float kNan = __builtin_nanf(""), kInfinity = __builtin_inff();

// Indices as the harness compares them: small integers are exact in float32.
class AsFloats {
 public:
  std::vector<Tensor> operator()(const Context& ctx, const Routes& r) {
    memory_.clear();
    std::vector<Tensor> outputs = {r.weights};
    for (const Tensor& where : {r.experts, r.offsets, r.tokens, r.rows}) {
      const HostCopy copy = copy_to_host(ctx, where);
      const Tensor& indices = copy.tensor;
      const int64_t* from = indices.ptr<int64_t>();
      memory_.emplace_back(from, from + indices.size());
      outputs.emplace_back(memory_.back().data(), DType::f32, Shape(indices.rows(), indices.cols()));
    }
    return outputs;
  }

 private:
  std::list<std::vector<float>> memory_;
};

struct RouteCase {
  int64_t tokens, experts;
  Router router;
  bool bias = false, strided = false;
  Range range{-4, 4};
};

Operation make_route(Workbench& bench, const RouteCase& c) {
  const Tensor logits = bench.matrix(c.tokens, c.experts, c.range, c.strided);
  // Every third token has equal logits: with each other in pairs, or all of them.
  for (int64_t t = 0; t < c.tokens; t += 3) {
    for (int64_t e = 1; e < c.experts; ++e) {
      if (t % 2 == 0 || e % 2 == 1) logits.row<float>(t)[e] = logits.row<float>(t)[t % 2 == 0 ? 0 : e - 1];
    }
  }
  const Param bias = c.bias ? bench.param(bench.tensor({c.experts}, {-1, 1})) : Param{};
  const reference::RouteExpected e =
      reference::route({reference::matrix_of(logits), reference::matrix_of(bias.value), c.router});
  const auto as_floats = std::make_shared<AsFloats>();
  return {[=, &bench](Context& ctx) {
            const Located at = bench.at(ctx);
            return (*as_floats)(ctx, route(ctx, at(logits), c.router, at(bias)));
          },
          {e.weights, e.experts, e.offsets, e.tokens, e.rows}};
}

std::string describe_route(const RouteCase& c) {
  const Router& r = c.router;
  return concat("kind ", static_cast<int>(r.routing), ", ", c.tokens, " tokens, ", r.top_k, " of ", c.experts, ", ",
                r.top_groups, " of ", r.groups, " groups", r.normalize ? ", normalized" : "", ", times ", r.scale,
                c.bias ? ", bias" : "", c.strided ? ", strided" : "", ", ", c.range.low, " to ", c.range.high);
}

Op<RouteCase> softmax_cases(Routing routing) {
  Op<RouteCase> op{
      routing == Routing::softmax_of_top ? "softmax_of_top" : "top_of_softmax", {}, describe_route, make_route};
  int64_t i = 0;
  for (const int64_t tokens : {0, 1, 7, 100}) {
    for (const auto& [experts, top_k] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 1}, {2, 1}, {4, 2}, {15, 15}, {16, 4}, {17, 16}, {40, 8}, {64, 6}, {300, 22}}) {
      const Range ranges[] = {{-4, 4}, {-60, 60}, {-0.01, 0.01}, {-200, 10}};
      op.cases.push_back({tokens, experts, {routing, top_k}, false, i % 2 == 0, ranges[i % 4]});
      ++i;
    }
  }
  return op;
}

TEST(Route, SoftmaxOfTopOnCuda) { check_on_cuda(softmax_cases(Routing::softmax_of_top)); }
TEST(Route, TopOfSoftmaxOnCuda) { check_on_cuda(softmax_cases(Routing::top_of_softmax)); }
TEST(Route, SoftmaxOfTop) { check_forward(softmax_cases(Routing::softmax_of_top)); }
TEST(Route, TopOfSoftmax) { check_forward(softmax_cases(Routing::top_of_softmax)); }

Op<RouteCase> sigmoid_cases() {
  Op<RouteCase> op{"sigmoid_groups", {}, describe_route, make_route};
  int64_t i = 0;
  for (const int64_t tokens : {0, 1, 7, 100}) {
    for (const auto& [experts, top_k, groups, top_groups] : std::vector<std::array<int64_t, 4>>{{2, 1, 1, 1},
                                                                                                {4, 2, 1, 1},
                                                                                                {4, 2, 2, 1},
                                                                                                {16, 4, 4, 2},
                                                                                                {18, 8, 6, 4},
                                                                                                {128, 6, 1, 1},
                                                                                                {256, 8, 8, 4},
                                                                                                {40, 20, 2, 1},
                                                                                                {512, 22, 1, 1},
                                                                                                {24, 3, 12, 12}}) {
      const Range ranges[] = {{-4, 4}, {-30, 2}, {-0.5, 0.5}};
      const Router router{Routing::sigmoid_groups, top_k, groups, top_groups, i % 2 == 0, i % 5 == 0 ? 1.0f : 2.5f};
      op.cases.push_back({tokens, experts, router, i % 3 != 0, i % 4 == 0, ranges[i % 3]});
      ++i;
    }
  }
  return op;
}

TEST(Route, SigmoidGroups) { check_forward(sigmoid_cases()); }
TEST(Route, SigmoidGroupsOnCuda) { check_on_cuda(sigmoid_cases()); }

Routes route_of(Context& ctx, std::vector<float> logits, const Router& router, std::vector<float> bias = {}) {
  const auto size = [](const auto& v) { return static_cast<int64_t>(v.size()); };
  Param correction;
  if (!bias.empty()) correction = {"bias", Tensor(bias.data(), DType::f32, {size(bias)}), Packing::rows};
  return route(ctx, Tensor(logits.data(), DType::f32, {1, size(logits)}), router, correction);
}
std::vector<int64_t> experts_of(const Routes& r) {
  return {r.experts.ptr<int64_t>(), r.experts.ptr<int64_t>() + r.experts.size()};
}
std::vector<float> weights_of(const Routes& r) {
  return {r.weights.ptr<float>(), r.weights.ptr<float>() + r.weights.size()};
}

// By hand: what distinguishes the classes.
TEST(Route, ClassesDifferAsTheirSourcesSay) {
  using Ids = std::vector<int64_t>;
  for_each_isa([&](Isa) {
    Lab lab;
    Context ctx = lab.ctx();
    const std::vector<float> l = {std::log(1.0f), std::log(4.0f), std::log(3.0f), std::log(2.0f)};
    const Routes granite = route_of(ctx, l, {Routing::softmax_of_top, 2});
    EXPECT_EQ(experts_of(granite), (Ids{1, 2}));
    EXPECT_NEAR(weights_of(granite)[0], 4.0 / 7, 1e-6);
    const Routes jamba = route_of(ctx, l, {Routing::top_of_softmax, 2});
    EXPECT_EQ(experts_of(jamba), (Ids{1, 2}));
    EXPECT_NEAR(weights_of(jamba)[0], 0.4, 1e-6);
    // Scores ½, 4/5, ¾, ⅔. The bias lifts expert 0 in the choice alone.
    const Router two{.routing = Routing::sigmoid_groups, .top_k = 2, .scale = 3};
    const Routes biased = route_of(ctx, l, two, {1, 0, 0, 0});
    EXPECT_EQ(experts_of(biased), (Ids{0, 1}));
    EXPECT_NEAR(weights_of(biased)[0], 3 * 0.5, 1e-6);
    EXPECT_NEAR(weights_of(biased)[1], 3 * 0.8, 1e-6);
    Router normalized = two;
    normalized.normalize = true;
    EXPECT_NEAR(weights_of(route_of(ctx, l, normalized))[1], 3 * 0.75 / 1.55, 1e-6);
    // The second group's two best sum higher, although the best expert is in the first one.
    Router grouped = two;
    grouped.groups = 2;
    EXPECT_EQ(experts_of(route_of(ctx, l, grouped)), (Ids{2, 3}));
    // Scores that vanish: 10⁻²⁰ keeps the quotient finite.
    EXPECT_EQ(weights_of(route_of(ctx, {-200, -200, -200, -200}, normalized)), (std::vector<float>{0, 0}));
  });
}

TEST(Route, EqualLogitsGoToTheFirstExpertsAndNanCountsAsLargest) {
  using Ids = std::vector<int64_t>;
  for_each_isa([&](Isa) {
    Lab lab;
    Context ctx = lab.ctx();
    for (const Routing routing : {Routing::softmax_of_top, Routing::top_of_softmax, Routing::sigmoid_groups}) {
      EXPECT_EQ(experts_of(route_of(ctx, {1, 2, 2, 1, 2}, {routing, 4})), (Ids{1, 2, 4, 0}));
      EXPECT_EQ(experts_of(route_of(ctx, {0, 0, 0, 0, 0}, {routing, 3})), (Ids{0, 1, 2}));
      EXPECT_EQ(experts_of(route_of(ctx, {1, 5, kNan, kInfinity, kNan}, {routing, 3})), (Ids{2, 4, 3}));
      EXPECT_EQ(experts_of(route_of(ctx, {kNan, kNan, kNan}, {routing, 2})), (Ids{0, 1}));
      EXPECT_EQ(experts_of(route_of(ctx, {-kInfinity, -kInfinity}, {routing, 2})), (Ids{0, 1}));
    }
    for (const Routing routing : {Routing::softmax_of_top, Routing::top_of_softmax}) {
      for (const float w : weights_of(route_of(ctx, {1, kNan, 3}, {routing, 2}))) EXPECT_TRUE(std::isnan(w));
    }
    const Router groups{.routing = Routing::sigmoid_groups, .top_k = 2, .groups = 3, .top_groups = 1};
    EXPECT_EQ(experts_of(route_of(ctx, {1, 1, 1, 1, 1, 1}, groups)), (Ids{0, 1})) << "equal groups: the first";
    EXPECT_EQ(experts_of(route_of(ctx, {5, 1, kNan, 0, 9, 9}, groups)), (Ids{2, 3})) << "its group, too";
    // The softmax of both is 1 and that of the others 0: still the largest logits.
    EXPECT_EQ(experts_of(route_of(ctx, {-300, -200, 0, -400}, {Routing::top_of_softmax, 3})), (Ids{2, 1, 0}));
  });
}

TEST(Route, TokenIsTheSameAlone) {
  Workbench bench(4);
  const Tensor logits = bench.matrix(50, 40, {-4, 4}, true);
  for_each_isa([&](Isa) {
    for (const Routing routing : {Routing::softmax_of_top, Routing::top_of_softmax, Routing::sigmoid_groups}) {
      Lab lab(3);
      Context ctx = lab.ctx();
      const Routes all = route(ctx, logits, {routing, 8});
      for (int64_t t = 0; t < 50; ++t) {
        const Routes one = route(ctx, logits.slice(t, t + 1), {routing, 8});
        EXPECT_EQ(bits_of(all.weights.slice(t, t + 1)), bits_of(one.weights));
        EXPECT_TRUE(
            std::equal(all.experts.row<int64_t>(t), all.experts.row<int64_t>(t) + 8, one.experts.ptr<int64_t>()));
      }
    }
  });
}

TEST(Route, OperandsThatDoNotFitAreErrors) {
  Workbench bench(5);
  Lab lab;
  Context ctx = lab.ctx();
  const Tensor logits = bench.matrix(3, 8, kMixed, false);
  const Param bias = bench.param(bench.tensor({8}, kMixed)), shorter = bench.param(bench.tensor({7}, kMixed));
  const auto sigmoid = [](int64_t top_k, int64_t groups, int64_t top_groups) {
    return Router{Routing::sigmoid_groups, top_k, groups, top_groups};
  };
  EXPECT_NO_THROW(route(ctx, logits, sigmoid(4, 4, 2), bias));
  EXPECT_THROW(route(ctx, logits, sigmoid(4, 4, 2), shorter), Error);
  EXPECT_THROW(route(ctx, logits, sigmoid(5, 4, 2)), Error) << "the chosen groups hold four";
  EXPECT_THROW(route(ctx, logits, sigmoid(2, 3, 1)), Error);
  EXPECT_THROW(route(ctx, logits, sigmoid(2, 0, 1)), Error);
  EXPECT_THROW(route(ctx, logits, sigmoid(2, 8, 4)), Error) << "groups of one have no two best";
  EXPECT_THROW(route(ctx, logits, sigmoid(2, 4, 5)), Error);
  EXPECT_THROW(route(ctx, logits, sigmoid(2, 4, 0)), Error);
  for (const Routing routing : {Routing::softmax_of_top, Routing::top_of_softmax}) {
    EXPECT_THROW(route(ctx, logits, {routing, 0}), Error);
    EXPECT_THROW(route(ctx, logits, {routing, 9}), Error);
    EXPECT_THROW(route(ctx, logits, {routing, 2}, bias), Error);
    EXPECT_THROW(route(ctx, logits, {.routing = routing, .top_k = 2, .scale = 2}), Error);
    EXPECT_THROW(route(ctx, logits, {.routing = routing, .top_k = 2, .normalize = true}), Error);
    EXPECT_THROW(route(ctx, logits, {.routing = routing, .top_k = 2, .groups = 2}), Error);
  }
}

TEST(ExpertRows, PutsEveryTokenBesideItsExpertsOthers) {
  Workbench bench(6);
  const Tensor logits = bench.matrix(20, 5, kMixed, false), x = bench.matrix(20, 33, kMixed, true);
  Lab lab(3);
  Context ctx = lab.ctx();
  const Routes r = route(ctx, logits, {Routing::softmax_of_top, 3});
  const Tensor y = expert_rows(ctx, x, r);
  ASSERT_EQ(y.rows(), 60);
  for (int64_t t = 0; t < 20; ++t) {
    for (int64_t k = 0; k < 3; ++k) {
      const int64_t row = r.rows.row<int64_t>(t)[k], expert = r.experts.row<int64_t>(t)[k];
      EXPECT_EQ(bits_of(y.slice(row, row + 1)), bits_of(x.slice(t, t + 1)));
      EXPECT_GE(row, r.offsets.ptr<int64_t>()[expert]);
      EXPECT_LT(row, r.offsets.ptr<int64_t>()[expert + 1]);
    }
  }
  EXPECT_THROW(expert_rows(ctx, x.slice(0, 19), r), Error);
}

// More pairs than one warp sorts, and x as the experts read it.
TEST(ExpertRows, OnCuda) {
  std::string why;
  if (!has_cuda(why)) GTEST_SKIP() << why;
  constexpr int64_t kTokens = 300, kTop = 4, kExperts = 37, kWidth = 40;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Workbench bench(7);
    const Tensor logits = bench.matrix(kTokens, kExperts, kMixed, true);
    const Tensor x = bench.matrix(kTokens, kWidth, kMixed, true, dtype);
    bench.snapshot();
    Lab lab(1, {DeviceType::cuda, 0});
    Context ctx = lab.ctx();
    bench.copy_to_device(ctx, true);
    const Located at = bench.at(ctx);
    const Routes r = route(ctx, at(logits), {Routing::softmax_of_top, kTop});
    const HostCopy y = copy_to_host(ctx, expert_rows(ctx, at(x), r)), experts = copy_to_host(ctx, r.experts),
                   rows = copy_to_host(ctx, r.rows), offsets = copy_to_host(ctx, r.offsets);
    ASSERT_EQ(y.tensor.rows(), kTokens * kTop);
    std::vector<int64_t> last(kExperts, -1);
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t k = 0; k < kTop; ++k) {
        const int64_t row = rows.tensor.row<int64_t>(t)[k], expert = experts.tensor.row<int64_t>(t)[k];
        ASSERT_EQ(bits_of(y.tensor.slice(row, row + 1)), bits_of(x.slice(t, t + 1)));
        ASSERT_GE(row, offsets.tensor.ptr<int64_t>()[expert]);
        ASSERT_LT(row, offsets.tensor.ptr<int64_t>()[expert + 1]);
        ASSERT_GT(row, last[static_cast<size_t>(expert)]) << "tokens of an expert are in order";
        last[static_cast<size_t>(expert)] = row;
      }
    }
  }
}

struct CombineCase {
  int64_t tokens, top_k, width;
  bool strided = false, add = false, in_place = false;
  float alpha = 1;
  Range range = kMixed;
  DType activations = DType::f32;
};

Operation make_combine(Workbench& bench, const CombineCase& c) {
  const int64_t pairs = c.tokens * c.top_k;
  const Tensor x = bench.matrix(pairs, c.width, c.range, c.strided, c.activations);
  const Tensor weights = bench.matrix(c.tokens, c.top_k, {0, 1}, false);
  std::vector<int64_t> rows(static_cast<size_t>(pairs));
  for (int64_t i = 0; i < pairs; ++i) rows[static_cast<size_t>(i)] = (i * 7 + 3) % std::max<int64_t>(pairs, 1);
  Routes routes;
  routes.weights = weights;
  routes.rows = bench.integers(rows).reshape({c.tokens, c.top_k});
  Epilogue epilogue;
  epilogue.alpha = c.alpha;
  if (c.add || c.in_place) epilogue.add = bench.matrix(c.tokens, c.width, kMixed, c.strided);
  if (c.in_place) {
    epilogue.out = epilogue.add;
  } else if (c.strided) {
    epilogue.out = bench.output(c.tokens, c.width, true);
  }
  if (epilogue.out) bench.writable(epilogue.out);
  const reference::CombineInputs in{reference::matrix_of(x), reference::matrix_of(weights), rows,
                                    reference::matrix_of(epilogue.add), static_cast<double>(c.alpha)};
  const auto run = [=, &bench](Context& ctx) {
    const Located at = bench.at(ctx);
    Routes there;
    there.weights = at(routes.weights);
    there.rows = at(routes.rows);
    Epilogue with = epilogue;
    with.add = at(epilogue.add);
    with.out = at(epilogue.out);
    return std::vector{combine(ctx, at(x), there, with)};
  };
  return {run, {reference::combine(in)}};
}

Op<CombineCase> combine_cases(DType activations) {
  Op<CombineCase> op{"combine", {}, {}, make_combine};
  op.describe = [](const CombineCase& c) {
    return concat(c.tokens, " tokens, ", c.top_k, " experts, width ", c.width, c.strided ? " strided" : "",
                  c.in_place ? " in place"
                  : c.add    ? " add"
                             : "",
                  " alpha ", c.alpha);
  };
  int64_t i = 0;
  for (const int64_t tokens : {0, 1, 5, 40}) {
    for (const int64_t top_k : {1, 2, 8, 22}) {
      for (const int64_t width : {1, 16, 33, 512, 513, 1100}) {
        op.cases.push_back({tokens, top_k, width, i % 3 == 0, i % 4 < 2, i % 5 == 3, i % 2 == 0 ? 1.0f : -0.22f,
                            i % 4 == 0 ? kPositive : kMixed, activations});
        ++i;
      }
    }
  }
  return op;
}

TEST(Combine, Forward) { check_forward(combine_cases(DType::f32)); }
TEST(Combine, OnCuda) { check_on_cuda(combine_cases(DType::f32)); }
TEST(Combine, Bf16OnCuda) { check_on_cuda(combine_cases(DType::bf16)); }

TEST(Combine, TokenIsTheSameAloneAndNanStaysInIt) {
  Workbench bench(8);
  constexpr int64_t kTokens = 30, kTop = 4, kWidth = 70, kBad = 9;
  const Tensor logits = bench.matrix(kTokens, 9, kMixed, false), x = bench.matrix(kTokens * kTop, kWidth, kMixed, true);
  for_each_isa([&](Isa) {
    Lab lab(3);
    Context ctx = lab.ctx();
    const Routes r = route(ctx, logits, {Routing::softmax_of_top, kTop});
    x.row<float>(r.rows.row<int64_t>(kBad)[2])[5] = kNan;
    const Tensor y = combine(ctx, x, r, {.alpha = 0.5f});
    for (int64_t t = 0; t < kTokens; ++t) {
      EXPECT_EQ(std::isnan(y.row<float>(t)[5]), t == kBad);
      EXPECT_FALSE(std::isnan(y.row<float>(t)[6]));
      Routes one = r;
      one.weights = r.weights.slice(t, t + 1);
      one.rows = ctx.arena.alloc({1, kTop}, DType::i64);
      const Tensor own = ctx.arena.alloc({kTop, kWidth}, DType::f32);
      for (int64_t k = 0; k < kTop; ++k) {
        std::copy_n(x.row<float>(r.rows.row<int64_t>(t)[k]), kWidth, own.row<float>(kTop - 1 - k));
        one.rows.ptr<int64_t>()[k] = kTop - 1 - k;
      }
      EXPECT_EQ(bits_of(combine(ctx, own, one, {.alpha = 0.5f})), bits_of(y.slice(t, t + 1)));
    }
  });
}

TEST(Combine, AddsInOrderOfRank) {
  Workbench bench(10);
  Routes r;
  r.weights = bench.floats({1, 1, 1}).reshape({1, 3});
  r.rows = bench.integers({2, 0, 1}).reshape({1, 3});
  const Tensor x = bench.floats({1e8f, -1e8f, 1}).reshape({3, 1});  // (1 + 10⁸) − 10⁸ is 0, other orders give 1
  for_each_isa([&](Isa) {
    Lab lab;
    Context ctx = lab.ctx();
    EXPECT_EQ(combine(ctx, x, r).ptr<float>()[0], 0.0f);
  });
}

TEST(Combine, OperandsThatDoNotFitAreErrors) {
  Workbench bench(9);
  Lab lab;
  Context ctx = lab.ctx();
  const Routes r = route(ctx, bench.matrix(3, 4, kMixed, false), {Routing::softmax_of_top, 2});
  const Tensor x = bench.matrix(6, 10, kMixed, false);
  EXPECT_NO_THROW(combine(ctx, x, r));
  EXPECT_THROW(combine(ctx, x.slice(0, 5), r), Error);
  Epilogue add, out, bias;
  add.add = bench.matrix(2, 10, kMixed, false);
  out.out = bench.matrix(3, 9, kMixed, false);
  bias.bias = bench.tensor({10}, kMixed);
  for (const Epilogue& bad : {add, out, bias}) EXPECT_THROW(combine(ctx, x, r, bad), Error);
  Routes far = r;
  far.rows = bench.integers({0, 1, 2, 3, 4, 6}).reshape({3, 2});
  EXPECT_THROW(combine(ctx, x, far), Error);
  far.rows = bench.integers({0, 1, 2, 3, 4, -1}).reshape({3, 2});
  EXPECT_THROW(combine(ctx, x, far), Error);
}

TEST(AuxLoss, IsTheReferencesInAnyPieces) {
  uint64_t seed = 1;
  for (const auto& [rows, experts, top_k] :
       std::vector<std::array<int64_t, 3>>{{1, 1, 1}, {1, 4, 2}, {37, 4, 2}, {100, 40, 8}, {11, 300, 22}}) {
    Workbench bench(seed++);
    const Tensor logits = bench.matrix(rows, experts, {-4, 4}, true);
    const double expected = reference::aux_loss(reference::matrix_of(logits), top_k);
    // Sums of rows terms, then of experts terms, all positive, in double.
    const double tolerance = static_cast<double>(rows + experts + 8) * 0x1p-52 * expected;
    EXPECT_NEAR(aux_loss(logits, top_k), expected, tolerance);
    AuxLoss pieces(experts, top_k);
    for (int64_t r = 0; r < rows; r += 3) pieces.add(logits.slice(r, std::min(rows, r + 3)));
    EXPECT_EQ(pieces.rows(), rows);
    EXPECT_EQ(pieces.value(), aux_loss(logits, top_k));
  }
}

TEST(AuxLoss, IsTopKWhenEveryExpertIsTakenEqually) {
  std::vector<float> logits(16, 0.0f);
  for (size_t i = 0; i < 4; ++i) logits[5 * i] = 3;
  EXPECT_NEAR(aux_loss(Tensor(logits.data(), DType::f32, {4, 4}), 1), 1, 1e-14);
  // Equal logits: the first expert takes every row.
  logits.assign(16, 1.0f);
  EXPECT_NEAR(aux_loss(Tensor(logits.data(), DType::f32, {4, 4}), 1), 1, 1e-14);
  EXPECT_THROW(static_cast<void>(AuxLoss(4, 5)), Error);
  EXPECT_THROW(static_cast<void>(AuxLoss(4, 0)), Error);
  EXPECT_THROW(static_cast<void>(AuxLoss(4, 2).value()), Error) << "no rows";
  EXPECT_THROW(aux_loss(Tensor(logits.data(), DType::i32, {4, 4}), 1), Error);
}

}  // namespace
}  // namespace elapid::testing
