#include "elapid/infer/prefix_cache.h"

#include "tests/infer/fixtures.h"

#include <gtest/gtest.h>

namespace elapid::testing {
namespace {

class PrefixCacheTest : public ::testing::TestWithParam<std::string> {
 protected:
  State state_after(std::span<const TokenId> tokens) {
    const Slot slot = engine_.states().acquire();
    const Input input{tokens, slot.index()};
    engine_.last_logits({&input, 1});
    return engine_.states().save(slot, tokens);
  }

  ThreadPool threads_{2};
  std::unique_ptr<Model> model_ = load_model(case_folder(GetParam()), threads_);
  Engine engine_{*model_, threads_, {.slots = 4, .chunk = 64}};
  const std::vector<TokenId> ids_ = random_ids(300, model_->config().vocab, 1);
  [[nodiscard]] std::span<const TokenId> first(size_t n) const { return std::span(ids_).first(n); }
};

TEST_P(PrefixCacheTest, FindsTheLongestPrefixAndContinuesToTheBit) {
  PrefixCache cache(int64_t{1} << 30);
  EXPECT_FALSE(cache.find(ids_));
  for (const size_t n : {64u, 128u, 192u}) cache.insert(state_after(first(n)));
  EXPECT_EQ(cache.size(), 3);
  EXPECT_EQ(cache.find(first(63)), std::nullopt);
  EXPECT_EQ(cache.find(first(64))->length(), 64);
  EXPECT_EQ(cache.find(first(191))->length(), 128);
  std::vector<TokenId> other(ids_);
  other[100] ^= 1;
  EXPECT_EQ(cache.find(other)->length(), 64) << "an id differs behind it";

  // A prompt continued from a kept state computes only what is new, and the same bits as when read as a whole, since
  // states were kept at multiples of the engine's chunk.
  const auto hit = cache.find(ids_);
  ASSERT_EQ(hit->length(), 192);
  const auto logits_of = [&](std::span<const TokenId> tokens, const State* from) {
    const Slot slot = engine_.states().acquire();
    if (from != nullptr) engine_.states().load(slot, *from);
    const Input input{tokens, slot.index()};
    return values_of(engine_.last_logits({&input, 1}));
  };
  EXPECT_EQ(logits_of(std::span(ids_).subspan(192), &*hit), logits_of(ids_, nullptr));
}

TEST_P(PrefixCacheTest, StaysWithinItsBytes) {
  const State one = state_after(first(64)), two = state_after(first(65)), three = state_after(first(66));
  PrefixCache probe(int64_t{1} << 30);
  probe.insert(three);
  const int64_t size = probe.bytes();
  EXPECT_GT(size, 66 * 4);
  PrefixCache cache(2 * size);
  cache.insert(one);
  cache.insert(two);
  EXPECT_EQ(cache.size(), 2);
  EXPECT_EQ(cache.find(first(64))->length(), 64);  // used: the other is the older one now
  cache.insert(three);
  EXPECT_EQ(cache.size(), 2);
  EXPECT_LE(cache.bytes(), 2 * size);
  EXPECT_EQ(cache.find(first(65))->length(), 64);
  EXPECT_EQ(cache.find(first(66))->length(), 66);
  cache.insert(three);
  EXPECT_EQ(cache.size(), 2) << "in place of itself";
  PrefixCache small(size - 1);
  small.insert(three);
  EXPECT_EQ(small.size(), 0);
  EXPECT_EQ(small.bytes(), 0);
  EXPECT_THROW(PrefixCache(-1), Error);
}

INSTANTIATE_TEST_SUITE_P(Models, PrefixCacheTest,
                         ::testing::Values("mamba_default", "mamba2_default", "granitemoehybrid_moe_rope"));

}  // namespace
}  // namespace elapid::testing
