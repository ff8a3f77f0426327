#include "kernels/activation/silu_gate.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

template <typename T>
std::vector<T> Forward(const std::vector<T>& x, int64_t tokens,
                       int64_t features) {
  std::vector<T> y = Poisoned<T>(tokens * features);
  SiluGateForward({.x = x.data(),
                   .y = y.data(),
                   .tokens = tokens,
                   .features = features,
                   .dtype = DTypeOf<T>::value},
                  Stream());
  return y;
}

template <typename T>
std::vector<T> Backward(const std::vector<T>& x, const std::vector<T>& dy,
                        int64_t tokens, int64_t features) {
  std::vector<T> dx = Poisoned<T>(x.size());
  SiluGateBackward({.x = x.data(),
                    .dy = dy.data(),
                    .dx = dx.data(),
                    .tokens = tokens,
                    .features = features,
                    .dtype = DTypeOf<T>::value},
                   Stream());
  return dx;
}

TEST(SiluGate, ForwardIsTheFormula) {
  const auto x = RandomVector<double>(5 * 2 * 7, 1, 6);
  const std::vector<double> y = Forward(x, 5, 7);
  for (int64_t t = 0; t < 5; ++t) {
    for (int64_t f = 0; f < 7; ++f) {
      const double gate = x[t * 14 + f], up = x[t * 14 + 7 + f];
      EXPECT_NEAR(y[t * 7 + f], gate / (1 + std::exp(-gate)) * up, 1e-13);
    }
  }
}

// Three roundings and the 3 ulp of Sigmoid forward; in the derivative
// 1 + g (1 - s), |g| < 6, cancels to no less than a tenth of its terms.
TEST(SiluGate, Float32IsNearFloat64) {
  for (auto [tokens, features] : {std::pair<int64_t, int64_t>{1, 1},
                                  {0, 3},
                                  {1, 4099},
                                  {1031, 13},
                                  {67, 256}}) {
    const auto x32 = RandomVector<float>(tokens * 2 * features, 1, 6);
    const auto x64 = RandomVector<double>(tokens * 2 * features, 1, 6);
    const auto dy32 = RandomVector<float>(tokens * features, 2);
    const auto dy64 = RandomVector<double>(tokens * features, 2);
    EXPECT_LE(RelativeL2(Forward(x32, tokens, features),
                         Forward(x64, tokens, features)),
              5e-7);
    EXPECT_LE(RelativeL2(Backward(x32, dy32, tokens, features),
                         Backward(x64, dy64, tokens, features)),
              1e-6);
  }
}

TEST(SiluGate, ExtremeGates) {
  const std::vector<float> x = {-1e4f, 1e4f, 2, 2};  // gates, then ups
  EXPECT_EQ(Forward(x, 1, 2), (std::vector<float>{0, 2e4f}));
  EXPECT_EQ(Backward(x, {1, 1}, 1, 2), (std::vector<float>{0, 2, 0, 1e4f}));
}

TEST(SiluGate, GradientIsTheDerivative) {
  const auto x = RandomVector<double>(3 * 2 * 5, 1, 6);
  const auto dy = RandomVector<double>(3 * 5, 2);
  EXPECT_LT(GradCheck(
                [&](const std::vector<double>& moved) {
                  return Dot(Forward(moved, 3, 5), dy);
                },
                x, Backward(x, dy, 3, 5)),
            1e-8);
}

TEST(SiluGate, BackwardInPlace) {
  auto x = RandomVector<float>(3 * 2 * 37, 1, 6);
  const auto dy = RandomVector<float>(3 * 37, 2);
  const std::vector<float> dx = Backward(x, dy, 3, 37);
  SiluGateBackward({.x = x.data(),
                    .dy = dy.data(),
                    .dx = x.data(),
                    .tokens = 3,
                    .features = 37,
                    .dtype = DType::kFloat32},
                   Stream());
  EXPECT_EQ(x, dx);
}

TEST(SiluGate, ThreadsDoNotChangeABit) {
  const auto x = RandomVector<float>(1031 * 2 * 67, 1, 6);
  const auto dy = RandomVector<float>(1031 * 67, 2);
  SetNumThreads(1);
  const std::vector<float> y = Forward(x, 1031, 67);
  const std::vector<float> dx = Backward(x, dy, 1031, 67);
  SetNumThreads(3);
  EXPECT_EQ(Forward(x, 1031, 67), y);
  EXPECT_EQ(Backward(x, dy, 1031, 67), dx);
}

}  // namespace
}  // namespace mimo::kernels
