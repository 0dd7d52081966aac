// The training loss of models with experts, labels and auxiliary loss included, from one pass to one number.
//
// An oracle of our own: transformers 5.17.0 cannot compute it for Granite (GraniteMoeForCausalLM and
// GraniteMoeHybridForCausalLM fail with output_router_logits and labels: "'int' object has no attribute 'to'"). It is
// load_balancing_loss_func's definition, step by step as written there and in float64, from the router logits that the
// pass reports. For Jamba, whose class works, the same oracle must give transformers' own numbers.

#include "elapid/ops/moe/aux_loss.h"

#include "elapid/ops/cross_entropy/cross_entropy.h"
#include "tests/infer/fixtures.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <map>
#include <numeric>

namespace elapid::testing {
namespace {

using Row = std::vector<double>;

Row softmax(const Row& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  Row p;
  for (const double l : logits) p.push_back(std::exp(l - top));
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& v : p) v /= total;
  return p;
}

// rows: the logits of all layers, one layer after another.
double load_balancing_loss(const std::vector<Row>& rows, size_t top_k) {
  const size_t experts = rows.front().size();
  const auto count = static_cast<double>(rows.size());
  std::vector<Row> tokens_per_expert(top_k, Row(experts));  // mean of the one-hot of every rank
  Row router_prob_per_expert(experts);
  for (const Row& row : rows) {
    const Row weights = softmax(row);
    std::vector<size_t> selected(experts);
    std::iota(selected.begin(), selected.end(), size_t{0});
    std::stable_sort(selected.begin(), selected.end(), [&](size_t a, size_t b) { return weights[a] > weights[b]; });
    for (size_t k = 0; k < top_k; ++k) tokens_per_expert[k][selected[k]] += 1 / count;
    for (size_t e = 0; e < experts; ++e) router_prob_per_expert[e] += weights[e] / count;
  }
  double overall = 0;
  for (const Row& rank : tokens_per_expert) {
    for (size_t e = 0; e < experts; ++e) overall += rank[e] * router_prob_per_expert[e];
  }
  return overall * static_cast<double>(experts);
}

class AuxiliaryLoss : public ::testing::TestWithParam<std::string> {
 protected:
  double expected(const std::string& name) const {
    float value = 0;
    std::memcpy(&value, want_.at(name).data, sizeof(value));
    return double{value};
  }

  Safetensors want_ = Safetensors::open(case_folder(GetParam()) / "expected.safetensors");
  ThreadPool threads_{2};
};

TEST_P(AuxiliaryLoss, IsPartOfTheTrainingLossOfLabels) {
  const auto model = load_model(case_folder(GetParam()), threads_);
  const ModelConfig& config = model->config();
  const MoeConfig* moe = nullptr;
  for (const BlockConfig& block : config.blocks) {
    for (const BodyUse& use : block.bodies) {
      if (const auto* found = std::get_if<MoeConfig>(&use.config)) moe = found;
    }
  }
  ASSERT_NE(moe, nullptr);

  const Tensor all_ids = want_.at("input_ids"), all_labels = want_.at("labels");
  const int64_t batch = all_ids.shape[0];
  std::vector<std::vector<TokenId>> ids, labels;
  for (int64_t r = 0; r < batch; ++r) {
    ids.push_back(ids_of(all_ids.slice(r, r + 1)));
    labels.push_back(ids_of(all_labels.slice(r, r + 1)));
  }
  Engine engine(*model, threads_, {.slots = batch, .chunk = 16});
  std::vector<Slot> slots;
  std::vector<Input> inputs;
  for (const auto& row : ids) inputs.push_back({row, slots.emplace_back(engine.states().acquire()).index()});

  std::map<int64_t, std::vector<Row>> routers;  // by layer
  AuxLoss aux(moe->experts, moe->top_k);
  double nll = 0, engine_nll = 0;
  int64_t count = 0;
  Engine::Visitor visitor;
  visitor.rows = [&](const Piece& piece, const Tensor&, const Tensor& logits) {
    const std::vector<TokenId>& row = labels[static_cast<size_t>(piece.input)];
    std::vector<int64_t> targets;  // of each position: the label behind it
    for (int64_t i = 0; i < piece.count; ++i) {
      const auto next = static_cast<size_t>(piece.first + i + 1);
      targets.push_back(next < row.size() ? row[next] : kIgnoreLabel);
      if (targets.back() == kIgnoreLabel) continue;
      const Row p = softmax({logits.row<float>(i), logits.row<float>(i) + config.vocab});
      nll -= std::log(p[static_cast<size_t>(targets.back())]);
      ++count;
    }
    Context ctx = engine.context();
    const Arena::Scope scope(ctx.arena);
    const Tensor rows = cross_entropy(ctx, logits, Tensor(targets.data(), DType::i64, {piece.count}));
    for (int64_t i = 0; i < piece.count; ++i) engine_nll += double{rows.ptr<float>()[i]};
  };
  visitor.router_logits = [&](const Piece&, int64_t layer, const Tensor& logits) {
    aux.add(logits);
    for (int64_t r = 0; r < logits.rows(); ++r) {
      routers[layer].emplace_back(logits.row<float>(r), logits.row<float>(r) + logits.cols());
    }
  };
  engine.all_logits(inputs, visitor);

  std::vector<Row> rows;
  for (const auto& [layer, of_layer] : routers) {
    EXPECT_EQ(of_layer.size(), static_cast<size_t>(all_ids.size())) << "layer " << layer;
    rows.insert(rows.end(), of_layer.begin(), of_layer.end());
  }
  ASSERT_FALSE(rows.empty());
  ASSERT_GT(count, 0);
  const double oracle = load_balancing_loss(rows, static_cast<size_t>(moe->top_k));
  const auto coef = double{config.router_aux_loss_coef}, tokens = static_cast<double>(count);
  EXPECT_GT(coef, 0);
  EXPECT_NEAR(aux.value(), oracle, 1e-12);
  EXPECT_NEAR(engine_nll / tokens + coef * aux.value(), nll / tokens + coef * oracle, 1e-5);

  // As far as transformers says it: the loss of the labels alone, and for Jamba all of it.
  constexpr double kTolerance = 5e-5;
  EXPECT_NEAR(nll / tokens, expected("loss"), kTolerance);
  EXPECT_EQ(want_.contains("loss_with_router"), config.family == "jamba");
  if (want_.contains("loss_with_router")) {
    EXPECT_NEAR(oracle, expected("aux_loss"), kTolerance);
    EXPECT_NEAR(nll / tokens + coef * oracle, expected("loss_with_router"), kTolerance);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, AuxiliaryLoss,
                         ::testing::Values("granitemoe_attnbias_theta", "granitemoe_default", "granitemoe_mha_plain",
                                           "granitemoe_untied_experts8", "granitemoehybrid_moe_nope",
                                           "granitemoehybrid_moe_rope", "jamba_default"),
                         [](const auto& one) { return one.param; });

}  // namespace
}  // namespace elapid::testing
