#include "elapid/infer/beam.h"

#include "elapid/infer/generate.h"
#include "elapid/infer/likelihood.h"
#include "tests/infer/fixtures.h"

#include <gtest/gtest.h>

namespace elapid::testing {
namespace {

class BeamTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::vector<Hypothesis> search(const BeamOptions& options) {
    Engine engine(*model_, threads_, {.slots = 2 * options.beams});
    const std::vector<Hypothesis> found = beam_search(engine, prompt_, options);
    EXPECT_EQ(engine.states().available(), 2 * options.beams) << "slots come back";
    return found;
  }

  ThreadPool threads_{2};
  std::unique_ptr<Model> model_ = load_model(case_folder(GetParam()), threads_);
  const std::vector<TokenId> prompt_ = random_ids(20, model_->config().vocab, 3);
};

TEST_P(BeamTest, OneBeamIsGreedy) {
  Engine engine(*model_, threads_, {.slots = 1});
  GenerateOptions greedy;
  greedy.sampling.temperature = 0;
  greedy.max_new_tokens = 12;
  EXPECT_EQ(search({.beams = 1, .max_new_tokens = 12})[0].ids, generate(engine, prompt_, greedy).sequences[0].ids);
}

TEST_P(BeamTest, ScoresAreThoseOfTheSequences) {
  const std::vector<Hypothesis> found = search({.beams = 5, .max_new_tokens = 9, .length_penalty = 0.5});
  ASSERT_EQ(found.size(), 5u);
  Engine engine(*model_, threads_, {.slots = 2});
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].ids.size(), 9u);
    const Query query{prompt_, found[i].ids};
    // The sum of nine log-softmaxes, rounded to float32 on one side.
    EXPECT_NEAR(found[i].log_likelihood, log_likelihoods(engine, {&query, 1})[0].log_likelihood, 1e-4);
    EXPECT_NEAR(found[i].score, found[i].log_likelihood / 3, 1e-9);
    if (i > 0) {
      EXPECT_LE(found[i].score, found[i - 1].score);
    }
  }
}

// With as many beams as ids, two steps leave nothing out: the result is the best of all pairs.
TEST_P(BeamTest, EnoughBeamsFindTheBest) {
  const int64_t vocab = 24;
  const std::vector<Hypothesis> found = search({.beams = vocab, .max_new_tokens = 2, .vocab_limit = vocab});
  std::vector<TokenId> best;
  double top = -1e9;
  for (TokenId a = 0; a < vocab; ++a) {
    for (TokenId b = 0; b < vocab; ++b) {
      double total = 0;
      std::vector<TokenId> ids = prompt_;
      Arena arena;
      Context ctx{{}, threads_, arena};
      for (const TokenId id : {a, b}) {
        const std::vector<float> logits = run(*model_, ctx, {{ids}});
        const float* row = logits.data() + logits.size() - static_cast<size_t>(model_->config().vocab);
        double sum = 0;
        for (int64_t v = 0; v < vocab; ++v) sum += std::exp(double{row[v]} - double{row[id]});
        total -= std::log(sum);
        ids.push_back(id);
      }
      if (total > top) {
        top = total;
        best = {a, b};
      }
    }
  }
  EXPECT_EQ(found[0].ids, best);
  EXPECT_NEAR(found[0].log_likelihood, top, 1e-4);
}

TEST_P(BeamTest, StopIdsEndHypotheses) {
  const TokenId stop = search({.beams = 1, .max_new_tokens = 1})[0].ids[0];
  const std::vector<Hypothesis> found =
      search({.beams = 3, .max_new_tokens = 6, .length_penalty = 0, .stop_ids = {stop}});
  ASSERT_EQ(found.size(), 3u);
  bool any = false;
  for (const Hypothesis& h : found) {
    EXPECT_EQ(h.finished, h.ids.back() == stop);
    EXPECT_EQ(std::count(h.ids.begin(), h.ids.end() - 1, stop), 0);
    any |= h.finished;
  }
  EXPECT_TRUE(any) << "without a length penalty, a likely id that ends at once beats six";
}

TEST_P(BeamTest, RefusesWhatMakesNoSense) {
  Engine engine(*model_, threads_, {.slots = 7});
  EXPECT_THROW(beam_search(engine, prompt_, {.beams = 4}), Error) << "too few slots";
  EXPECT_THROW(beam_search(engine, prompt_, {.beams = 0}), Error);
  EXPECT_THROW(beam_search(engine, {}, {.beams = 2}), Error);
  EXPECT_THROW(beam_search(engine, prompt_, {.beams = 2, .max_new_tokens = 0}), Error);
}

INSTANTIATE_TEST_SUITE_P(Models, BeamTest, ::testing::Values("mamba2_default", "bamba_default"));

}  // namespace
}  // namespace elapid::testing
