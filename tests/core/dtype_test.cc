#include "elapid/core/dtype.h"

#include <bit>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>

namespace elapid {
namespace {

// A float of `exponent_bits` and `mantissa_bits`, from the definition of IEEE 754.
double decoded(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1, largest = (1 << exponent_bits) - 1;
  const int exponent = static_cast<int>(bits >> mantissa_bits) & largest;
  const double mantissa = static_cast<double>(bits & ((1u << mantissa_bits) - 1u)) / (1 << mantissa_bits);
  const double sign = (bits >> (exponent_bits + mantissa_bits)) != 0 ? -1 : 1;
  if (exponent == largest) {
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias);
  return sign * std::ldexp(1 + mantissa, exponent - bias);
}

void expect_same(float got, double want, uint32_t bits) {
  if (std::isnan(want)) {
    EXPECT_TRUE(std::isnan(got)) << "bits " << bits;
  } else {
    EXPECT_EQ(static_cast<double>(got), want) << "bits " << bits;
    EXPECT_EQ(std::signbit(got), std::signbit(want)) << "bits " << bits;
  }
}

TEST(DType, EveryHalfIsExact) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    expect_same(to_float(Float16{static_cast<uint16_t>(bits)}), decoded(bits, 5, 10), bits);
  }
}

TEST(DType, EveryBFloat16IsExactAndReturns) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const BFloat16 x{static_cast<uint16_t>(bits)};
    expect_same(to_float(x), decoded(bits, 8, 7), bits);
    const BFloat16 back = to_bf16(to_float(x));
    if (std::isnan(to_float(x))) {
      EXPECT_TRUE(std::isnan(to_float(back))) << "bits " << bits;
    } else {
      EXPECT_EQ(back.bits, bits);
    }
  }
}

// Between neighbours a and b: below the middle to a, above it to b, at the middle to the even one.
TEST(DType, RoundingToBFloat16IsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7f80; ++bits) {
    const auto low = static_cast<uint16_t>(bits), high = static_cast<uint16_t>(bits + 1);
    const uint32_t middle = (bits << 16) | 0x8000u;
    EXPECT_EQ(to_bf16(std::bit_cast<float>(middle)).bits, bits % 2 == 0 ? low : high);
    EXPECT_EQ(to_bf16(std::bit_cast<float>(middle - 1)).bits, low);
    EXPECT_EQ(to_bf16(std::bit_cast<float>(middle + 1)).bits, high);
    EXPECT_EQ(to_bf16(-std::bit_cast<float>(middle + 1)).bits, high | 0x8000u);
  }
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::max()).bits, 0x7f80) << "beyond the largest is infinity";
}

TEST(DType, RoundingToFloat16IsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const Float16 low{static_cast<uint16_t>(bits)}, high{static_cast<uint16_t>(bits + 1)};
    EXPECT_EQ(to_f16(to_float(low)).bits, low.bits);
    EXPECT_EQ(to_f16(-to_float(low)).bits, low.bits | 0x8000u);
    // Halfway to the next, which for the largest would be 2¹⁶.
    const double next = bits == 0x7bff ? 65536 : double{to_float(high)};
    const auto middle = static_cast<float>((double{to_float(low)} + next) / 2);
    EXPECT_EQ(to_f16(middle).bits, bits % 2 == 0 ? low.bits : high.bits) << bits;
    EXPECT_EQ(to_f16(std::nextafter(middle, 0.0f)).bits, low.bits) << bits;
    EXPECT_EQ(to_f16(std::nextafter(middle, 1e30f)).bits, high.bits) << bits;
  }
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(to_f16(infinity).bits, 0x7c00);
  EXPECT_EQ(to_f16(-infinity).bits, 0xfc00);
  EXPECT_EQ(to_f16(1e30f).bits, 0x7c00);
  EXPECT_EQ(to_f16(-0.0f).bits, 0x8000);
  EXPECT_EQ(to_f16(1e-30f).bits, 0);
}

TEST(DType, NanStaysNanWhateverItsPayload) {
  for (const uint32_t bits : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0x7fc00000u, 0x7f80ffffu}) {
    EXPECT_TRUE(std::isnan(to_float(to_bf16(std::bit_cast<float>(bits))))) << bits;
    EXPECT_TRUE(std::isnan(to_float(to_f16(std::bit_cast<float>(bits))))) << bits;
  }
}

TEST(DType, SizesAndNames) {
  const struct {
    DType type;
    int64_t size;
    std::string_view name;
  } all[] = {{DType::f32, 4, "f32"}, {DType::bf16, 2, "bf16"}, {DType::f16, 2, "f16"},
             {DType::f64, 8, "f64"}, {DType::i64, 8, "i64"},   {DType::i32, 4, "i32"},
             {DType::u8, 1, "u8"},   {DType::i8, 1, "i8"},     {DType::boolean, 1, "bool"}};
  for (const auto& [type, size, name] : all) {
    EXPECT_EQ(size_of(type), size) << name;
    EXPECT_EQ(name_of(type), name);
  }
}

}  // namespace
}  // namespace elapid
