#include "kernels/base/vec_math.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace mimo {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The largest relative error on a grid of a million points of [low, high].
template <typename F, typename G>
double RelativeError(F f, G reference, double low, double high) {
  constexpr int kPoints = 1000003;
  double largest = 0;
  for (int i = 0; i < kPoints; ++i) {
    const float x = static_cast<float>(low + (high - low) * i / (kPoints - 1));
    const double y = reference(static_cast<double>(x));
    largest = std::max(largest, std::fabs((f(x) - y) / y));
  }
  return largest;
}

// An ulp is at most 2^-23 = 1.19e-7 of its value: the bounds are the header's
// ulps in that unit.
constexpr double kUlp = 0x1p-23;

TEST(VecMath, Exp) {
  const auto f = [](float x) { return Exp(x); };
  const auto reference = [](double x) { return std::exp(x); };
  EXPECT_LT(RelativeError(f, reference, -87.33, 88.72), kUlp);
  EXPECT_LT(RelativeError(f, reference, -1, 1), kUlp);
  EXPECT_EQ(Exp(0.0f), 1);
  EXPECT_EQ(Exp(-kInfinity), 0);
  EXPECT_EQ(Exp(-1e38f), 0);
  EXPECT_EQ(Exp(89.0f), kInfinity);
  EXPECT_EQ(Exp(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(Exp(kNan)));
}

TEST(VecMath, Sigmoid) {
  const auto f = [](float x) { return Sigmoid(x); };
  const auto reference = [](double x) { return 1 / (1 + std::exp(-x)); };
  EXPECT_LT(RelativeError(f, reference, -87, 30), 3 * kUlp);
  EXPECT_EQ(Sigmoid(-kInfinity), 0);
  EXPECT_EQ(Sigmoid(kInfinity), 1);
  EXPECT_TRUE(std::isnan(Sigmoid(kNan)));
}

TEST(VecMath, Tanh) {
  const auto f = [](float x) { return Tanh(x); };
  const auto reference = [](double x) { return std::tanh(x); };
  EXPECT_LT(RelativeError(f, reference, 1e-30, 12), 3 * kUlp);
  EXPECT_LT(RelativeError(f, reference, -1, -1e-30), 3 * kUlp);
  EXPECT_EQ(Tanh(-kInfinity), -1);
  EXPECT_EQ(Tanh(kInfinity), 1);
  EXPECT_TRUE(std::isnan(Tanh(kNan)));
}

TEST(VecMath, NormalCdf) {
  const auto f = [](float x) { return NormalCdf(x); };
  const auto reference = [](double x) {
    return std::erfc(-x / std::sqrt(2.0)) / 2;
  };
  EXPECT_LT(RelativeError(f, reference, -1, 12), 4 * kUlp);
  EXPECT_LT(RelativeError(f, reference, -12, -1), 4e-6);
  EXPECT_EQ(NormalCdf(-kInfinity), 0);
  EXPECT_EQ(NormalCdf(kInfinity), 1);
  EXPECT_TRUE(std::isnan(NormalCdf(kNan)));
}

}  // namespace
}  // namespace mimo
