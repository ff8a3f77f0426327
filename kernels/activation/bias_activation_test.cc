#include "kernels/activation/bias_activation.h"

#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

constexpr Activation kAll[] = {Activation::kIdentity, Activation::kGelu,
                               Activation::kGeluTanh, Activation::kQuickGelu,
                               Activation::kSilu,     Activation::kRelu};

double Formula(Activation activation, double z) {
  switch (activation) {
    case Activation::kIdentity:
      return z;
    case Activation::kGelu:
      return z * (1 + std::erf(z / std::numbers::sqrt2)) / 2;
    case Activation::kGeluTanh:
      return z / 2 *
             (1 + std::tanh(std::sqrt(2 / std::numbers::pi) *
                            (z + 0.044715 * std::pow(z, 3))));
    case Activation::kQuickGelu:
      return z / (1 + std::exp(-1.702 * z));
    case Activation::kSilu:
      return z / (1 + std::exp(-z));
    case Activation::kRelu:
      return std::max(z, 0.0);
  }
  return 0;
}

// x spans [-6, 6): both tails of every activation.
template <typename T>
struct Inputs {
  Inputs(int64_t tokens, int64_t features)
      : tokens(tokens),
        features(features),
        x(RandomVector<T>(tokens * features, 1, 6)),
        bias(RandomVector<T>(features, 2)),
        dy(RandomVector<T>(tokens * features, 3)),
        old_dbias(RandomVector<T>(features, 4)) {}
  int64_t tokens, features;
  std::vector<T> x, bias, dy, old_dbias;
};

template <typename T>
std::vector<T> Forward(const Inputs<T>& in, Activation activation,
                       bool with_bias = true) {
  std::vector<T> y = Poisoned<T>(in.x.size());
  BiasActivationForward({.x = in.x.data(),
                         .bias = with_bias ? in.bias.data() : nullptr,
                         .y = y.data(),
                         .activation = activation,
                         .tokens = in.tokens,
                         .features = in.features,
                         .dtype = DTypeOf<T>::value},
                        Stream());
  return y;
}

template <typename T>
struct Gradients {
  std::vector<T> dx, dbias;
};

template <typename T>
Gradients<T> Backward(const Inputs<T>& in, Activation activation,
                      bool with_bias = true, bool accumulate = false) {
  const bool identity = activation == Activation::kIdentity;
  Gradients<T> grads{Poisoned<T>(in.x.size()), Poisoned<T>(in.features)};
  if (accumulate) grads.dbias = in.old_dbias;
  const int64_t bytes = BiasActivationBackwardWorkspaceBytes(
      in.tokens, in.features, DTypeOf<T>::value);
  std::vector<T> workspace = Poisoned<T>(bytes / sizeof(T));
  BiasActivationBackward({.x = identity ? nullptr : in.x.data(),
                          .bias = with_bias ? in.bias.data() : nullptr,
                          .dy = in.dy.data(),
                          .dx = identity ? nullptr : grads.dx.data(),
                          .dbias = with_bias ? grads.dbias.data() : nullptr,
                          .dbias_beta = accumulate ? 1.0f : 0.0f,
                          .workspace = workspace.data(),
                          .activation = activation,
                          .tokens = in.tokens,
                          .features = in.features,
                          .dtype = DTypeOf<T>::value},
                         Stream());
  if (identity) grads.dx = in.dy;
  return grads;
}

TEST(BiasActivation, ForwardIsTheFormula) {
  const Inputs<double> in(7, 11);
  for (Activation activation : kAll) {
    for (bool with_bias : {false, true}) {
      const std::vector<double> y = Forward(in, activation, with_bias);
      for (size_t i = 0; i < y.size(); ++i) {
        const double z = in.x[i] + (with_bias ? in.bias[i % in.features] : 0);
        EXPECT_NEAR(y[i], Formula(activation, z), 1e-14)
            << static_cast<int>(activation) << " at " << z;
      }
    }
  }
}

// float32: rounding z = x + b (2^-24 |z|, |z| < 7) moves y by up to 1.13 times
// 4e-7; the functions add their few ulp (kernels/base/vec_math.h). The inner
// argument of gelu_tanh, up to 18, is rounded too, where tanh is flat.
TEST(BiasActivation, Float32IsNearFloat64) {
  for (auto [tokens, features] :
       {std::pair<int64_t, int64_t>{1, 1}, {1, 4099}, {1031, 13}, {67, 64}}) {
    const Inputs<float> in32(tokens, features);
    const Inputs<double> in64(tokens, features);
    for (Activation activation : kAll) {
      EXPECT_LT(MaxAbs(Forward(in32, activation), Forward(in64, activation)),
                2e-6)
          << static_cast<int>(activation);
      const Gradients<float> grads32 = Backward(in32, activation);
      const Gradients<double> grads64 = Backward(in64, activation);
      EXPECT_LT(MaxAbs(grads32.dx, grads64.dx), 4e-6)
          << static_cast<int>(activation);
      EXPECT_LT(RelativeL2(grads32.dbias, grads64.dbias), 2e-6)
          << static_cast<int>(activation);
    }
  }
}

