#include "mimo/checkpoint/convert.h"

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace mimo {
namespace {

template <typename From, typename To>
To ConvertOne(From value, DType from, DType to) {
  To out;
  const absl::Status status = ConvertElements(&value, from, &out, to, 1);
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

float FromHalf(uint16_t bits) {
  return ConvertOne<uint16_t, float>(bits, DType::kFloat16, DType::kFloat32);
}
uint16_t ToHalf(float value) {
  return ConvertOne<float, uint16_t>(value, DType::kFloat32, DType::kFloat16);
}
uint16_t ToBFloat16(float value) {
  return ConvertOne<float, uint16_t>(value, DType::kFloat32, DType::kBFloat16);
}

// IEEE's definition, term by term.
double HalfValue(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31) {
    return mantissa ? std::numeric_limits<double>::quiet_NaN()
                    : sign * std::numeric_limits<double>::infinity();
  }
  return exponent == 0 ? sign * std::ldexp(mantissa, -24)
                       : sign * std::ldexp(1024 + mantissa, exponent - 25);
}

TEST(Convert, EveryHalfToFloatAndBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = FromHalf(bits);
    const double wanted = HalfValue(bits);
    if (std::isnan(wanted)) {
      EXPECT_TRUE(std::isnan(value)) << bits;
      EXPECT_EQ(ToHalf(value), bits | 0x200);  // quiet
    } else {
      ASSERT_EQ(value, wanted) << bits;
      ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0);
      ASSERT_EQ(ToHalf(value), bits);
    }
  }
}

TEST(Convert, EveryBFloat16ToFloatAndBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t half = bits;
    const float value =
        ConvertOne<uint16_t, float>(half, DType::kBFloat16, DType::kFloat32);
    EXPECT_EQ(std::bit_cast<uint32_t>(value), bits << 16);
    EXPECT_EQ(ToBFloat16(value), std::isnan(value) ? bits | 0x40 : bits);
  }
}

// A float between two neighbours goes to the nearer, in the middle to the even.
TEST(Convert, RoundsToNearestEven) {
  std::mt19937 rng(7);
  for (uint32_t low = 0; low < 0x7bff; ++low) {
    const double a = HalfValue(low), b = HalfValue(low + 1);
    const float middle = static_cast<float>((a + b) / 2);  // exact
    ASSERT_EQ(ToHalf(middle), low + (low & 1));
    ASSERT_EQ(ToHalf(std::nextafter(middle, 0.0f)), low);
    ASSERT_EQ(ToHalf(-std::nextafter(middle, 1e9f)), (low + 1) | 0x8000);
  }
  EXPECT_EQ(ToHalf(65519.99f), 0x7bff);
  EXPECT_EQ(ToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(ToHalf(std::numeric_limits<float>::max()), 0x7c00);
  EXPECT_EQ(ToHalf(std::numeric_limits<float>::denorm_min()), 0);
  for (int i = 0; i < 10000; ++i) {
    const uint32_t low = rng() % 0x7f7f;
    const uint32_t middle = (low << 16) | 0x8000;
    ASSERT_EQ(ToBFloat16(std::bit_cast<float>(middle)), low + (low & 1));
    ASSERT_EQ(ToBFloat16(std::bit_cast<float>(middle - 1)), low);
    ASSERT_EQ(ToBFloat16(std::bit_cast<float>(middle + 1)), low + 1);
  }
  EXPECT_EQ(ToBFloat16(std::numeric_limits<float>::max()), 0x7f80);
}

TEST(Convert, BetweenAllAndUnaligned) {
  const std::vector<int64_t> values = {0, 1, 5, 128, 255};
  std::vector<char> bytes(values.size() * 8 + 1), back(values.size() * 8);
  for (DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16,
                      DType::kFloat16, DType::kInt32, DType::kUInt8}) {
    ASSERT_TRUE(ConvertElements(values.data(), DType::kInt64, bytes.data() + 1,
                                dtype, values.size())
                    .ok());
    std::vector<double> doubles(values.size(), NAN);
    ASSERT_TRUE(ConvertElements(bytes.data() + 1, dtype, doubles.data(),
                                DType::kFloat64, values.size())
                    .ok());
    EXPECT_EQ(doubles, (std::vector<double>{0, 1, 5, 128, 255})) << Name(dtype);
  }
}

TEST(Convert, EightBits) {
  for (DType dtype : {DType::kFloat8E4M3, DType::kFloat8E5M2}) {
    for (float value : {0.0f, -0x1p-6f, 1.25f, 5.0f, -448.0f}) {
      const auto code =
          ConvertOne<float, uint8_t>(value, DType::kFloat32, dtype);
      EXPECT_EQ((ConvertOne<uint8_t, double>(code, dtype, DType::kFloat64)),
                value)
          << Name(dtype);
    }
  }
}

TEST(Convert, Errors) {
  const double value = 1.0;
  int64_t out = 7;
  EXPECT_EQ(ConvertElements(&value, DType::kFloat64, &out, DType::kInt64, 1)
                .message(),
            "floats, wanted integers");
  const std::vector<int64_t> large = {1, int64_t{1} << 31};
  std::vector<int32_t> small(2);
  EXPECT_EQ(ConvertElements(large.data(), DType::kInt64, small.data(),
                            DType::kInt32, 2)
                .message(),
            "2147483648 in place 1, wanted a value of int32");
  const int32_t negative = -1;
  EXPECT_FALSE(
      ConvertElements(&negative, DType::kInt32, &out, DType::kUInt8, 1).ok());
  EXPECT_TRUE(
      ConvertElements(nullptr, DType::kInt32, nullptr, DType::kInt32, 0).ok());
}

}  // namespace
}  // namespace mimo
