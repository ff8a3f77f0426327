#include "kernels/activation/bias_activation.h"

#include <cmath>
#include <limits>
#include <numbers>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/backend.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

using Values = std::vector<double>;

class BiasActivationTest : public BackendTest {};
MIMO_ON_BACKENDS(BiasActivationTest);

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

// x spans [-8, 8): both tails of every activation.
struct Inputs {
  Inputs(int64_t tokens, int64_t features)
      : tokens(tokens),
        features(features),
        x(RandomValues(tokens * features, 1, 8)),
        bias(RandomValues(features, 2)),
        dy(RandomValues(tokens * features, 3)),
        old_dbias(RandomValues(features, 4)) {}
  int64_t tokens, features;
  Values x, bias, dy, old_dbias;
};

struct Outputs {
  Values y, z;
};

Outputs ForwardBoth(const Backend& on, const Inputs& in, Activation activation,
                    bool with_bias) {
  const Array x(on, in.x), bias(on, in.bias);
  const Array y = Array::Poisoned(on, in.x.size());
  const Array z = Array::Poisoned(on, in.x.size());
  BiasActivationForward({.x = x.data(),
                         .bias = with_bias ? bias.data() : nullptr,
                         .y = y.data(),
                         .z = z.data(),
                         .activation = activation,
                         .tokens = in.tokens,
                         .features = in.features,
                         .dtype = on.dtype},
                        StreamOf(on));
  return {y.Values(), z.Values()};
}

// y alone, in place of x when `in_place`.
Values Forward(const Backend& on, const Inputs& in, Activation activation,
               bool with_bias = true, bool in_place = false) {
  const Array x(on, in.x), bias(on, in.bias);
  const Array y = in_place ? x : Array::Poisoned(on, in.x.size());
  BiasActivationForward({.x = x.data(),
                         .bias = with_bias ? bias.data() : nullptr,
                         .y = y.data(),
                         .activation = activation,
                         .tokens = in.tokens,
                         .features = in.features,
                         .dtype = on.dtype},
                        StreamOf(on));
  return y.Values();
}

struct Gradients {
  Values dx, dbias;
};

struct How {
  bool with_bias = true;
  bool want_dbias = true;
  bool accumulate = false;  // dbias is added to, else written over NaN
  bool in_place = false;    // dx is dy
};

Gradients Backward(const Backend& on, const Inputs& in, Activation activation,
                   const How& how = {}) {
  const bool identity = activation == Activation::kIdentity;
  const DType accumulator = AccumulatorOf(on.dtype);
  const Array x(on, in.x), bias(on, in.bias), dy(on, in.dy);
  const Array dx = how.in_place ? dy : Array::Poisoned(on, in.x.size());
  const Array dbias = how.accumulate
                          ? Array(on, accumulator, in.old_dbias)
                          : Array::Poisoned(on, accumulator, in.features);
  const Array workspace =
      Array::Workspace(on, BiasActivationBackwardWorkspaceBytes(
                               in.tokens, in.features, on.dtype, on.device));
  BiasActivationBackward(
      {.x = identity ? nullptr : x.data(),
       .bias = how.with_bias ? bias.data() : nullptr,
       .dy = dy.data(),
       .dx = identity ? nullptr : dx.data(),
       .dbias = how.want_dbias ? dbias.data() : nullptr,
       .dbias_beta = how.accumulate ? 1.0f : 0.0f,
       .workspace = how.want_dbias ? workspace.data() : nullptr,
       .activation = activation,
       .tokens = in.tokens,
       .features = in.features,
       .dtype = on.dtype},
      StreamOf(on));
  return {identity ? in.dy : dx.Values(), dbias.Values()};
}

// The largest |a - b| beyond one rounding of b to the dtype.
double Excess(DType dtype, const Values& a, const Values& b) {
  CHECK_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double excess =
        std::fabs(a[i] - b[i]) - Roundoff(dtype) * std::fabs(b[i]);
    if (!(excess <= largest)) largest = excess;
    if (std::isnan(excess)) break;
  }
  return largest;
}

TEST(BiasActivation, ForwardIsTheFormula) {
  const Inputs in(7, 11);
  for (Activation activation : kAll) {
    for (bool with_bias : {false, true}) {
      const Values y = Forward(Oracle(), in, activation, with_bias);
      for (size_t i = 0; i < y.size(); ++i) {
        const double z = in.x[i] + (with_bias ? in.bias[i % in.features] : 0);
        EXPECT_NEAR(y[i], Formula(activation, z), 1e-14)
            << static_cast<int>(activation) << " at " << z;
      }
    }
  }
}

