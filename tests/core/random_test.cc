#include "elapid/core/random.h"

#include <cmath>
#include <gtest/gtest.h>

namespace elapid {
namespace {

// Known answers of the Random123 distribution (kat_vectors, philox4x32 with 10 rounds).
TEST(Philox, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox(0, 0, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  // Digits of π: counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0, low words first.
  EXPECT_EQ(philox(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, EveryBitOfSeedAndCounterMatters) {
  const auto zero = philox(0, 0, 0);
  for (int bit = 0; bit < 64; ++bit) {
    const uint64_t one = uint64_t{1} << bit;
    EXPECT_NE(philox(one, 0, 0), zero);
    EXPECT_NE(philox(0, one, 0), zero);
    EXPECT_NE(philox(0, 0, one), zero);
    EXPECT_NE(philox(0, one, 0), philox(0, 0, one));
  }
}

TEST(Uniform, LiesInTheUnitIntervalAndLooksUniform) {
  constexpr int kDraws = 100000, kBins = 10;
  std::array<int, kBins> bins{};
  double sum = 0;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const double u = uniform(7, i, 3);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    EXPECT_EQ(u, uniform(7, i, 3));
    sum += u;
    ++bins[static_cast<size_t>(u * kBins)];
  }
  // Six standard deviations: of the mean, and of a bin's count.
  EXPECT_NEAR(sum / kDraws, 0.5, 6 / std::sqrt(12.0 * kDraws));
  for (const int count : bins) EXPECT_NEAR(count, kDraws / kBins, 6 * std::sqrt(kDraws * 0.1 * 0.9));
}

}  // namespace
}  // namespace elapid
