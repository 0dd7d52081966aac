#include "elapid/core/arena.h"

#include "elapid/core/error.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <vector>

namespace elapid {
namespace {

constexpr int64_t kGigabyte = int64_t{1} << 30;

TEST(Arena, TensorsAreAlignedDenseAndApart) {
  Arena arena(kGigabyte);
  std::vector<Tensor> tensors;
  for (const int64_t n : {1, 15, 16, 17, 1000, 0, 3}) {
    const Tensor t = arena.alloc({n, 3}, DType::f32);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.data) % 64, 0u);
    EXPECT_EQ(t.shape, Shape(n, 3));
    EXPECT_TRUE(t.dense());
    for (const Tensor& other : tensors) {
      const auto* begin = static_cast<const char*>(t.data);
      const auto* other_begin = static_cast<const char*>(other.data);
      EXPECT_TRUE(begin >= other_begin + other.bytes() || other_begin >= begin + t.bytes());
    }
    std::memset(t.data, 1, static_cast<size_t>(t.bytes()));
    tensors.push_back(t);
  }
}

TEST(Arena, AnEmptyTensorIsPresentAndItsOwn) {
  Arena arena(kGigabyte);
  const Tensor empty = arena.alloc({0, 5}, DType::f32), next = arena.alloc({1}, DType::f32);
  EXPECT_TRUE(empty);
  EXPECT_EQ(empty.size(), 0);
  EXPECT_NE(empty.data, next.data);
}

TEST(Arena, ScopesReleaseAndAddressesRepeat) {
  Arena arena(kGigabyte);
  const Tensor kept = arena.alloc({10}, DType::f32);
  const int64_t used = arena.used();
  void *first = nullptr, *inner = nullptr;
  for (int step = 0; step < 3; ++step) {
    const Arena::Scope scope(arena);
    const Tensor a = arena.alloc({1000}, DType::f32);
    if (step == 0) first = a.data;
    EXPECT_EQ(a.data, first);
    {
      const Arena::Scope nested(arena);
      const Tensor b = arena.alloc({5}, DType::i64);
      if (step == 0) inner = b.data;
      EXPECT_EQ(b.data, inner);
    }
    EXPECT_EQ(arena.alloc({5}, DType::i64).data, inner);
  }
  EXPECT_EQ(arena.used(), used);
  EXPECT_GE(arena.peak(), used + 4000);
  EXPECT_NE(kept.data, first);
}

TEST(Arena, GrowsWithoutMovingWhatItGave) {
  Arena arena;
  std::vector<Tensor> tensors;
  for (int i = 0; i < 40; ++i) {
    tensors.push_back(arena.alloc({int64_t{1} << 18}, DType::f32));
    tensors.back().ptr<float>()[0] = static_cast<float>(i);
    tensors.back().ptr<float>()[(1 << 18) - 1] = static_cast<float>(-i);
  }
  for (int i = 0; i < 40; ++i) {
    const Tensor& t = tensors[static_cast<size_t>(i)];
    EXPECT_EQ(t.ptr<float>()[0], static_cast<float>(i));
    EXPECT_EQ(t.ptr<float>()[(1 << 18) - 1], static_cast<float>(-i));
  }
}

TEST(Arena, PoisonIsNan) {
  Arena arena(kGigabyte);
  {
    const Arena::Scope scope(arena);
    const Tensor t = arena.alloc({100}, DType::f32);
    std::memset(t.data, 0, static_cast<size_t>(t.bytes()));
  }
  arena.set_poison(true);
  const Tensor t = arena.alloc({100}, DType::f32);
  for (int64_t i = 0; i < 100; ++i) EXPECT_TRUE(std::isnan(t.ptr<float>()[i]));
}

TEST(Arena, BeyondItsCapacityIsAnErrorThatLeavesItUsable) {
  Arena arena(kGigabyte);
  const Tensor kept = arena.alloc({16}, DType::f32);
  const int64_t used = arena.used();
  EXPECT_THROW(arena.alloc({kGigabyte}, DType::u8), Error);
  EXPECT_THROW(arena.alloc({int64_t{1} << 62}, DType::f32), Error) << "a size that overflows";
  EXPECT_THROW(arena.alloc({int64_t{1} << 32, int64_t{1} << 32}, DType::f32), Error);
  EXPECT_THROW(arena.alloc({-1}, DType::f32), Error);
  EXPECT_EQ(arena.used(), used);
  EXPECT_EQ(static_cast<char*>(arena.alloc({16}, DType::f32).data) - static_cast<char*>(kept.data), 64);
}

}  // namespace
}  // namespace elapid
