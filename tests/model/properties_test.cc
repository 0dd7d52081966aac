// What must hold of any model, whatever its weights: on the trained one, and on a small one of every family.

#include "elapid/core/isa.h"
#include "tests/model/fixtures.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <random>

namespace elapid::testing {
namespace {

std::vector<TokenId> random_tokens(size_t count, int64_t vocab, uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<TokenId> tokens(count);
  for (TokenId& t : tokens) t = static_cast<TokenId>(rng() % static_cast<uint32_t>(vocab));
  return tokens;
}

// All logits of a prompt that is fed to one slot, `piece` tokens at a time.
std::vector<float> run_in_pieces(const Model& model, Context& ctx, const std::vector<TokenId>& prompt, size_t piece) {
  StatePool states(model.state_spec(), 1);
  const Slot slot = states.acquire();
  std::vector<float> logits;
  for (size_t at = 0; at < prompt.size(); at += piece) {
    const auto begin = prompt.begin() + static_cast<std::ptrdiff_t>(at);
    const auto end = prompt.begin() + static_cast<std::ptrdiff_t>(std::min(prompt.size(), at + piece));
    const std::vector<float> part = run(model, ctx, {{{begin, end}, slot.index()}}, &states);
    logits.insert(logits.end(), part.begin(), part.end());
  }
  return logits;
}

class Properties : public ::testing::Test {
 protected:
  Properties() : model_(load_model(storyteller_folder(), threads_)), vocab_(model_->config().vocab) {}

  ThreadPool threads_{2};
  Arena arena_;
  Context ctx_{{}, threads_, arena_};
  std::unique_ptr<Model> model_;
  int64_t vocab_;
};

// Float32 rounding, carried through twelve layers of this model: what a float64 run differs by is 1.5e-5 in the
// negative log-likelihood; two float32 runs with other chunk borders may differ by twice the logits' share of that.
constexpr double kSplitTolerance = 1e-4;

TEST_F(Properties, AnySplitOfAPromptGivesTheSameLogits) {
  const std::vector<TokenId> prompt = random_tokens(150, vocab_, 1);
  const std::vector<float> whole = run(*model_, ctx_, {{prompt}});
  for (const size_t piece : {size_t{1}, size_t{2}, size_t{3}, size_t{7}, size_t{64}, size_t{149}, size_t{150}}) {
    const std::vector<float> pieces = run_in_pieces(*model_, ctx_, prompt, piece);
    ASSERT_EQ(pieces.size(), whole.size());
    double worst = 0;
    for (size_t i = 0; i < whole.size(); ++i) worst = std::max(worst, std::abs(double{pieces[i]} - whole[i]));
    EXPECT_LE(worst, kSplitTolerance) << "pieces of " << piece;
    // One piece, with a slot or without, is the same computation.
    if (piece == prompt.size()) {
      EXPECT_EQ(worst, 0);
    }
  }
}

TEST_F(Properties, NeighboursAndThreadsDoNotMatter) {
  std::vector<Sequence> batch;
  uint32_t seed = 10;
  for (const size_t length : {1u, 2u, 37u, 64u, 65u, 3u, 130u, 1u}) {
    batch.push_back({random_tokens(length, vocab_, seed++)});
  }
  std::vector<float> alone;
  for (const Sequence& s : batch) {
    const std::vector<float> logits = run(*model_, ctx_, {s});
    alone.insert(alone.end(), logits.begin(), logits.end());
  }
  for (const int count : {1, 2, 3, 7}) {
    ThreadPool threads(count);
    Arena arena;
    arena.set_poison(true);
    Context ctx{{}, threads, arena};
    EXPECT_EQ(run(*model_, ctx, batch), alone) << count << " threads";
  }
}

TEST_F(Properties, LevelsWithFusedMultiplyAddAgreeBitForBit) {
  const Sequence prompt{random_tokens(100, vocab_, 3)};
  const Isa before = active_isa();
  std::vector<float> first;
  for (const Isa isa : available_isas()) {
    if (isa == Isa::baseline) continue;
    set_active_isa(isa);
    const std::vector<float> logits = run(*model_, ctx_, {prompt});
    if (first.empty()) first = logits;
    EXPECT_EQ(std::memcmp(first.data(), logits.data(), first.size() * sizeof(float)), 0) << name_of(isa);
  }
  set_active_isa(before);
}

TEST_F(Properties, ForksContinueIndependently) {
  StatePool states(model_->state_spec(), 3);
  const Slot a = states.acquire();
  const std::vector<TokenId> prompt = random_tokens(20, vocab_, 4);
  run(*model_, ctx_, {{prompt, a.index()}}, &states);
  const Slot b = states.fork(a), c = states.fork(a);
  const std::vector<float> of_b = run(*model_, ctx_, {{{11}, b.index()}}, &states);
  const std::vector<float> of_c = run(*model_, ctx_, {{{12}, c.index()}}, &states);
  EXPECT_EQ(run(*model_, ctx_, {{{11}, a.index()}}, &states), of_b);
  EXPECT_NE(of_b, of_c);
}

TEST_F(Properties, TokensOutsideTheVocabularyAreErrors) {
  for (const TokenId id : {-1, 4096, 2147483647}) {
    EXPECT_EQ(error_of([&] {
                run(*model_, ctx_, {{{1, id}}});
              }),
              concat("embedding: token ids must be 0 to 4095, got ", id, " at position 1"));
  }
}

// ---- Every family.

class EveryFamily : public ::testing::TestWithParam<std::string> {
 protected:
  EveryFamily() : model_(load_model(case_folder(GetParam()), threads_)), vocab_(model_->config().vocab) {}

