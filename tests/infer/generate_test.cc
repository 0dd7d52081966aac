#include "elapid/infer/generate.h"

#include "tests/infer/allocations.h"
#include "tests/infer/fixtures.h"

#include <gtest/gtest.h>

namespace elapid::testing {
namespace {

class GenerateTest : public ::testing::Test {
 protected:
  GenerateTest() : model_(load_model(case_folder("mamba2_default"), threads_)) {}

  Generation run(const std::vector<TokenId>& prompt, const GenerateOptions& options, const OnToken& on_token = {}) {
    Engine engine(*model_, threads_, {.slots = std::max<int64_t>(options.sequences, 1)});
    return generate(engine, prompt, options, on_token);
  }
  std::vector<TokenId> ids(const std::vector<TokenId>& prompt, const GenerateOptions& options) {
    return run(prompt, options).sequences.at(0).ids;
  }
  static GenerateOptions sampled(int64_t tokens) {
    GenerateOptions options;
    options.sampling = {.temperature = 1.2, .top_p = 0.98, .repetition_penalty = 1.1, .seed = 42};
    options.max_new_tokens = tokens;
    return options;
  }
  static GenerateOptions greedy(int64_t tokens) {
    GenerateOptions options;
    options.sampling.temperature = 0;
    options.max_new_tokens = tokens;
    return options;
  }

