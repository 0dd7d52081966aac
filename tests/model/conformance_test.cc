// Tiny random checkpoints with the logits, hidden states and states that transformers computed for them (float64 runs).

#include "elapid/core/isa.h"
#include "tests/model/fixtures.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <map>

namespace elapid::testing {
namespace {

class ModelConformance : public ::testing::TestWithParam<std::string> {
 protected:
  ModelConformance()
      : folder_(case_folder(GetParam())),
        want_(Safetensors::open(folder_ / "expected.safetensors")),
        model_(load_model(folder_, threads_)),
        // As the suite defines it: twenty times transformers' own float32-to-float64 difference, at least 1e-5.
        tolerance_(std::max(1e-5, 20 * read_json(folder_ / "meta.json")["fp32_vs_fp64"]["logits"].get<double>())) {}

  std::vector<TokenId> row_of(const std::string& name, int64_t row) const {
    const Tensor ids = want_.at(name).slice(row, row + 1);
    std::vector<TokenId> tokens;
    for (int64_t i = 0; i < ids.size(); ++i) {
      int64_t id;
      std::memcpy(&id, static_cast<const char*>(ids.data) + i * 8, 8);
      tokens.push_back(static_cast<TokenId>(id));
    }
    return tokens;
  }

  std::vector<float> expected(const std::string& name) const {
    const Tensor& t = want_.at(name);
    std::vector<float> values(static_cast<size_t>(t.size()));
    std::memcpy(values.data(), t.data, values.size() * sizeof(float));
    return values;
  }

  void compare(const std::string& what, const std::vector<float>& got, const std::vector<float>& want) const {
    ASSERT_EQ(got.size(), want.size()) << what;
    double worst = 0, scale = 1;
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_TRUE(std::isfinite(got[i])) << what << " at " << i;
      worst = std::max(worst, std::abs(double{got[i]} - want[i]));
      scale = std::max(scale, std::abs(double{want[i]}));
    }
    EXPECT_LE(worst, tolerance_ * scale) << what << " at " << name_of(active_isa());
  }

  fs::path folder_;
  Safetensors want_;
  ThreadPool threads_{2};
  Arena arena_;
  Context ctx_{{}, threads_, arena_};
  std::unique_ptr<Model> model_;
  double tolerance_;
};

TEST_P(ModelConformance, LogitsHiddenStatesAndStatesAtEveryLevel) {
  const Isa before = active_isa();
  for (const Isa isa : available_isas()) {
    set_active_isa(isa);
    StatePool states(model_->state_spec(), 2);
    const Slot a = states.acquire(), b = states.acquire();
    std::vector<std::vector<float>> residuals;
    const std::vector<float> logits = run(
        *model_, ctx_, {{row_of("input_ids", 0), a.index()}, {row_of("input_ids", 1), b.index()}}, &states, &residuals);
    compare("logits", logits, expected("logits_f64"));

    const Json meta = read_json(folder_ / "meta.json");
    size_t compared = 0;
    for (size_t j = 0; j < meta["hidden_states_are"].size(); ++j) {
      const std::string kind = meta["hidden_states_are"][j].get<std::string>();
      if (!kind.starts_with("layers.") || !kind.ends_with(".output")) continue;
      const size_t layer = static_cast<size_t>(std::stoul(kind.substr(7)));
      compare(concat("hidden_states.", j), residuals.at(layer + 1), expected(concat("hidden_states.", j)));
      ++compared;
    }
    EXPECT_EQ(compared, model_->config().blocks.size());

    const auto& entries = model_->state_spec()->entries;
    for (size_t i = 0; i < entries.size(); ++i) {
      const Tensor got = states.entry(static_cast<int64_t>(i));  // slots 0 and 1 in order
      const std::string name = concat("state.", entries[i].layer, ".", entries[i].kind);
      std::vector<float> values(got.ptr<float>(), got.ptr<float>() + got.size());
      std::vector<float> want = expected(name);
      if (entries[i].kind == "conv") {
        // Theirs is [B, channels, K], ours [slots, K − 1, channels].
        const int64_t kept = got.shape[1], channels = got.shape[2], taps = kept + 1;
        std::vector<float> rearranged(values.size());
        for (int64_t s = 0; s < 2; ++s) {
          for (int64_t k = 0; k < kept; ++k) {
            for (int64_t c = 0; c < channels; ++c) {
              rearranged[static_cast<size_t>((s * kept + k) * channels + c)] =
                  want[static_cast<size_t>((s * channels + c) * taps + k + 1)];
            }
          }
        }
        want = rearranged;
      }
      compare(name, values, want);
    }

    const std::string steps = want_.contains("step_logits_full") ? "step_logits_full" : "step_logits";
    std::vector<float> stepped(static_cast<size_t>(want_.at(steps).size()));
    const int64_t count = want_.at(steps).shape[1], vocab = model_->config().vocab;
    const std::vector<TokenId> ids_a = row_of("step_ids", 0), ids_b = row_of("step_ids", 1);
    for (int64_t t = 0; t < count; ++t) {
      const auto i = static_cast<size_t>(t);
      const std::vector<float> step = run(*model_, ctx_, {{{ids_a[i]}, a.index()}, {{ids_b[i]}, b.index()}}, &states);
      std::copy_n(step.begin(), vocab, stepped.begin() + t * vocab);
      std::copy_n(step.begin() + vocab, vocab, stepped.begin() + (count + t) * vocab);
    }
    compare(steps, stepped, expected(steps));
  }
  set_active_isa(before);
}

TEST_P(ModelConformance, RowsAloneAgreeAndBatchesAreBitIdentical) {
  const Tensor mask = want_.at("padded.attention_mask");
  const int64_t rows = mask.shape[0], width = mask.shape[1], vocab = model_->config().vocab;
  std::vector<Sequence> batch;
  std::vector<std::vector<float>> alone;
  for (int64_t r = 0; r < rows; ++r) {
    const std::vector<TokenId> padded = row_of("padded.input_ids", r), keep = row_of("padded.attention_mask", r);
    Sequence sequence;
    for (int64_t t = 0; t < width; ++t) {
      if (keep[static_cast<size_t>(t)] == 1) sequence.tokens.push_back(padded[static_cast<size_t>(t)]);
    }
    alone.push_back(run(*model_, ctx_, {sequence}));
    compare(concat("alone.", r), alone.back(), expected(concat("alone.", r, ".logits")));
    batch.push_back(sequence);
  }
  const std::vector<float> together = run(*model_, ctx_, batch);
  size_t at = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const std::vector<float>& single = alone[static_cast<size_t>(r)];
    ASSERT_LE(at + single.size(), together.size());
    EXPECT_EQ(std::memcmp(single.data(), together.data() + at, single.size() * sizeof(float)), 0) << "row " << r;
    at += single.size();
  }
  EXPECT_EQ(at, together.size());
  EXPECT_EQ(at % static_cast<size_t>(vocab), 0u);
}

INSTANTIATE_TEST_SUITE_P(Mamba2, ModelConformance, ::testing::ValuesIn(mamba2_cases()),
                         [](const auto& one) { return one.param; });

}  // namespace
}  // namespace elapid::testing