TEST(BiasActivation, ExtremesHaveTheLimits) {
  Inputs<float> in(1, 4);
  in.x = {-1e4f, 1e4f, 0, std::numeric_limits<float>::quiet_NaN()};
  in.dy.assign(4, 1);
  for (Activation activation : kAll) {
    if (activation == Activation::kIdentity) continue;
    const std::vector<float> y = Forward(in, activation, false);
    EXPECT_EQ(y[0], 0);
    EXPECT_EQ(y[1], 1e4f);
    EXPECT_EQ(y[2], 0);
    EXPECT_TRUE(std::isnan(y[3]));
    const std::vector<float> dx = Backward(in, activation, false).dx;
    EXPECT_EQ(dx[0], 0);
    EXPECT_EQ(dx[1], 1);
    EXPECT_EQ(dx[2], activation == Activation::kRelu ? 0 : 0.5f);
  }
}

TEST(BiasActivation, InPlace) {
  const Inputs<float> in(5, 37);
  std::vector<float> y = in.x, dx = in.dy;
  BiasActivationForward({.x = y.data(),
                         .bias = in.bias.data(),
                         .y = y.data(),
                         .activation = Activation::kGelu,
                         .tokens = 5,
                         .features = 37,
                         .dtype = DType::kFloat32},
                        Stream());
  EXPECT_EQ(y, Forward(in, Activation::kGelu));
  BiasActivationBackward({.x = in.x.data(),
                          .bias = in.bias.data(),
                          .dy = dx.data(),
                          .dx = dx.data(),
                          .dbias = nullptr,
                          .dbias_beta = 0,
                          .workspace = nullptr,
                          .activation = Activation::kGelu,
                          .tokens = 5,
                          .features = 37,
                          .dtype = DType::kFloat32},
                         Stream());
  EXPECT_EQ(dx, Backward(in, Activation::kGelu).dx);
}

TEST(BiasActivation, EmptyBatch) {
  const Inputs<float> in(0, 5);
  for (Activation activation : kAll) {
    EXPECT_TRUE(Forward(in, activation).empty());
    EXPECT_EQ(Backward(in, activation).dbias, std::vector<float>(5, 0));
    EXPECT_EQ(Backward(in, activation, true, true).dbias, in.old_dbias);
  }
}

// No random input is within a step of relu's corner.
TEST(BiasActivation, GradientIsTheDerivative) {
  const Inputs<double> in(19, 5);
  for (Activation activation : kAll) {
    const Gradients<double> grads = Backward(in, activation);
    EXPECT_LT(GradCheck(
                  [&](const std::vector<double>& x) {
                    Inputs<double> moved = in;
                    moved.x = x;
                    return Dot(Forward(moved, activation), in.dy);
                  },
                  in.x, grads.dx),
              1e-8)
        << static_cast<int>(activation);
    EXPECT_LT(GradCheck(
                  [&](const std::vector<double>& bias) {
                    Inputs<double> moved = in;
                    moved.bias = bias;
                    return Dot(Forward(moved, activation), in.dy);
                  },
                  in.bias, grads.dbias),
              1e-8)
        << static_cast<int>(activation);
  }
}

TEST(BiasActivation, BiasGradientAccumulates) {
  const Inputs<double> in(67, 11);
  for (Activation activation : kAll) {
    const Gradients<double> written = Backward(in, activation);
    const Gradients<double> added = Backward(in, activation, true, true);
    EXPECT_EQ(added.dx, written.dx);
    for (int64_t f = 0; f < in.features; ++f)
      EXPECT_NEAR(added.dbias[f], in.old_dbias[f] + written.dbias[f], 1e-12);
  }
}

TEST(BiasActivation, ThreadsDoNotChangeABit) {
  const Inputs<float> in(1031, 67);
  for (Activation activation : kAll) {
    SetNumThreads(1);
    const std::vector<float> y = Forward(in, activation);
    const Gradients<float> grads = Backward(in, activation);
    SetNumThreads(3);
    EXPECT_EQ(Forward(in, activation), y);
    EXPECT_EQ(Backward(in, activation).dx, grads.dx);
    EXPECT_EQ(Backward(in, activation).dbias, grads.dbias);
  }
}

TEST(BiasActivationDeathTest, IdentityWithDx) {
  float v = 1;
  EXPECT_DEATH(BiasActivationBackward({.x = nullptr,
                                       .bias = nullptr,
                                       .dy = &v,
                                       .dx = &v,
                                       .dbias = nullptr,
                                       .dbias_beta = 0,
                                       .workspace = nullptr,
                                       .activation = Activation::kIdentity,
                                       .tokens = 1,
                                       .features = 1,
                                       .dtype = DType::kFloat32},
                                      Stream()),
               "the identity's dx is dy");
}

}  // namespace
}  // namespace mimo::kernels
