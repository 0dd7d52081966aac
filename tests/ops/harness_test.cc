#include "tests/ops/harness.h"

namespace elapid::testing {
namespace {

// The harness finds what it is there to find.

TEST(Harness, SeesWritesOutsideOfWhatIsWritable) {
  Workbench bench(1);
  const Tensor view = bench.output(3, 4, true), input = bench.tensor({5}, kMixed);
  bench.writable(view.slice(1, 2));
  bench.snapshot();
  float* first = view.ptr<float>();
  view.row<float>(1)[0] = view.row<float>(1)[3] = 1;
  EXPECT_EQ(bench.damage(), "");
  for (float* outside :
       {view.row<float>(1) - 1, view.row<float>(1) + 4, first, view.row<float>(2), input.ptr<float>()}) {
    bench.restore();
    *outside = 2;
    EXPECT_NE(bench.damage(), "");
  }
  bench.restore();
  EXPECT_EQ(bench.damage(), "");
  EXPECT_TRUE(std::isnan(view.row<float>(1)[0])) << "outputs hold NaN";
}

#if !defined(__SANITIZE_ADDRESS__)  // which reports these itself
TEST(Harness, SeesWritesOverTheEnds) {
  Workbench bench(1);
  const Tensor t = bench.tensor({5}, kMixed);
  bench.writable(t);
  bench.snapshot();
  volatile float* data = t.ptr<float>();
  for (const int64_t at : {-1, 5}) {
    bench.restore();
    data[at] = 2;
    EXPECT_NE(bench.damage(), "");
  }
}
#endif

TEST(Harness, SeesWritesBehindAnOutputInTheArena) {
  Lab lab;
  Context ctx = lab.ctx();
  const Tensor t = ctx.arena.alloc({5}, DType::f32);
  EXPECT_EQ(lab.damage(t), "");
  EXPECT_TRUE(std::isnan(t.ptr<float>()[4]));
  volatile float* data = t.ptr<float>();
  data[5] = 1;
  EXPECT_NE(lab.damage(t), "");
}

TEST(Harness, ShareIsTheLargestPartOfTheTolerance) {
  Workbench bench(1);
  reference::Expected expected(1, 3);
  expected.value.values = {1, 2, 3};
  expected.tolerance.values = {0.5, 0.5, 0};
  EXPECT_DOUBLE_EQ(share_of(bench.floats({1, 2.25f, 3}), expected).worst, 0.5);
  EXPECT_DOUBLE_EQ(share_of(bench.floats({0, 2.25f, 3}), expected).worst, 2);
  const float nan = __builtin_nanf(""), infinity = __builtin_inff();
  EXPECT_TRUE(std::isinf(share_of(bench.floats({1, 2, nan}), expected).worst));
  EXPECT_TRUE(std::isinf(share_of(bench.floats({nan, 2, 3}), expected).worst));
  EXPECT_TRUE(std::isinf(share_of(bench.floats({infinity, 2, 3}), expected).worst));
  EXPECT_TRUE(std::isinf(share_of(bench.floats({1, 2, 3.5f}), expected).worst));
  expected.value.values = {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(), 3};
  EXPECT_EQ(share_of(bench.floats({nan, infinity, 3}), expected).worst, 0);
  EXPECT_TRUE(std::isinf(share_of(bench.floats({0, infinity, 3}), expected).worst));
  EXPECT_TRUE(std::isinf(share_of(bench.floats({nan, -infinity, 3}), expected).worst));
}

TEST(Harness, HalfElementsAreTheNearestHalf) {
  Workbench bench(1);
  for (const double value : {0.0, 1.0, 1.5, 65504.0, 0x1p-14, 0x1p-24, 0x1.8p-24, 0x1.ffcp0, -2.0}) {
    const Tensor t = bench.tensor({1}, {value, value}, DType::f16);
    const double nearest = value == 0x1.8p-24 ? 0x1p-23 : value;  // a tie, to even
    EXPECT_EQ(static_cast<double>(to_float(*t.ptr<Float16>())), nearest);
  }
}

TEST(Harness, PoolsHaveRowsThatNobodyOwns) {
  const Ragged ragged{{3, 0, 1, 4}, Slots::mixed};
  const reference::Sequences sequences = sequences_of(ragged);
  EXPECT_EQ(sequences.offsets, (std::vector<int64_t>{0, 3, 3, 4, 8}));
  EXPECT_EQ(sequences.slots, (std::vector<int64_t>{7, -1, 3, 1}));
  EXPECT_EQ(ragged_pool_rows(ragged), 9);
}

}  // namespace
}  // namespace elapid::testing
