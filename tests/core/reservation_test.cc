#include "elapid/core/reservation.h"

#include "elapid/core/error.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

namespace elapid {
namespace {

constexpr int64_t kStep = Reservation::kStep;

TEST(Reservation, CommittedPartsAreZeroKeepWhatIsWrittenAndCanBeGivenBack) {
  Reservation memory(int64_t{1} << 40, kStep, "test");
  EXPECT_EQ(memory.bytes(), int64_t{1} << 40);
  ASSERT_TRUE(memory.commit(kStep, 3 * kStep, false));
  char* at = memory.data() + kStep;
  EXPECT_EQ(at[0], 0);
  at[0] = 1;
  at[2 * kStep - 1] = 2;
  ASSERT_TRUE(memory.commit(3 * kStep, 4 * kStep, true));
  EXPECT_EQ(at[0], 1);
  // Whole pages within the range alone.
  memory.give_back(kStep + 1, 3 * kStep);
  EXPECT_EQ(at[0], 1);
  EXPECT_EQ(at[2 * kStep - 1], 0);
  memory.give_back(kStep, kStep + 4096);
  EXPECT_EQ(at[0], 0);
}

TEST(Reservation, NothingIsRoundedUpToAStep) { EXPECT_EQ(Reservation(0, 0, "test").bytes(), kStep); }

TEST(Reservation, UnderALimitOfAddressesALesserHalfIsTakenOrAnErrorNamesWhose) {
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  const rlim_t limit = RLIM_INFINITY;  // sanitizers reserve terabytes themselves: only the rule for impossible sizes
#else
  const rlim_t limit = rlim_t{1} << 35;
#endif
  const rlimit low{limit, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_AS, &low), 0);
  const int64_t huge = int64_t{1} << 50;
  {
    Reservation memory(huge, kStep, "test");
    EXPECT_LT(memory.bytes(), huge);
    EXPECT_TRUE(memory.commit(0, kStep, false));
  }
  try {
    Reservation memory(huge, huge, "test");
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()).rfind("test: must be able to reserve addresses", 0), 0u);
  }
  setrlimit(RLIMIT_AS, &before);
}

}  // namespace
}  // namespace elapid