  ThreadPool threads_{1};
  Arena arena_;
  Context ctx_{{}, threads_, arena_};
  std::unique_ptr<Model> model_;
  int64_t vocab_;
};

TEST_P(EveryFamily, ThirtyTwoRaggedRowsAreThirtyTwoRuns) {
  std::vector<Sequence> batch;
  std::vector<float> alone;
  for (uint32_t row = 0; row < 32; ++row) {
    // 1 to 30 tokens in no order, and two rows that are longer than a chunk of a scan.
    const size_t length = row == 7 ? 65 : row == 20 ? 130 : 1 + row * 11 % 30;
    batch.push_back({random_tokens(length, vocab_, 100 + row)});
    const std::vector<float> logits = run(*model_, ctx_, {batch.back()});
    alone.insert(alone.end(), logits.begin(), logits.end());
  }
  for (const int count : {1, 3}) {
    ThreadPool threads(count);
    Arena arena;
    arena.set_poison(true);
    Context ctx{{}, threads, arena};
    const std::vector<float> together = run(*model_, ctx, batch);
    ASSERT_EQ(together.size(), alone.size());
    EXPECT_EQ(std::memcmp(together.data(), alone.data(), alone.size() * sizeof(float)), 0) << count << " threads";
  }
}

TEST_P(EveryFamily, PiecesOfALongPromptGiveTheSameLogits) {
  const std::vector<TokenId> prompt = random_tokens(260, vocab_, 1);
  const std::vector<float> whole = run(*model_, ctx_, {{prompt}});
  // The tolerance of the case (see conformance_test.cc), of the largest logit.
  const Json meta = read_json(case_folder(GetParam()) / "meta.json");
  const double tolerance = std::max(1e-5, 20 * meta["fp32_vs_fp64"]["logits"].get<double>());
  double scale = 1;
  for (const float v : whole) scale = std::max(scale, std::abs(double{v}));
  for (const size_t piece : {size_t{65}, size_t{3}}) {
    const std::vector<float> pieces = run_in_pieces(*model_, ctx_, prompt, piece);
    ASSERT_EQ(pieces.size(), whole.size());
    double worst = 0;
    for (size_t i = 0; i < whole.size(); ++i) {
      ASSERT_TRUE(std::isfinite(pieces[i])) << "pieces of " << piece << " at " << i;
      worst = std::max(worst, std::abs(double{pieces[i]} - whole[i]));
    }
    EXPECT_LE(worst, tolerance * scale) << "pieces of " << piece;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, EveryFamily, ::testing::ValuesIn(conformance_cases()),
                         [](const auto& one) { return test_name(one.param); });

}  // namespace
}  // namespace elapid::testing
