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

  // The reference's float64 run.
  [[nodiscard]] std::string logits_name() const { return want_.contains("logits_f64") ? "logits_f64" : "logits"; }

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
    compare("logits", logits, expected(logits_name()));

    const Json meta = read_json(folder_ / "meta.json");
    size_t compared = 0;
    for (size_t j = 0; j < meta["hidden_states_are"].size(); ++j) {
      const std::string kind = meta["hidden_states_are"][j].get<std::string>(), name = concat("hidden_states.", j);
      size_t layer = 0;
      if (kind.starts_with("layers.")) {
        layer = std::stoul(kind.substr(7)) + (kind.ends_with(".output") ? 1 : 0);
      } else if (kind.starts_with("residual stream after layer ")) {
        layer = std::stoul(kind.substr(28)) + 1;
      } else {
        continue;  // the embedding before its multiplier, or what follows the final norm
      }
      compare(name, residuals.at(layer), expected(name));
      ++compared;
    }
    EXPECT_GE(compared + 1, static_cast<size_t>(model_->config().layers()));

    const State saved[] = {states.save(a, {}), states.save(b, {})};
    for (int64_t e = 0; e < saved[0].entry_count(); ++e) {
      const StateEntry& entry = saved[0].declared(e);
      const std::string name = concat("state.", entry.layer, ".", entry.kind);
      std::vector<float> values;
      for (const State& state : saved) {
        const Tensor got = state.entry(e);
        const std::vector<float> own(got.ptr<float>(), got.ptr<float>() + got.size());
        if (entry.kind == "conv" || entry.per_token()) {
          // Theirs has time behind channels or heads.
          const int64_t times = got.shape[0], width = entry.per_token() ? got.shape[2] : 1;
          const int64_t outer = got.shape[1];
          for (int64_t o = 0; o < outer; ++o) {
            for (int64_t t = 0; t < times; ++t) {
              const auto from = own.begin() + (t * outer + o) * width;
              values.insert(values.end(), from, from + width);
            }
          }
        } else {
          values.insert(values.end(), own.begin(), own.end());
        }
      }
      std::vector<float> want = expected(name);
      if (entry.kind == "conv") {  // theirs keeps one input more, the oldest
        const size_t taps = static_cast<size_t>(entry.shape[0]) + 1;
        std::vector<float> kept;
        for (size_t i = 0; i < want.size(); ++i) {
          if (i % taps != 0) kept.push_back(want[i]);
        }
        want = kept;
      }
      compare(name, values, want);
    }

    if (!want_.contains("step_logits") && !want_.contains("step_logits_full")) continue;
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
  if (!want_.contains("padded.attention_mask")) {  // original checkpoints: rows of other lengths from the prompt
    std::vector<Sequence> batch;
    std::vector<float> alone;
    for (const size_t length : {5u, 37u, 1u, 20u}) {
      const std::vector<TokenId> ids = row_of("input_ids", 0);
      batch.push_back({{ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(length)}});
      const std::vector<float> logits = run(*model_, ctx_, {batch.back()});
      alone.insert(alone.end(), logits.begin(), logits.end());
    }
    EXPECT_EQ(run(*model_, ctx_, batch), alone);
    return;
  }
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

TEST(ModelConformanceCases, AreAllThere) { EXPECT_GE(conformance_cases().size(), 36u); }

INSTANTIATE_TEST_SUITE_P(Cases, ModelConformance, ::testing::ValuesIn(conformance_cases()),
                         [](const auto& one) { return test_name(one.param); });

}  // namespace
}  // namespace elapid::testing
