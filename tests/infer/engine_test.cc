#include "elapid/infer/engine.h"

#include "tests/infer/fixtures.h"

#include <gtest/gtest.h>

namespace elapid::testing {
namespace {

class EngineTest : public ::testing::Test {
 protected:
  EngineTest() : model_(load_model(case_folder("mamba2_default"), threads_)) {}

  // The logits after each prompt, run on engines of their own.
  std::vector<float> alone(const std::vector<TokenId>& prompt, const EngineOptions& options = {}) {
    Engine engine(*model_, threads_, options);
    const Slot slot = engine.states().acquire();
    const Input input{prompt, slot.index()};
    return values_of(engine.last_logits({&input, 1}));
  }

  std::vector<float> every_row(Engine& engine, const std::vector<TokenId>& prompt, int64_t rows) {
    const Slot slot = engine.states().acquire();
    const Input input{prompt, slot.index()};
    std::vector<float> all;
    int64_t next = 0;
    engine.all_logits({&input, 1},
                      {.rows =
                           [&](const Piece& piece, const Tensor& hidden, const Tensor& logits) {
                             EXPECT_EQ(piece.input, 0);
                             EXPECT_EQ(piece.first, next);
                             EXPECT_EQ(logits.shape, Shape(piece.count, vocab()));
                             EXPECT_EQ(hidden.shape, Shape(piece.count, model_->config().d_model));
                             EXPECT_LE(piece.count, rows);
                             next += piece.count;
                             for (int64_t i = 0; i < piece.count; ++i) {
                               all.insert(all.end(), logits.row<float>(i), logits.row<float>(i) + vocab());
                             }
                           },
                       .residual = {}},
                      rows);
    EXPECT_EQ(next, static_cast<int64_t>(prompt.size()));
    return all;
  }

  int64_t vocab() const { return model_->config().vocab; }
  std::vector<TokenId> prompt(int64_t length, uint64_t seed = 1) const { return random_ids(length, vocab(), seed); }

  std::string error(Engine& engine, const std::vector<Input>& inputs) {
    return error_of([&] { engine.last_logits(inputs); });
  }

