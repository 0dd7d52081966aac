#include "elapid/infer/likelihood.h"

#include "tests/infer/fixtures.h"

#include <cmath>
#include <gtest/gtest.h>

namespace elapid::testing {
namespace {

class LikelihoodTest : public ::testing::TestWithParam<std::string> {
 protected:
  // From the definition: one forward call over context and continuation, softmax in double.
  Likelihood expected(const Query& q) {
    std::vector<TokenId> ids = q.context;
    ids.insert(ids.end(), q.continuation.begin(), q.continuation.end());
    Arena arena;
    Context ctx{{}, threads_, arena};
    const std::vector<float> logits = run(*model_, ctx, {{ids}});
    const auto vocab = static_cast<size_t>(model_->config().vocab);
    Likelihood result;
    for (size_t i = 0; i < q.continuation.size(); ++i) {
      const float* row = logits.data() + (q.context.size() + i - 1) * vocab;
      double total = 0;
      for (size_t v = 0; v < vocab; ++v) total += std::exp(double{row[v]} - double{row[0]});
      const auto id = static_cast<size_t>(q.continuation[i]);
      result.log_likelihood += double{row[id]} - double{row[0]} - std::log(total);
      for (size_t v = 0; v < vocab; ++v) result.greedy &= row[v] < row[id] || v == id;
    }
    return result;
  }

  ThreadPool threads_{2};
  std::unique_ptr<Model> model_ = load_model(case_folder(GetParam()), threads_);
};

TEST_P(LikelihoodTest, IsThatOfTheWholeSequenceAndContextsAreShared) {
  const std::vector<TokenId> shared = {5, 17, 3, 90, 41, 8, 8, 30}, other = {7, 9};
  std::vector<Query> queries;
  for (const std::vector<TokenId>& continuation : std::vector<std::vector<TokenId>>{{4}, {60, 61}, {4, 5, 6}}) {
    queries.push_back({shared, continuation});
    queries.push_back({other, continuation});
  }
  queries.push_back({{3}, {12, 13}});
  queries.push_back({{3}, {14}});
  // One that is greedy by construction.
  for (TokenId id = 0; id < model_->config().vocab; ++id) {
    if (expected({other, {id}}).greedy) queries.push_back({other, {id}});
  }
  EXPECT_GE(queries.size(), 9u);
  for (const int64_t slots : {2, 5, 64}) {
    // A chunk that cuts contexts and continuations.
    Engine engine(*model_, threads_, {.slots = slots, .chunk = 3, .batch = 12});
    int64_t done = 0;
    const std::vector<Likelihood> got = log_likelihoods(engine, queries, [&](int64_t n) { done = n; });
    EXPECT_EQ(done, std::ssize(queries));
    EXPECT_EQ(engine.states().available(), slots) << "slots come back";
    ASSERT_EQ(got.size(), queries.size());
    for (size_t i = 0; i < queries.size(); ++i) {
      const Likelihood want = expected(queries[i]);
      // Chunks of 3 and whole sequences round differently; a log-likelihood is a handful of logits.
      const double tolerance = 1e-5 * static_cast<double>(queries[i].continuation.size() + 1);
      EXPECT_NEAR(got[i].log_likelihood, want.log_likelihood, tolerance * std::max(1.0, -want.log_likelihood)) << i;
      EXPECT_EQ(got[i].greedy, want.greedy) << i;
    }
  }
  // A neighbour changes nothing, to the bit.
  Engine engine(*model_, threads_, {.slots = 64});
  const std::vector<Likelihood> together = log_likelihoods(engine, queries);
  for (size_t i = 0; i < queries.size(); ++i) {
    EXPECT_EQ(log_likelihoods(engine, {&queries[i], 1})[0].log_likelihood, together[i].log_likelihood);
  }
}

TEST_P(LikelihoodTest, SharingALongContextChangesNoBit) {
  const std::vector<TokenId> ids = random_ids(200, model_->config().vocab, 1);
  std::vector<Query> queries;
  for (const size_t length : {64, 65, 66, 67, 129, 130, 150, 193, 200}) {
    const std::vector<TokenId> context(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(length));
    for (const std::vector<TokenId>& end : std::vector<std::vector<TokenId>>{{4}, {60, 61}, {4, 5, 6}}) {
      queries.push_back({context, end});
    }
  }
  for (const int64_t chunk : {1, 65, 100, 128, 512}) {
    Engine engine(*model_, threads_, {.slots = 64, .chunk = chunk});
    const std::vector<Likelihood> together = log_likelihoods(engine, queries);
    for (size_t i = 0; i < queries.size(); ++i) {
      EXPECT_EQ(log_likelihoods(engine, {&queries[i], 1})[0].log_likelihood, together[i].log_likelihood)
          << "context of " << queries[i].context.size() << ", chunk " << chunk;
    }
  }
}

TEST_P(LikelihoodTest, RefusesWhatHasNoContextOrContinuation) {
  Engine engine(*model_, threads_, {.slots = 2});
  const Query no_context{{}, {3}}, no_continuation{{3}, {}};
  EXPECT_THROW(log_likelihoods(engine, {&no_context, 1}), Error);
  EXPECT_THROW(log_likelihoods(engine, {&no_continuation, 1}), Error);
  Engine small(*model_, threads_, {.slots = 1});
  const Query good{{3}, {4}};
  EXPECT_THROW(log_likelihoods(small, {&good, 1}), Error);
}

INSTANTIATE_TEST_SUITE_P(Models, LikelihoodTest, ::testing::Values("mamba_default", "mamba2_default", "jamba_default"));

}  // namespace
}  // namespace elapid::testing
