#include "elapid/core/buffer.h"

#include "elapid/core/error.h"

#include <cstdint>
#include <gtest/gtest.h>
#include <type_traits>
#include <utility>

namespace elapid {
namespace {

static_assert(!std::is_copy_constructible_v<Buffer>);

TEST(Buffer, IsZeroedAndAligned) {
  for (const int64_t bytes : {int64_t{1}, int64_t{63}, int64_t{4096}, int64_t{5} << 20}) {
    const Buffer buffer(bytes);
    ASSERT_NE(buffer.data(), nullptr);
    EXPECT_EQ(buffer.bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    auto* data = static_cast<unsigned char*>(buffer.data());
    for (int64_t i = 0; i < bytes; ++i) ASSERT_EQ(data[i], 0);
    data[0] = data[bytes - 1] = 1;
  }
}

TEST(Buffer, OfNothingIsEmpty) {
  EXPECT_EQ(Buffer().bytes(), 0);
  EXPECT_EQ(Buffer(0).data(), nullptr);
}

TEST(Buffer, MovesItsMemory) {
  Buffer a(100);
  void* data = a.data();
  static_cast<char*>(data)[7] = 3;
  Buffer b(std::move(a));
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(b.bytes(), 100);
  Buffer c(50);
  c = std::move(b);
  EXPECT_EQ(c.data(), data);
  EXPECT_EQ(static_cast<char*>(c.data())[7], 3);
  c = Buffer();
  EXPECT_EQ(c.bytes(), 0);
}

TEST(Buffer, ThatCannotBeIsAnError) {
  EXPECT_THROW(Buffer(-1), Error);
  EXPECT_THROW(Buffer(int64_t{1} << 62), Error);
}

}  // namespace
}  // namespace elapid