  ThreadPool threads_{2};
  std::unique_ptr<Model> model_;
};

TEST_F(EngineTest, ABatchIsItsSequencesAloneBitForBitHoweverItIsPacked) {
  const std::vector<int64_t> lengths = {3, 40, 1, 17, 8, 25};
  for (const int64_t chunk : {1, 7, 512}) {
    std::vector<std::vector<TokenId>> prompts;
    std::vector<float> want;
    for (size_t i = 0; i < lengths.size(); ++i) {
      prompts.push_back(prompt(lengths[i], i));
      const std::vector<float> one = alone(prompts[i], {.chunk = chunk});
      want.insert(want.end(), one.begin(), one.end());
    }
    for (const int64_t batch : {0, 20, 1000}) {
      Engine engine(*model_, threads_, {.slots = 6, .chunk = chunk, .batch = batch});
      std::vector<Slot> slots;
      std::vector<Input> inputs;
      for (const auto& p : prompts) inputs.push_back({p, slots.emplace_back(engine.states().acquire()).index()});
      EXPECT_EQ(values_of(engine.last_logits(inputs)), want) << "chunk " << chunk << ", batch " << batch;
    }
  }
}

// Rounding is a function of what is rounded: neighbours and a pause in between change nothing.
TEST_F(EngineTest, WithBf16StatesABatchIsItsSequencesAloneAndASnapshotContinues) {
  EngineOptions options;
  options.state = DType::bf16;
  std::vector<std::vector<TokenId>> prompts;
  for (const int64_t length : {3, 40, 1, 17}) prompts.push_back(prompt(length, static_cast<uint64_t>(length)));
  options.slots = 4;
  Engine engine(*model_, threads_, options), other(*model_, threads_, options);
  std::vector<Slot> slots, copies;
  std::vector<Input> inputs;
  for (const auto& p : prompts) {
    slots.push_back(engine.states().acquire());
    inputs.push_back({p, slots.back().index()});
  }
  engine.last_logits(inputs);
  const std::vector<TokenId> next{1};
  std::vector<Input> in_batch, continued;
  for (const Slot& slot : slots) {
    copies.push_back(other.states().acquire());
    other.states().load(copies.back(), engine.states().save(slot, {}));
    in_batch.push_back({next, slot.index()});
    continued.push_back({next, copies.back().index()});
  }
  const std::vector<float> logits = values_of(engine.last_logits(in_batch));
  EXPECT_EQ(logits, values_of(other.last_logits(continued)));
  for (size_t i = 0; i < prompts.size(); ++i) {
    Engine single(*model_, threads_, options), exact(*model_, threads_);
    const Slot slot = single.states().acquire(), exact_slot = exact.states().acquire();
    const auto step = [&](Engine& e, const Slot& s) {
      const Input first{prompts[i], s.index()}, second{next, s.index()};
      e.last_logits({&first, 1});
      return values_of(e.last_logits({&second, 1}));
    };
    const std::vector<float> own = step(single, slot), in_float32 = step(exact, exact_slot);
    EXPECT_TRUE(std::equal(own.begin(), own.end(), logits.begin() + static_cast<int64_t>(i) * vocab()));
    EXPECT_NE(own, in_float32);
  }
}

TEST_F(EngineTest, AnyNumberOfThreadsGivesTheSameBits) {
  const std::vector<TokenId> p = prompt(100);
  const std::vector<float> want = alone(p);
  for (const int count : {1, 3, 5}) {
    ThreadPool threads(count);
    Engine engine(*model_, threads);
    const Slot slot = engine.states().acquire();
    const Input input{p, slot.index()};
    EXPECT_EQ(values_of(engine.last_logits({&input, 1})), want) << count << " threads";
  }
}

TEST_F(EngineTest, AnySplitGivesTheSameLogitsWithinRounding) {
  const std::vector<TokenId> p = prompt(60);
  const std::vector<float> whole = alone(p);
  for (const int64_t chunk : {1, 2, 3, 7, 59}) {
    const std::vector<float> cut = alone(p, {.chunk = chunk});
    for (size_t i = 0; i < whole.size(); ++i) ASSERT_NEAR(cut[i], whole[i], 2e-5) << "chunk " << chunk;
  }
}

TEST_F(EngineTest, EveryRowComesOnceInOrderAndEndsWithTheLastOne) {
  const std::vector<TokenId> p = prompt(50);
  const std::vector<float> last = alone(p, {.chunk = 20});
  Engine engine(*model_, threads_, {.chunk = 20});
  const std::vector<float> whole = every_row(engine, p, 64);
  ASSERT_EQ(whole.size(), last.size() * 50);
  EXPECT_EQ(std::vector<float>(whole.end() - vocab(), whole.end()), last);
  for (const int64_t rows : {1, 3, 20}) EXPECT_EQ(every_row(engine, p, rows), whole) << rows << " rows at a time";
}

TEST_F(EngineTest, PiecesOfSeveralInputsSayWhoseTheyAre) {
  const std::vector<TokenId> a = prompt(9, 1), b = prompt(4, 2);
  Engine engine(*model_, threads_, {.slots = 2, .chunk = 5, .batch = 10});
  const std::vector<float> rows_a = every_row(engine, a, 64), rows_b = every_row(engine, b, 64);
  const Slot slot_a = engine.states().acquire(), slot_b = engine.states().acquire();
  const std::vector<Input> inputs = {{a, slot_a.index()}, {b, slot_b.index()}};
  std::vector<std::vector<float>> got(2);
  std::vector<std::vector<int64_t>> residual_rows(2, std::vector<int64_t>(model_->config().blocks.size() + 1));
  const Engine::Visitor visitor{.rows =
                                    [&](const Piece& piece, const Tensor&, const Tensor& logits) {
                                      auto& rows = got[static_cast<size_t>(piece.input)];
                                      EXPECT_EQ(static_cast<int64_t>(rows.size()), piece.first * vocab());
                                      const std::vector<float> values = values_of(logits);
                                      rows.insert(rows.end(), values.begin(), values.end());
                                    },
                                .residual =
                                    [&](const Piece& piece, int64_t layer, const Tensor& residual) {
                                      EXPECT_EQ(residual.shape, Shape(piece.count, model_->config().d_model));
                                      residual_rows[static_cast<size_t>(piece.input)].at(static_cast<size_t>(layer)) +=
                                          piece.count;
                                    }};
  engine.all_logits(inputs, visitor, 3);
  EXPECT_EQ(got[0], rows_a);
  EXPECT_EQ(got[1], rows_b);
  EXPECT_EQ(residual_rows[0], std::vector<int64_t>(residual_rows[0].size(), 9));
  EXPECT_EQ(residual_rows[1], std::vector<int64_t>(residual_rows[1].size(), 4));
}

TEST_F(EngineTest, WithoutASlotTheStateIsZeroAndNotKept) {
  const std::vector<TokenId> p = prompt(12);
  Engine engine(*model_, threads_, {.slots = 0, .chunk = 12});
  const Input input{p, kNoSlot};
  const std::vector<float> first = values_of(engine.last_logits({&input, 1}));
  EXPECT_EQ(first, alone(p));
  EXPECT_EQ(values_of(engine.last_logits({&input, 1})), first);
}

TEST_F(EngineTest, CallsContinueTheSlot) {
  const std::vector<TokenId> p = prompt(30);
  Engine engine(*model_, threads_, {.chunk = 10});
  const Slot slot = engine.states().acquire();
  const std::span<const TokenId> ids(p);
  Input input{ids.first(20), slot.index()};
  engine.last_logits({&input, 1});
  input.tokens = ids.subspan(20);
  EXPECT_EQ(values_of(engine.last_logits({&input, 1})), alone(p, {.chunk = 10}));
}

TEST_F(EngineTest, ACallerCanEndACallBetweenItsPieces) {
  struct Enough {};
  int calls = 0;
  const auto between = [&] {
    if (++calls == 3) throw Enough();
  };
  Engine engine(*model_, threads_, {.chunk = 8, .between = between});
  const Slot slot = engine.states().acquire();
  const std::vector<TokenId> p = prompt(40);
  const Input whole{p, slot.index()};
  EXPECT_THROW(engine.last_logits({&whole, 1}), Enough);
  EXPECT_EQ(engine.states().length(slot.index()), 24);
  const Input rest{std::span(p).subspan(24), slot.index()};
  EXPECT_EQ(values_of(engine.last_logits({&rest, 1})), alone(p, {.chunk = 8}));
  EXPECT_EQ(calls, 4) << "not before the first piece of a call";
}

TEST_F(EngineTest, WrongInputsAreErrorsThatSayWhatIsWrong) {
  Engine engine(*model_, threads_, {.slots = 2, .chunk = 4});
  const std::vector<TokenId> p = {5, 6, 7}, negative = {5, -1}, large = {static_cast<TokenId>(vocab())};
  EXPECT_NE(error(engine, {{{}, 0}}).find("must have tokens, got none"), std::string::npos);
  EXPECT_NE(error(engine, {{negative, 0}}).find("got -1 at position 1"), std::string::npos);
  EXPECT_NE(error(engine, {{large, 0}}).find("must be 0 to 95, got 96"), std::string::npos);
  EXPECT_NE(error(engine, {{p, 2}}).find("slots must be 0 to 1, got 2"), std::string::npos);
  EXPECT_NE(error(engine, {{p, 1}, {p, 1}}).find("got slot 1 twice"), std::string::npos);
  EXPECT_NE(error(engine, {{prompt(5), kNoSlot}}).find("one chunk of 4 tokens, got 5"), std::string::npos);
  EXPECT_NE(error_of([&] { Engine(*model_, threads_, {.chunk = 0}); }).find("chunk must be at least 1, got 0"),
            std::string::npos);
}

}  // namespace
}  // namespace elapid::testing
