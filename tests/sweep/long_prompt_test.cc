// Two million tokens of one sequence through models of 130 million parameters: what a state-space model remembers does
// not grow, and neither does what this engine needs.

#include "elapid/infer/engine.h"
#include "elapid/model/load.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <gtest/gtest.h>

namespace elapid::testing {
namespace {

int64_t resident_bytes() {
  int64_t pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * 4096;
}

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The shapes of state-spaces/mamba-130m and mamba2-130m.
class LongPrompt : public ::testing::TestWithParam<const char*> {};

TEST_P(LongPrompt, TakesConstantMemory) {
  constexpr int64_t kTokens = 2'000'000, kPiece = 100'000, kGrowth = int64_t{8} << 20;
  ThreadPool threads;
  const ModelConfig config = parse_config(GetParam(), "config");
  const auto model = random_model(config, threads, 1, Precision::bf16);
  Engine engine(*model, threads);
  const Slot slot = engine.states().acquire();
  std::vector<TokenId> piece(kPiece);
  int64_t after_first = 0;
  double first = 0, last = 0;
  for (int64_t fed = 0; fed < kTokens; fed += kPiece) {
    for (int64_t i = 0; i < kPiece; ++i) {
      const int64_t position = fed + i;
      piece[static_cast<size_t>(i)] = static_cast<TokenId>(position * position % 49999);
    }
    const Input input{piece, slot.index()};
    const double start = seconds();
    const Tensor logits = engine.last_logits({&input, 1});
    last = seconds() - start;
    std::printf("%lld tokens: %.0f tok/s, %lld MiB\n", static_cast<long long>(fed + kPiece), kPiece / last,
                static_cast<long long>(resident_bytes() >> 20));
    std::fflush(stdout);
    for (int64_t v = 0; v < config.vocab; ++v) ASSERT_TRUE(std::isfinite(logits.ptr<float>()[v])) << fed << ' ' << v;
    if (fed == 0) {
      after_first = resident_bytes();
      first = last;
    }
    ASSERT_LE(resident_bytes(), after_first + kGrowth) << "after " << fed + kPiece << " tokens";
  }
  EXPECT_EQ(engine.states().length(slot.index()), kTokens);
  std::printf("%lld tokens in %lld MiB; the first %lld at %.0f tok/s, the last at %.0f\n",
              static_cast<long long>(kTokens), static_cast<long long>(resident_bytes() >> 20),
              static_cast<long long>(kPiece), kPiece / first, kPiece / last);
}

INSTANTIATE_TEST_SUITE_P(
    Models, LongPrompt,
    ::testing::Values(R"({"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba1"}})",
                      R"({"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"}})"));

}  // namespace
}  // namespace elapid::testing
