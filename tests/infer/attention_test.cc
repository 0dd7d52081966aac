// What must hold of any model that attends, beside what it keeps of fixed size: here on random weights.

#include "tests/infer/allocations.h"
#include "tests/infer/fixtures.h"

#include <algorithm>
#include <gtest/gtest.h>

namespace elapid::testing {
namespace {

std::vector<float> frequencies(int64_t pairs) {
  std::vector<float> f;
  for (int64_t i = 0; i < pairs; ++i) f.push_back(static_cast<float>(std::pow(1000.0, -double(i) / double(pairs))));
  return f;
}

// Two kinds of attention, a recurrence in the layer of one of them, an MLP.
ModelConfig config() {
  ModelConfig c;
  c.family = "mamba2";
  c.vocab = 90;
  c.d_model = 48;
  const AttentionConfig grouped{.d_in = 48,
                                .d_model = 48,
                                .heads = 6,
                                .kv_heads = 2,
                                .head_dim = 8,
                                .scale = 0.35f,
                                .inverse_frequencies = frequencies(4)};
  const AttentionConfig convolved{.d_in = 48,
                                  .d_model = 48,
                                  .heads = 3,
                                  .kv_heads = 3,
                                  .head_dim = 20,
                                  .scale = 0.2f,
                                  .qkv_bias = true,
                                  .inverse_frequencies = frequencies(7),
                                  .rotary_interleaved = true,
                                  .d_conv = 4,
                                  .key_multiplier = 0.7f};
  const Mamba2Config recurrent{.d_model = 48, .d_state = 16, .heads = 6, .head_dim = 16};
  const MlpConfig mlp{.d_model = 48, .d_ff = 64, .d_out = 48};
  c.blocks = {{.bodies = {recurrent, grouped}, .layer = 0},
              {.bodies = {mlp}, .layer = 0},
              {.bodies = {convolved}, .layer = 1},
              {.bodies = {recurrent}, .layer = 2}};
  return c;
}

class AttendingModel : public ::testing::Test {
 protected:
  AttendingModel() : model_(random_model(config(), threads_, 3)) {}

  std::vector<float> feed(Engine& engine, const Slot& slot, std::span<const TokenId> tokens) {
    const Input input{tokens, slot.index()};
    return values_of(engine.last_logits({&input, 1}));
  }
  std::vector<TokenId> prompt(int64_t length, uint64_t seed = 1) const { return random_ids(length, 90, seed); }

