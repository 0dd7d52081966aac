// Whole models on a CUDA device beside the same on the CPU: every conformance case in float32.

#include "elapid/infer/engine.h"
#include "tests/infer/fixtures.h"

#include <cmath>
#include <gtest/gtest.h>
#include <optional>

namespace elapid::testing {
namespace {

bool has_device() {
  if constexpr (kWithCuda) return !cuda_devices().empty();
  return false;
}

constexpr Device kCuda{DeviceType::cuda};
const EngineOptions kOptions{.slots = 5, .chunk = 16, .batch = 64};

struct OnBoth {
  ThreadPool threads{2};
  std::unique_ptr<Model> cpu_model, cuda_model;
  std::optional<Engine> cpu, cuda;

  explicit OnBoth(const std::string& name) {
    LoadOptions options;
    cpu_model = load_model(case_folder(name), threads, options);
    options.device = kCuda;
    cuda_model = load_model(case_folder(name), threads, options);
    cpu.emplace(*cpu_model, threads, kOptions);
    cuda.emplace(*cuda_model, threads, kOptions);
  }
};

std::vector<float> feed(Engine& engine, const Slot& slot, std::span<const TokenId> ids) {
  const Input input{ids, slot.index()};
  return values_of(engine.last_logits({&input, 1}));
}

// Float32 in other orders, through few layers: a thousandth of the largest logit is far above it, and far below what
// any wrong operand does.
void expect_near(const std::vector<float>& got, const std::vector<float>& want) {
  ASSERT_EQ(got.size(), want.size());
  float largest = 1;
  for (const float w : want) largest = std::max(largest, std::abs(w));
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-3f * largest) << "logit " << i;
}

class Cuda : public ::testing::TestWithParam<std::string> {};

TEST_P(Cuda, ModelsAgreeWithTheCpu) {
  if (!has_device()) GTEST_SKIP() << "no CUDA device";
  OnBoth both(GetParam());
  const int64_t vocab = both.cpu_model->config().vocab;
  const std::vector<TokenId> ids = random_ids(40, vocab, 1);
  const std::span<const TokenId> all(ids);
  const Slot a = both.cpu->states().acquire(), b = both.cuda->states().acquire();
  expect_near(feed(*both.cuda, b, all.first(33)), feed(*both.cpu, a, all.first(33)));
  // The first step runs as any call, the second is captured, the others replay.
  for (size_t t = 33; t < 38; ++t) {
    SCOPED_TRACE(t);
    expect_near(feed(*both.cuda, b, all.subspan(t, 1)), feed(*both.cpu, a, all.subspan(t, 1)));
  }
  // What one has consumed, the other goes on from.
  const Slot c = both.cpu->states().acquire(), d = both.cuda->states().acquire();
  both.cpu->states().load(c, both.cuda->states().save(b, all.first(38)));
  both.cuda->states().load(d, both.cpu->states().save(a, all.first(38)));
  expect_near(feed(*both.cuda, d, all.subspan(38)), feed(*both.cpu, c, all.subspan(38)));
}

TEST_P(Cuda, NeighboursChangeNothing) {
  if (!has_device()) GTEST_SKIP() << "no CUDA device";
  OnBoth both(GetParam());
  Engine& engine = *both.cuda;
  const std::vector<TokenId> ids = random_ids(60, both.cpu_model->config().vocab, 2);
  const std::span<const TokenId> all(ids);
  const std::span<const TokenId> prompts[] = {all.first(7), all.subspan(7, 1), all.subspan(8, 21)};
  std::vector<std::vector<float>> alone;
  for (const auto& prompt : prompts) {
    const Slot slot = engine.states().acquire();
    feed(engine, slot, prompt);
    for (size_t t = 40; t < 44; ++t) alone.push_back(feed(engine, slot, all.subspan(t, 1)));
  }
  std::vector<Slot> slots;
  std::vector<Input> inputs;
  for (const auto& prompt : prompts) {
    slots.push_back(engine.states().acquire());
    inputs.push_back({prompt, slots.back().index()});
  }
  engine.last_logits(inputs);
  const Slot forked = engine.states().fork(slots[1]);
  inputs.push_back({{}, forked.index()});
  for (size_t t = 40; t < 44; ++t) {
    for (Input& input : inputs) input.tokens = all.subspan(t, 1);
    const Tensor logits = engine.last_logits(inputs);
    for (size_t s = 0; s < inputs.size(); ++s) {
      const auto row = static_cast<int64_t>(s);
      EXPECT_TRUE(values_of(logits.slice(row, row + 1)) == alone[(s == 3 ? 1 : s) * 4 + t - 40])
          << "sequence " << s << ", step " << t;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Conformance, Cuda, ::testing::ValuesIn(conformance_cases()),
                         [](const auto& one) { return test_name(one.param); });

}  // namespace
}  // namespace elapid::testing
