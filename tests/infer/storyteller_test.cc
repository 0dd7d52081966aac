// The bundled model against what transformers computed with it (tests/data/storyteller).

#include "elapid/infer/generate.h"
#include "elapid/infer/score.h"
#include "tests/infer/allocations.h"
#include "tests/infer/fixtures.h"

#include <cmath>
#include <gtest/gtest.h>

namespace elapid::testing {
namespace {

constexpr double kTolerance = 1e-3;  // nats; logits for the greedy margins

class Storyteller : public ::testing::Test {
 protected:
  Storyteller() : model_(load_model(storyteller_folder(), threads_)) {}

  const fs::path references_ = data_folder() / "storyteller";
  ThreadPool threads_;
  std::unique_ptr<Model> model_;
};

TEST_F(Storyteller, EveryTokenOfTheBooksScoresAsInTheReference) {
  const Safetensors reference = Safetensors::open(references_ / "reference.safetensors");
  int books = 0;
  for (const auto& [name, entry] : reference.entries()) {
    if (!name.starts_with("ids.")) continue;
    ++books;
    const std::string book = name.substr(4);
    std::vector<TokenId> ids = ids_of(entry.tensor);
    if (kSanitized) ids.resize(400);
    Engine engine(*model_, threads_);
    std::vector<float> nll;
    Scorer scorer(engine, [&](float value) { nll.push_back(value); });
    scorer.push(ids);
    scorer.finish();
    ASSERT_EQ(nll.size(), ids.size() - 1) << book;
    std::vector<float> want(nll.size());
    std::memcpy(want.data(), reference.at("nll." + book).data, want.size() * sizeof(float));
    double worst = 0;
    for (size_t i = 0; i < want.size(); ++i) worst = std::max(worst, std::abs(double{nll[i]} - want[i]));
    EXPECT_LE(worst, kTolerance) << book;
  }
  EXPECT_EQ(books, 4);
}

TEST_F(Storyteller, GreedyContinuationsAreThoseOfTheReference) {
  const Json reference = read_json(references_ / "reference.json");
  int compared = 0;
  for (const Json& story : reference.at("greedy")) {
    const auto prompt = story.at("prompt_ids").get<std::vector<TokenId>>();
    const auto output = story.at("output_ids").get<std::vector<TokenId>>();
    const auto margins = story.at("margins").get<std::vector<double>>();
    GenerateOptions options;
    options.sampling.temperature = 0;
    options.max_new_tokens = kSanitized ? 20 : std::ssize(margins);
    Engine engine(*model_, threads_);
    const std::vector<TokenId> got = generate(engine, prompt, options).sequences[0].ids;
    for (size_t i = 0; i < got.size() && margins[i] > kTolerance; ++i, ++compared) {
      ASSERT_EQ(got[i], output.at(prompt.size() + i)) << story.at("prompt") << ", token " << i;
    }
  }
  EXPECT_GE(compared, kSanitized ? 60 : 300);
}

TEST_F(Storyteller, TwoHundredStepsAllocateNothing) {
  GenerateOptions options;
  options.max_new_tokens = 222;
  Engine engine(*model_, threads_);
  int64_t tokens = 0, before = -1, after = -1;
  const std::vector<TokenId> prompt = {0, 512, 639};
  generate(engine, prompt, options, [&](int64_t, TokenId) {
    ++tokens;
    if (tokens == 20) before = allocation_count();
    if (tokens == 221) after = allocation_count();
    return true;
  });
  EXPECT_EQ(tokens, 222);
  EXPECT_EQ(after - before, 0);
}

}  // namespace
}  // namespace elapid::testing