// In float32 rounding z = x + b (2^-24 |z|, |z| < 9) moves y by up to 1.13
// times 6e-7; the functions add their few ulp of y, 3e-7 |y| where a GPU
// divides approximately: 4e-6 in all. The inner argument of gelu_tanh, up to
// 50, is rounded too, where tanh is flat. An output is rounded once to its
// dtype. dbias is a float32 sum of such values, of dx rounded on the CPU alone.
TEST_P(BiasActivationTest, IsNearFloat64) {
  const DType dtype = backend().dtype;
  for (auto [tokens, features] : {std::pair<int64_t, int64_t>{1, 1},
                                  {1, 4099},
                                  {1031, 13},
                                  {67, 64},
                                  {5, 2056},
                                  {3001, 128}}) {
    SCOPED_TRACE(testing::Message() << tokens << " x " << features);
    const Inputs in(tokens, features);
    for (Activation activation : kAll) {
      SCOPED_TRACE(static_cast<int>(activation));
      for (bool with_bias : {false, true}) {
        const Outputs out = ForwardBoth(backend(), in, activation, with_bias);
        const Outputs oracle = ForwardBoth(Oracle(), in, activation, with_bias);
        EXPECT_LT(Excess(dtype, out.y, oracle.y), 4e-6);
        EXPECT_LT(Excess(dtype, out.z, oracle.z), 1e-6);
        EXPECT_EQ(Forward(backend(), in, activation, with_bias), out.y);
      }
      const Gradients grads = Backward(backend(), in, activation);
      const Gradients oracle = Backward(Oracle(), in, activation);
      EXPECT_LT(Excess(dtype, grads.dx, oracle.dx), 4e-6);
      EXPECT_LT(RelativeL2(grads.dbias, oracle.dbias), 2e-6);
    }
  }
}

TEST_P(BiasActivationTest, ExtremesHaveTheLimits) {
  for (int64_t features : {4, 8}) {  // single and 16-byte accesses
    Inputs in(1, features);
    // 2^13: exact in bfloat16.
    const double values[] = {-8192, 8192, 0,
                             std::numeric_limits<double>::quiet_NaN()};
    for (int64_t f = 0; f < features; ++f) in.x[f] = values[f % 4];
    in.dy.assign(features, 1);
    for (Activation activation : kAll) {
      if (activation == Activation::kIdentity) continue;
      const Values y = Forward(backend(), in, activation, false);
      EXPECT_EQ(y[0], 0);
      EXPECT_EQ(y[1], 8192);
      EXPECT_EQ(y[2], 0);
      EXPECT_TRUE(std::isnan(y[3]));
      const Values dx =
          Backward(backend(), in, activation, {.with_bias = false}).dx;
      EXPECT_EQ(dx[0], 0);
      EXPECT_EQ(dx[1], 1);
      EXPECT_EQ(dx[2], activation == Activation::kRelu ? 0 : 0.5);
    }
  }
}

TEST_P(BiasActivationTest, InPlace) {
  for (int64_t features : {37, 64}) {
    const Inputs in(50, features);
    for (Activation activation : kAll) {
      EXPECT_EQ(Forward(backend(), in, activation, true, /*in_place=*/true),
                Forward(backend(), in, activation));
      EXPECT_EQ(Backward(backend(), in, activation, {.in_place = true}).dx,
                Backward(backend(), in, activation).dx);
    }
  }
}

TEST_P(BiasActivationTest, GradientWithoutBiasGradient) {
  const Inputs in(50, 64);
  for (Activation activation : kAll) {
    EXPECT_EQ(Backward(backend(), in, activation, {.want_dbias = false}).dx,
              Backward(backend(), in, activation).dx);
  }
}

TEST_P(BiasActivationTest, EmptyBatch) {
  const Inputs in(0, 5);
  for (Activation activation : kAll) {
    EXPECT_TRUE(Forward(backend(), in, activation).empty());
    EXPECT_EQ(Backward(backend(), in, activation).dbias, Values(5, 0));
    EXPECT_EQ(Backward(backend(), in, activation, {.accumulate = true}).dbias,
              in.old_dbias);
  }
}

// No random input is within a step of relu's corner.
TEST(BiasActivation, GradientIsTheDerivative) {
  const Inputs in(19, 5);
  for (Activation activation : kAll) {
    const Gradients grads = Backward(Oracle(), in, activation);
    EXPECT_LT(GradCheck(
                  [&](const Values& x) {
                    Inputs moved = in;
                    moved.x = x;
                    return Dot(Forward(Oracle(), moved, activation), in.dy);
                  },
                  in.x, grads.dx),
              1e-8)
        << static_cast<int>(activation);
    EXPECT_LT(GradCheck(
                  [&](const Values& bias) {
                    Inputs moved = in;
                    moved.bias = bias;
                    return Dot(Forward(Oracle(), moved, activation), in.dy);
                  },
                  in.bias, grads.dbias),
              1e-8)
        << static_cast<int>(activation);
  }
}

// dbias + old: one more rounding of float32.
TEST_P(BiasActivationTest, BiasGradientAccumulates) {
  const Inputs in(67, 11);
  for (Activation activation : kAll) {
    const Gradients written = Backward(backend(), in, activation);
    const Gradients added =
        Backward(backend(), in, activation, {.accumulate = true});
    EXPECT_EQ(added.dx, written.dx);
    Values sum = in.old_dbias;
    for (int64_t f = 0; f < in.features; ++f) sum[f] += written.dbias[f];
    EXPECT_LT(RelativeL2(added.dbias, sum), 1e-6);
  }
}

// The same bits again, whatever the number of threads.
TEST_P(BiasActivationTest, IsDeterministic) {
  const Inputs in(1031, 67);
  for (Activation activation : kAll) {
    SetNumThreads(1);
    const Values y = Forward(backend(), in, activation);
    const Gradients grads = Backward(backend(), in, activation);
    SetNumThreads(3);
    EXPECT_EQ(Forward(backend(), in, activation), y);
    EXPECT_EQ(Backward(backend(), in, activation).dx, grads.dx);
    EXPECT_EQ(Backward(backend(), in, activation).dbias, grads.dbias);
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
