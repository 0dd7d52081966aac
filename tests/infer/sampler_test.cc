#include "elapid/infer/sampler.h"

#include "elapid/core/error.h"
#include "elapid/core/random.h"
#include "tests/infer/allocations.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <numeric>

namespace elapid {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TokenId draw(const std::vector<float>& logits, const SamplingParams& params, int64_t position, int64_t stream = 0,
             const std::vector<uint8_t>& seen = {}, int64_t limit = 0) {
  const auto vocab = static_cast<int64_t>(logits.size());
  return Sampler(vocab).sample(logits, params, seen, limit == 0 ? vocab : limit, {stream, position});
}

struct Likely {
  TokenId id;
  double score, probability;
};

// What the parameters mean, by sorting everything: the tokens that may be drawn, best first.
std::vector<Likely> reference(const std::vector<float>& logits, const SamplingParams& params,
                              const std::vector<uint8_t>& seen) {
  std::vector<Likely> all;
  for (size_t i = 0; i < logits.size(); ++i) {
    double score = logits[i];
    if (!seen.empty() && seen[i])
      score = score > 0 ? score / params.repetition_penalty : score * params.repetition_penalty;
    all.push_back({static_cast<TokenId>(i), score / params.temperature, 0});
  }
  std::stable_sort(all.begin(), all.end(), [](const Likely& a, const Likely& b) { return a.score > b.score; });
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < all.size()) all.resize(static_cast<size_t>(params.top_k));
  const auto normalize = [&] {
    double total = 0;
    for (const Likely& t : all) total += std::exp(t.score - all[0].score);
    for (Likely& t : all) t.probability = std::exp(t.score - all[0].score) / total;
  };
  normalize();
  double mass = 0;
  size_t kept = 0;
  while (kept < all.size() && (kept == 0 || mass < params.top_p)) mass += all[kept++].probability;
  all.resize(kept);
  normalize();
  while (all.back().probability < params.min_p * all[0].probability) all.pop_back();
  normalize();
  return all;
}

TEST(Sampler, DrawsWhatTheDefinitionDraws) {
  int compared = 0;
  for (uint64_t trial = 0; trial < 400; ++trial) {
    auto random = [&, counter = uint64_t{0}]() mutable { return uniform(77, counter++, trial); };
    std::vector<float> logits(static_cast<size_t>(1 + random() * 300));
    for (float& x : logits) x = static_cast<float>(8 * random() - 4);
    std::vector<uint8_t> seen(logits.size());
    for (uint8_t& s : seen) s = random() < 0.3;
    SamplingParams params;
    params.temperature = 0.1 + 2 * random();
    params.top_k = random() < 0.5 ? 0 : static_cast<int64_t>(1 + random() * 50);
    params.top_p = random() < 0.3 ? 1 : random();
    params.min_p = random() < 0.5 ? 0 : 0.3 * random();
    params.repetition_penalty = random() < 0.5 ? 1 : 0.5 + 2 * random();
    params.seed = trial;
    if (params.repetition_penalty == 1) seen.clear();
    const std::vector<Likely> want = reference(logits, params, seen);
    for (int64_t position = 0; position < 50; ++position) {
      const double u = uniform(trial, static_cast<uint64_t>(position), 3);
      double sum = 0;
      size_t expected = 0;
      while (expected + 1 < want.size() && sum + want[expected].probability <= u) sum += want[expected++].probability;
      const TokenId got = draw(logits, params, position, 3, seen);
      // On the border between two tokens rounding decides.
      if (std::abs(sum - u) < 1e-9 || std::abs(sum + want[expected].probability - u) < 1e-9) continue;
      ASSERT_EQ(got, want[expected].id) << "trial " << trial << ", position " << position;
      ++compared;
    }
  }
  EXPECT_GT(compared, 19000);
}

TEST(Sampler, FrequenciesAreTheProbabilities) {
  const std::vector<float> logits = {0.5f, -1, 2, 0, 1.5f, -0.5f, 1, -2};
  const SamplingParams params{.temperature = 1.3, .top_p = 1};
  const std::vector<Likely> want = reference(logits, params, {});
  constexpr int64_t kDraws = 40000;
  std::vector<double> counts(logits.size());
  for (int64_t i = 0; i < kDraws; ++i) ++counts[static_cast<size_t>(draw(logits, params, i))];
  double chi_square = 0;
  for (const Likely& token : want) {
    const double expected = token.probability * kDraws;
    chi_square += std::pow(counts[static_cast<size_t>(token.id)] - expected, 2) / expected;
  }
  EXPECT_LT(chi_square, 24.3);  // 7 degrees of freedom, one in a thousand
}

TEST(Sampler, TemperatureZeroTakesTheBestAndTiesGoToTheSmallerId) {
  const SamplingParams greedy{.temperature = 0, .top_p = 0.1};
  EXPECT_EQ(draw({1, 3, 2, 3}, greedy, 0), 1);
  EXPECT_EQ(draw({-kInfinity, -5, -kInfinity}, greedy, 0), 1);
  EXPECT_EQ(draw({1, 3, 2, 9}, greedy, 0, 0, {}, 3), 1) << "beyond the limit";
}

