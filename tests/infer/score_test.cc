#include "elapid/infer/score.h"

#include "tests/infer/fixtures.h"

#include <cmath>
#include <gtest/gtest.h>

namespace elapid::testing {
namespace {

class ScoreTest : public ::testing::Test {
 protected:
  ScoreTest() : model_(load_model(case_folder("mamba2_default"), threads_)), ids_(random_ids(60, 96, 9)) {}

  // Pushed in pieces of `piece` ids.
  std::vector<float> score(int64_t chunk, size_t piece) {
    Engine engine(*model_, threads_, {.chunk = chunk});
    std::vector<float> nll;
    Scorer scorer(engine, [&](float value) { nll.push_back(value); });
    std::span<const TokenId> rest(ids_);
    while (!rest.empty()) {
      const size_t n = std::min(piece, rest.size());
      scorer.push(rest.first(n));
      rest = rest.subspan(n);
    }
    scorer.finish();
    double total = 0;
    for (const float value : nll) total += value;
    EXPECT_EQ(scorer.tokens(), std::ssize(nll));
    EXPECT_DOUBLE_EQ(scorer.total(), total);
    return nll;
  }

  ThreadPool threads_{2};
  std::unique_ptr<Model> model_;
  std::vector<TokenId> ids_;
};

TEST_F(ScoreTest, EveryTokenAfterTheFirstIsScoredByTheLogitsBeforeIt) {
  const std::vector<float> nll = score(512, 60);
  ASSERT_EQ(nll.size(), 59u);
  Engine engine(*model_, threads_);
  const Slot slot = engine.states().acquire();
  const Input input{ids_, slot.index()};
  const int64_t vocab = model_->config().vocab;
  engine.all_logits({&input, 1}, {.rows =
                                      [&](const Piece& piece, const Tensor&, const Tensor& logits) {
                                        for (int64_t i = 0; i < piece.count && piece.first + i + 1 < 60; ++i) {
                                          const float* row = logits.row<float>(i);
                                          double sum = 0;
                                          for (int64_t v = 0; v < vocab; ++v) sum += std::exp(double{row[v]});
                                          const auto t = static_cast<size_t>(piece.first + i);
                                          EXPECT_NEAR(nll[t], std::log(sum) - row[ids_[t + 1]], 1e-5) << t;
                                        }
                                      },
                                  .residual = {}});
}

TEST_F(ScoreTest, HowIdsArriveDoesNotMatter) {
  const std::vector<float> want = score(16, 60);
  for (const size_t piece : {1, 2, 15, 16, 17, 18}) EXPECT_EQ(score(16, piece), want) << piece;
}

TEST_F(ScoreTest, ChunksAgreeWithinRounding) {
  const std::vector<float> want = score(512, 60);
  for (const int64_t chunk : {1, 7, 58, 59, 60}) {
    const std::vector<float> got = score(chunk, 60);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 2e-5) << "chunk " << chunk;
  }
}

TEST_F(ScoreTest, OneTokenHasNothingToScore) {
  Engine engine(*model_, threads_);
  Scorer scorer(engine);
  const TokenId id = 4;
  scorer.push({&id, 1});
  scorer.finish();
  EXPECT_EQ(scorer.tokens(), 0);
  EXPECT_EQ(scorer.total(), 0);
}

TEST_F(ScoreTest, IdsOutsideTheVocabularyAreErrors) {
  Engine engine(*model_, threads_);
  Scorer scorer(engine);
  const std::vector<TokenId> bad = {1, 96};
  EXPECT_NE(error_of([&] { scorer.push(bad); }).find("must be 0 to 95, got 96"), std::string::npos);
}

}  // namespace
}  // namespace elapid::testing
