#include "kernels/base/float8.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace mimo {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What the paper's table says of a code.
template <typename T>
double Decoded(int code, int bias, int mantissa) {
  const int exponent = (code & 0x7f) >> mantissa;
  const int fraction = code & ((1 << mantissa) - 1);
  const double sign = code & 0x80 ? -1 : 1;
  if (T::kHasInfinity && exponent == 31)
    return fraction == 0 ? sign * kInfinity : NAN;
  if (!T::kHasInfinity && (code & 0x7f) == 0x7f) return NAN;
  const double one = 1 << mantissa;
  return exponent == 0 ? sign * std::ldexp(fraction / one, 1 - bias)
                       : sign * std::ldexp(1 + fraction / one, exponent - bias);
}

template <typename T>
struct Format;
template <>
struct Format<Float8E4M3> {
  static constexpr int kBias = 7, kMantissa = 3;
};
template <>
struct Format<Float8E5M2> {
  static constexpr int kBias = 15, kMantissa = 2;
};

template <typename T>
class Float8Test : public testing::Test {
 protected:
  static double Value(int code) {
    return Decoded<T>(code, Format<T>::kBias, Format<T>::kMantissa);
  }
  // The codes of the finite values that are not negative are in their order.
  static int LargestCode() { return T::kHasInfinity ? 0x7b : 0x7e; }
  // The code whose value is nearest, of two as near the even one.
  static int Nearest(float value) {
    const double size = std::fabs(value);
    int best = 0;
    for (int code = 1; code <= LargestCode(); ++code) {
      const double nearer = std::fabs(Value(best) - size);
      const double other = std::fabs(Value(code) - size);
      if (other < nearer || (other == nearer && code % 2 == 0)) best = code;
    }
    return std::signbit(value) ? best | 0x80 : best;
  }
};
using Formats = testing::Types<Float8E4M3, Float8E5M2>;
TYPED_TEST_SUITE(Float8Test, Formats);

TYPED_TEST(Float8Test, AllCodesAreTheTable) {
  EXPECT_EQ(this->Value(this->LargestCode()), TypeParam::kLargest);
  for (int code = 0; code < 256; ++code) {
    TypeParam x;
    x.bits = code;
    const float value = static_cast<float>(x);
    const double wanted = this->Value(code);
    if (std::isnan(wanted)) {
      EXPECT_TRUE(std::isnan(value)) << code;
      continue;
    }
    EXPECT_EQ(value, wanted) << code;
    EXPECT_EQ(std::signbit(value), code >= 0x80) << code;
    // And back: an infinity is cut to the largest.
    const int again = std::isinf(wanted) ? code - 1 : code;
    EXPECT_EQ(TypeParam(value).bits, again) << code;
  }
}

TYPED_TEST(Float8Test, TiesGoToEvenAndTheirNeighboursDoNot) {
  for (int code = 0; code < this->LargestCode(); ++code) {
    const float tie = (this->Value(code) + this->Value(code + 1)) / 2;
    const int even = code % 2 == 0 ? code : code + 1;
    EXPECT_EQ(TypeParam(tie).bits, even) << code;
    EXPECT_EQ(TypeParam(-tie).bits, even | 0x80) << code;
    EXPECT_EQ(TypeParam(std::nextafter(tie, 0.0f)).bits, code);
    EXPECT_EQ(TypeParam(std::nextafter(tie, kInfinity)).bits, code + 1);
  }
}

TYPED_TEST(Float8Test, AnyFloatBecomesTheNearest) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 20000; ++i) {
    const float value = std::ldexp(normal(random), random() % 50 - 30);
    ASSERT_EQ(TypeParam(value).bits, this->Nearest(value)) << value;
  }
}

TYPED_TEST(Float8Test, WhatIsTooLargeIsCut) {
  const float largest = TypeParam::kLargest;
  for (float value : {largest, std::nextafter(largest, kInfinity),
                      largest * 1.2f, 3e38f, kInfinity}) {
    EXPECT_EQ(TypeParam(value).bits, this->LargestCode()) << value;
    EXPECT_EQ(TypeParam(-value).bits, this->LargestCode() | 0x80) << value;
  }
}

TYPED_TEST(Float8Test, WhatIsNoNumberStaysSo) {
  for (float value : {NAN, -NAN})
    EXPECT_TRUE(std::isnan(static_cast<float>(TypeParam(value))));
}

}  // namespace
}  // namespace mimo