  ThreadPool threads_{2};
  std::unique_ptr<Model> model_;
};

// Random weights keep logits near 1: float32 rounding through three layers and sums of hundreds of terms.
constexpr float kSplitTolerance = 5e-5f;

TEST_F(AttendingModel, AnySplitGivesTheSameLogitsWithinRounding) {
  const std::vector<TokenId> p = prompt(200);
  Engine whole_engine(*model_, threads_);
  const Slot whole_slot = whole_engine.states().acquire();
  const std::vector<float> whole = feed(whole_engine, whole_slot, p);
  for (const int64_t chunk : {1, 2, 3, 7, 64, 65, 199}) {
    Engine engine(*model_, threads_, {.chunk = chunk});
    const Slot slot = engine.states().acquire();
    const std::vector<float> cut = feed(engine, slot, p);
    EXPECT_EQ(engine.states().length(slot.index()), 200);
    for (size_t i = 0; i < whole.size(); ++i) ASSERT_NEAR(cut[i], whole[i], kSplitTolerance) << "chunk " << chunk;
  }
}

TEST_F(AttendingModel, ABatchIsItsSequencesAloneBitForBit) {
  // Prompts, then continuations of mixed lengths, so that decoding and prefill share calls at different depths.
  const std::vector<int64_t> prompts = {3, 140, 1, 64, 17, 63, 200, 65}, more = {1, 1, 30, 1, 2, 1, 1, 100};
  std::vector<std::vector<TokenId>> first, second;
  std::vector<float> want;
  for (size_t i = 0; i < prompts.size(); ++i) {
    first.push_back(prompt(prompts[i], 10 + i));
    second.push_back(prompt(more[i], 30 + i));
    Engine engine(*model_, threads_, {.chunk = 50});
    const Slot slot = engine.states().acquire();
    feed(engine, slot, first[i]);
    const std::vector<float> one = feed(engine, slot, second[i]);
    want.insert(want.end(), one.begin(), one.end());
  }
  for (const int count : {1, 3}) {
    ThreadPool threads(count);
    Engine engine(*model_, threads, {.slots = 8, .chunk = 50, .batch = 1000});
    std::vector<Slot> slots;
    std::vector<Input> inputs, continuations;
    for (size_t i = 0; i < prompts.size(); ++i) {
      slots.push_back(engine.states().acquire());
      inputs.push_back({first[i], slots[i].index()});
      continuations.push_back({second[i], slots[i].index()});
    }
    engine.last_logits(inputs);
    EXPECT_EQ(values_of(engine.last_logits(continuations)), want) << count << " threads";
  }
}

TEST_F(AttendingModel, ForksShareThenDiverge) {
  for (const int64_t length : {40, 64, 100}) {
    Engine engine(*model_, threads_, {.slots = 3});
    const Slot a = engine.states().acquire();
    feed(engine, a, prompt(length));
    const int64_t pages = engine.states().pages_in_use();
    const Slot b = engine.states().fork(a), c = engine.states().fork(a);
    EXPECT_EQ(engine.states().pages_in_use(), pages);
    const std::vector<TokenId> left = prompt(9, 2), right = prompt(9, 3);
    const std::vector<float> of_b = feed(engine, b, left), of_c = feed(engine, c, right);
    EXPECT_EQ(feed(engine, a, left), of_b);
    EXPECT_NE(of_b, of_c);
    // As if each had been alone all the time.
    Engine alone(*model_, threads_);
    const Slot slot = alone.states().acquire();
    feed(alone, slot, prompt(length));
    EXPECT_EQ(feed(alone, slot, right), of_c);
  }
}

TEST_F(AttendingModel, SavedStatesContinueBitForBit) {
  const TemporaryFolder folder;
  const fs::path file = folder.path() / "a.state";
  Engine engine(*model_, threads_);
  const Slot slot = engine.states().acquire();
  const std::vector<TokenId> p = prompt(150), more = prompt(20, 2);
  feed(engine, slot, p);
  const State saved = engine.states().save(slot, p);
  EXPECT_EQ(saved.length(), 150);
  saved.write(file);
  const std::vector<float> want = feed(engine, slot, more);
  const auto again = random_model(config(), threads_, 3);  // as in another process
  Engine other(*again, threads_, {.slots = 2});
  const Slot unused = other.states().acquire(), target = other.states().acquire();
  feed(other, target, prompt(70, 5));
  const State read = State::read(file);
  EXPECT_TRUE(read == saved);
  other.states().load(target, read);
  EXPECT_EQ(feed(other, target, more), want);
  const auto stranger = random_model(config(), threads_, 4);
  Engine wrong(*stranger, threads_);
  const Slot refused = wrong.states().acquire();
  EXPECT_NE(error_of([&] { wrong.states().load(refused, read); }).find("must belong to this model"), std::string::npos);
}

TEST_F(AttendingModel, WeightsAreObservedOverPastAndPresent) {
  Engine engine(*model_, threads_, {.chunk = 30});
  const Slot slot = engine.states().acquire();
  feed(engine, slot, prompt(70));
  const std::vector<TokenId> more = prompt(5, 2);
  const Input input{more, slot.index()};
  std::vector<int64_t> layers;
  engine.all_logits({&input, 1}, {.rows = [](const Piece&, const Tensor&, const Tensor&) {},
                                  .residual = {},
                                  .router_logits = {},
                                  .attentions =
                                      [&](const Piece&, int64_t layer, const Tensor& weights) {
                                        layers.push_back(layer);
                                        ASSERT_EQ(weights.shape, Shape(layer == 0 ? 6 : 3, 5, 75));
                                        for (int64_t i = 0; i < weights.rows(); ++i) {
                                          double sum = 0;
                                          for (int64_t j = 0; j < 75; ++j) {
                                            const float w = weights.ptr<float>()[i * 75 + j];
                                            EXPECT_EQ(w > 0, j <= 70 + i % 5);
                                            sum += static_cast<double>(w);
                                          }
                                          EXPECT_NEAR(sum, 1, 1e-5);
                                        }
                                      }});
  EXPECT_EQ(layers, (std::vector<int64_t>{0, 1}));
}

TEST_F(AttendingModel, TwoHundredStepsAllocateNothing) {
  Engine engine(*model_, threads_);
  const Slot slot = engine.states().acquire();
  feed(engine, slot, prompt(30));
  int64_t before = 0;
  TokenId next = 1;
  for (int step = 0; step < 220; ++step) {
    if (step == 20) before = allocation_count();
    const Input input{{&next, 1}, slot.index()};
    const Tensor logits = engine.last_logits({&input, 1});
    next = argmax(logits.ptr<float>(), 90);
  }
  EXPECT_EQ(allocation_count() - before, 0);
  EXPECT_EQ(engine.states().length(slot.index()), 250);
}

}  // namespace
}  // namespace elapid::testing