TEST(Sampler, CutsAmongEqualsKeepTheSmallerIds) {
  const std::vector<float> equal(10, 1.0f);
  const auto ids_drawn = [&](const SamplingParams& params) {
    std::vector<TokenId> ids;
    for (int64_t i = 0; i < 2000; ++i) ids.push_back(draw(equal, params, i));
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    return ids;
  };
  EXPECT_EQ(ids_drawn({.top_k = 3, .top_p = 1}), (std::vector<TokenId>{0, 1, 2}));
  EXPECT_EQ(ids_drawn({.top_p = 0.35}), (std::vector<TokenId>{0, 1, 2, 3}));
  EXPECT_EQ(ids_drawn({.top_p = 0}), (std::vector<TokenId>{0})) << "at least one is kept";
  EXPECT_EQ(ids_drawn({.top_p = 1, .min_p = 1}).size(), 10u);
}

TEST(Sampler, PenaltyDividesPositiveAndMultipliesNegativeLogits) {
  const std::vector<uint8_t> seen = {1, 1, 0};
  const auto best = [&](const std::vector<float>& logits, double penalty) {
    return draw(logits, {.temperature = 0, .repetition_penalty = penalty}, 0, 0, seen);
  };
  EXPECT_EQ(best({2, -2, 1}, 2), 0) << "2 / 2 = 1, a tie";
  EXPECT_EQ(best({2, -2, 1}, 2.5), 2);
  EXPECT_EQ(best({-2, -3, -3.5f}, 2), 2);
  EXPECT_EQ(best({-2, -3, -4.5f}, 0.5), 0) << "below 1 it favours";
}

TEST(Sampler, DrawsDependOnSeedStreamAndPositionAlone) {
  const std::vector<float> flat(1000, 0.0f);
  const SamplingParams one{.top_p = 1, .seed = 1}, two{.top_p = 1, .seed = 2};
  int same_seed = 0, same_stream = 0, same_position = 0;
  for (int64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(draw(flat, one, i), draw(flat, one, i));
    same_seed += draw(flat, one, i) == draw(flat, two, i);
    same_stream += draw(flat, one, i, 0) == draw(flat, one, i, 1);
    same_position += draw(flat, one, i) == draw(flat, one, i + 1);
  }
  EXPECT_LT(same_seed, 5);
  EXPECT_LT(same_stream, 5);
  EXPECT_LT(same_position, 5);
}

TEST(Sampler, ImpossibleTokensAreNeverDrawn) {
  std::vector<float> logits(100, -kInfinity);
  logits[40] = 0;
  logits[60] = -50;
  const SamplingParams params{.temperature = 5, .top_p = 1};
  for (int64_t i = 0; i < 1000; ++i) {
    const TokenId id = draw(logits, params, i);
    EXPECT_TRUE(id == 40 || id == 60) << id;
  }
}

TEST(Sampler, LogitsThatAreNoNumbersAreErrors) {
  EXPECT_THROW(draw({1, std::nanf(""), 2}, {}, 0), Error);
  EXPECT_THROW(draw({1, std::nanf(""), 2}, {.temperature = 0}, 0), Error);
  EXPECT_THROW(draw({1, kInfinity, 2}, {}, 0), Error);
  EXPECT_THROW(draw({-kInfinity, -kInfinity}, {}, 0), Error);
  EXPECT_NO_THROW(draw({1, 2, std::nanf("")}, {}, 0, 0, {}, 2)) << "beyond the limit";
}

TEST(LogNormalizer, IsTheLogOfTheSumOfExponentials) {
  EXPECT_NEAR(log_normalizer(std::vector<float>{0, 0, 0, -kInfinity}, "x"), std::log(3), 1e-12);
  EXPECT_NEAR(log_normalizer(std::vector<float>{1000, 999}, "x"), 1000 + std::log1p(std::exp(-1)), 1e-9);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::vector<float>> all_bad = {{nan, 1},    {1, nan},       {1, nan, 2},
                                                   {2, nan, 1}, {1, kInfinity}, {-kInfinity}};
  for (const std::vector<float>& bad : all_bad) EXPECT_THROW((void)log_normalizer(bad, "x"), Error);
}

TEST(Sampler, AllocatesInTheConstructorOnly) {
  std::vector<float> logits(50000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(uniform(5, i, 0) * 10);
  Sampler sampler(static_cast<int64_t>(logits.size()));
  const std::vector<uint8_t> seen(logits.size(), 1);
  const int64_t before = testing::allocation_count();
  for (int64_t i = 0; i < 8; ++i) {
    const SamplingParams params{.top_k = i % 2 == 0 ? 0 : 40,
                                .top_p = i % 4 < 2 ? 1 : 0.9,
                                .min_p = i < 4 ? 0 : 0.05,
                                .repetition_penalty = 1.1};
    static_cast<void>(sampler.sample(logits, params, seen, static_cast<int64_t>(logits.size()), {0, i}));
  }
  EXPECT_EQ(testing::allocation_count(), before);
}

TEST(SamplingParams, RangesAreChecked) {
  const auto message = [](const SamplingParams& params) -> std::string {
    try {
      params.validate();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message({}), "");
  EXPECT_EQ(message({.temperature = 0, .top_p = 0, .min_p = 1}), "");
  EXPECT_NE(message({.temperature = -1}).find("temperature must be at least 0 and finite, got -1"), std::string::npos);
  EXPECT_NE(message({.temperature = std::nan("")}), "");
  EXPECT_NE(message({.top_k = -1}), "");
  EXPECT_NE(message({.top_p = 7}).find("top-p must be from 0 to 1, got 7"), std::string::npos);
  EXPECT_NE(message({.min_p = -0.1}), "");
  EXPECT_NE(message({.repetition_penalty = 0}), "");
}

}  // namespace
}  // namespace elapid