  const std::vector<TokenId> prompt_ = {11, 25, 60, 31, 47, 5, 90};
  ThreadPool threads_{2};
  std::unique_ptr<Model> model_;
};

TEST_F(GenerateTest, GreedyTakesTheArgmaxOfTheWholeSequence) {
  const Generation result = run(prompt_, greedy(20));
  const std::vector<TokenId>& got = result.sequences[0].ids;
  ASSERT_EQ(got.size(), 20u);
  EXPECT_EQ(result.sequences[0].reason, FinishReason::length);
  EXPECT_EQ(result.prompt_tokens, 7);
  EXPECT_EQ(result.decode_steps, 19);
  EXPECT_EQ(result.decoded_tokens, 19);

  std::vector<TokenId> all = prompt_;
  all.insert(all.end(), got.begin(), got.end());
  Engine engine(*model_, threads_);
  const Slot slot = engine.states().acquire();
  const Input input{all, slot.index()};
  engine.all_logits(
      {&input, 1},
      {.rows =
           [&](const Piece& piece, const Tensor&, const Tensor& logits) {
             for (int64_t i = 0; i < piece.count; ++i) {
               const int64_t next = piece.first + i + 1 - std::ssize(prompt_);
               if (next < 0 || next >= 20) continue;
               EXPECT_EQ(got[static_cast<size_t>(next)], argmax(logits.row<float>(i), model_->config().vocab))
                   << "token " << next;
             }
           },
       .residual = {}});
}

TEST_F(GenerateTest, ForkedSequencesAreTheOnesDrawnAloneWithTheirStream) {
  GenerateOptions options = sampled(25);
  options.sequences = 4;
  const Generation together = run(prompt_, options);
  ASSERT_EQ(together.sequences.size(), 4u);
  EXPECT_NE(together.sequences[0].ids, together.sequences[1].ids);

  const int64_t vocab = model_->config().vocab;
  for (int64_t s = 0; s < 4; ++s) {
    Engine engine(*model_, threads_);
    const Slot slot = engine.states().acquire();
    Sampler sampler(vocab);
    std::vector<uint8_t> seen(static_cast<size_t>(vocab));
    for (const TokenId id : prompt_) seen[static_cast<size_t>(id)] = 1;
    std::vector<TokenId> alone, feed = prompt_;
    while (alone.size() < 25) {
      const Input input{feed, slot.index()};
      const std::vector<float> logits = values_of(engine.last_logits({&input, 1}));
      const auto position = static_cast<int64_t>(prompt_.size() + alone.size());
      alone.push_back(sampler.sample(logits, options.sampling, seen, vocab, {s, position}));
      seen[static_cast<size_t>(alone.back())] = 1;
      feed = {alone.back()};
    }
    EXPECT_EQ(together.sequences[static_cast<size_t>(s)].ids, alone) << "sequence " << s;
  }
}

TEST_F(GenerateTest, SavedAndContinuedIsTheUninterruptedRunBitForBit) {
  const std::vector<TokenId> whole = ids(prompt_, sampled(40));
  const TemporaryFolder folder;
  for (const int64_t first : {1, 13, 39}) {
    GenerateOptions options = sampled(first);
    options.keep_state = true;
    const Generation begun = run(prompt_, options);
    const State& state = *begun.sequences[0].state;
    EXPECT_EQ(std::ssize(state.tokens()), std::ssize(prompt_) + first - 1);
    EXPECT_EQ(std::ssize(state.pending()), 1);
    state.write(folder.path() / "state");

    options = sampled(40 - first);
    options.initial = State::read(folder.path() / "state");
    EXPECT_EQ(*options.initial, state);
    options.keep_state = true;
    const Generation continued = run({}, options);
    EXPECT_EQ(continued.prompt_tokens, 1) << "the pending id";
    std::vector<TokenId> both = begun.sequences[0].ids;
    both.insert(both.end(), continued.sequences[0].ids.begin(), continued.sequences[0].ids.end());
    EXPECT_EQ(both, whole) << "interrupted after " << first;

    options = sampled(40);
    options.keep_state = true;
    EXPECT_EQ(*run(prompt_, options).sequences[0].state, *continued.sequences[0].state);
  }
}

TEST_F(GenerateTest, APromptAfterAStateContinuesIt) {
  GenerateOptions feed = greedy(0);
  feed.keep_state = true;
  const Generation fed = run(prompt_, feed);
  EXPECT_TRUE(fed.sequences[0].ids.empty());
  EXPECT_TRUE(fed.sequences[0].state->pending().empty());
  const std::vector<TokenId> more = {3, 4, 5};
  GenerateOptions options = greedy(10);
  options.initial = fed.sequences[0].state;
  std::vector<TokenId> joined = prompt_;
  joined.insert(joined.end(), more.begin(), more.end());
  EXPECT_EQ(ids(more, options), ids(joined, greedy(10)));
}

TEST_F(GenerateTest, StopIdsEndASequenceAndBelongToIt) {
  const std::vector<TokenId> whole = ids(prompt_, sampled(30));
  GenerateOptions options = sampled(30);
  options.stop_ids = {whole[12]};
  const auto first = static_cast<size_t>(std::find(whole.begin(), whole.end(), whole[12]) - whole.begin());
  const Generation::Sequence sequence = run(prompt_, options).sequences[0];
  EXPECT_EQ(sequence.reason, FinishReason::stop);
  EXPECT_EQ(sequence.ids, std::vector<TokenId>(whole.begin(), whole.begin() + static_cast<int64_t>(first) + 1));
}

TEST_F(GenerateTest, TheCallbackSeesEveryTokenAndEndsItsSequenceOnly) {
  GenerateOptions options = sampled(10);
  options.sequences = 3;
  const Generation whole = run(prompt_, options);
  std::vector<std::vector<TokenId>> seen(3);
  const Generation result = run(prompt_, options, [&](int64_t s, TokenId id) {
    seen[static_cast<size_t>(s)].push_back(id);
    return s != 1 || seen[1].size() < 4;
  });
  for (size_t s = 0; s < 3; ++s) EXPECT_EQ(seen[s], result.sequences[s].ids);
  EXPECT_EQ(result.sequences[0].ids, whole.sequences[0].ids);
  EXPECT_EQ(result.sequences[2].ids, whole.sequences[2].ids) << "a neighbour's end changes nothing";
  EXPECT_EQ(result.sequences[1].ids.size(), 4u);
  EXPECT_EQ(result.sequences[1].reason, FinishReason::stop);
  EXPECT_EQ(result.sequences[2].reason, FinishReason::length);
}

TEST_F(GenerateTest, IdsFromTheLimitOnAreNeverDrawn) {
  GenerateOptions options = sampled(200);
  options.sampling.temperature = 3;
  options.vocab_limit = 10;
  for (const TokenId id : ids(prompt_, options)) EXPECT_LT(id, 10);
}

TEST_F(GenerateTest, AnyNumberOfThreadsGivesTheSameIds) {
  const std::vector<TokenId> want = ids(prompt_, sampled(60));
  for (const int count : {1, 4}) {
    ThreadPool threads(count);
    Engine engine(*model_, threads);
    EXPECT_EQ(generate(engine, prompt_, sampled(60)).sequences[0].ids, want) << count << " threads";
  }
}

TEST_F(GenerateTest, TwoHundredStepsAllocateNothing) {
  GenerateOptions options = sampled(230);
  options.sequences = 3;
  Engine engine(*model_, threads_, {.slots = 3});
  int64_t tokens = 0, before = -1, after = -1;
  generate(engine, prompt_, options, [&](int64_t sequence, TokenId) {
    if (sequence == 0) {
      ++tokens;
      if (tokens == 20) before = allocation_count();
      if (tokens == 221) after = allocation_count();
    }
    return true;
  });
  ASSERT_EQ(tokens, 230);
  EXPECT_EQ(after - before, 0);
}

TEST_F(GenerateTest, WhatCannotBeRunIsAnError) {
  const auto error = [&](const std::vector<TokenId>& prompt, const GenerateOptions& options) {
    return error_of([&] {
      Engine engine(*model_, threads_);
      generate(engine, prompt, options);
    });
  };
  GenerateOptions options;
  EXPECT_NE(error({}, options).find("must be a token to continue"), std::string::npos);
  EXPECT_NE(error({1, 96}, options).find("must be 0 to 95, got 96"), std::string::npos);
  EXPECT_NE(error({1, -4}, options).find("got -4"), std::string::npos);
  options.sequences = 2;
  EXPECT_NE(error({1}, options).find("a free slot for each sequence (2), got 1"), std::string::npos);
  options.sequences = 1;
  options.sampling.temperature = -1;
  EXPECT_NE(error({1}, options).find("temperature"), std::string::npos);
  options = {};
  options.max_new_tokens = -1;
  EXPECT_NE(error({1}, options).find("at least 0, got -1"), std::string::npos);
  options = {};
  options.vocab_limit = 97;
  EXPECT_NE(error({1}, options).find("got 97"), std::string::npos);
}

TEST_F(GenerateTest, AStateOfAnotherModelIsRefused) {
  GenerateOptions options = greedy(2);
  options.keep_state = true;
  const TemporaryFolder folder;
  run(prompt_, options).sequences[0].state->write(folder.path() / "state");
  const auto other = load_model(case_folder("mamba2_chunk_a"), threads_);
  Engine engine(*other, threads_);
  options.initial = State::read(folder.path() / "state");
  EXPECT_NE(error_of([&] { generate(engine, {}, options); }).find("must belong to this model"), std::string::npos);
}

// The conformance suite's greedy continuations, where the choice is wider than rounding.
class GreedyConformance : public ::testing::TestWithParam<std::string> {};

TEST_P(GreedyConformance, IdsAreThoseOfTransformers) {
  const fs::path folder = case_folder(GetParam());
  const Safetensors want = Safetensors::open(folder / "expected.safetensors");
  const Json meta = read_json(folder / "meta.json");
  if (!want.contains("greedy.output_ids")) {
    EXPECT_TRUE(meta["failed_stages"].dump().find("greedy") != std::string::npos) << "the reference has no reason";
    return;
  }
  const std::vector<TokenId> prompt = ids_of(want.at("greedy.input_ids")),
                             output = ids_of(want.at("greedy.output_ids"));
  const double tolerance = std::max(1e-5, 20 * meta["fp32_vs_fp64"]["logits"].get<double>());
  ThreadPool threads(2);
  const auto model = load_model(folder, threads);
  Engine engine(*model, threads);
  GenerateOptions options;
  options.sampling.temperature = 0;
  options.max_new_tokens = std::ssize(output) - std::ssize(prompt);
  options.vocab_limit = model->config().tokens;
  const std::vector<TokenId> got = generate(engine, prompt, options).sequences[0].ids;
  ASSERT_EQ(std::ssize(got), options.max_new_tokens);
  if (meta.contains("greedy") && meta["greedy"].value("equals_full_forward_argmax", true) == false) {
    return;  // the reference's own steps are wrong there
  }
  for (size_t i = 0; i < got.size(); ++i) {
    float margin = std::numeric_limits<float>::infinity();
    if (want.contains("greedy.margins"))
      std::memcpy(&margin, static_cast<const char*>(want.at("greedy.margins").data) + i * sizeof margin, sizeof margin);
    if (margin <= 2 * tolerance) return;
    ASSERT_EQ(got[i], output[prompt.size() + i]) << "token " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, GreedyConformance, ::testing::ValuesIn(conformance_cases()),
                         [](const auto& one) { return test_name(one.param); });

}  // namespace
}  // namespace elapid::testing
