#include "kernels/norm/rms_norm.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

constexpr double kEps = 1e-5;

template <typename T>
struct Inputs {
  Inputs(int64_t tokens, int64_t hidden)
      : tokens(tokens),
        hidden(hidden),
        x(RandomVector<T>(tokens * hidden, 1)),
        residual(RandomVector<T>(tokens * hidden, 2)),
        weight(RandomVector<T>(hidden, 3)),
        dy(RandomVector<T>(tokens * hidden, 4)),
        old_dx(RandomVector<T>(tokens * hidden, 5)),
        old_dweight(RandomVector<T>(hidden, 6)) {}
  int64_t tokens, hidden;
  std::vector<T> x, residual, weight, dy, old_dx, old_dweight;
};

template <typename T>
struct Outputs {
  std::vector<T> sum, y, rstd;
};

template <typename T>
Outputs<T> Forward(const Inputs<T>& in, bool with_residual = false) {
  Outputs<T> out{Poisoned<T>(in.x.size()), Poisoned<T>(in.x.size()),
                 Poisoned<T>(in.tokens)};
  RmsNormForward({.x = in.x.data(),
                  .residual = with_residual ? in.residual.data() : nullptr,
                  .weight = in.weight.data(),
                  .sum = with_residual ? out.sum.data() : nullptr,
                  .y = out.y.data(),
                  .rstd = out.rstd.data(),
                  .tokens = in.tokens,
                  .hidden = in.hidden,
                  .eps = kEps,
                  .dtype = DTypeOf<T>::value},
                 Stream());
  return out;
}

template <typename T>
struct Gradients {
  std::vector<T> dx, dweight;
};

// dx and dweight are added to when `accumulate`, else written over NaN.
template <typename T>
Gradients<T> Backward(const Inputs<T>& in, bool accumulate = false) {
  const Outputs<T> out = Forward(in);
  Gradients<T> grads{Poisoned<T>(in.x.size()), Poisoned<T>(in.hidden)};
  if (accumulate) grads = {in.old_dx, in.old_dweight};
  const int64_t bytes =
      RmsNormBackwardWorkspaceBytes(in.tokens, in.hidden, DTypeOf<T>::value);
  std::vector<T> workspace = Poisoned<T>(bytes / sizeof(T));
  RmsNormBackward({.x = in.x.data(),
                   .weight = in.weight.data(),
                   .rstd = out.rstd.data(),
                   .dy = in.dy.data(),
                   .dx = grads.dx.data(),
                   .accumulate_dx = accumulate,
                   .dweight = grads.dweight.data(),
                   .dweight_beta = accumulate ? 1.0f : 0.0f,
                   .workspace = workspace.data(),
                   .tokens = in.tokens,
                   .hidden = in.hidden,
                   .dtype = DTypeOf<T>::value},
                  Stream());
  return grads;
}

TEST(RmsNorm, ForwardIsTheFormula) {
  const Inputs<double> in(5, 7);
  for (bool with_residual : {false, true}) {
    const Outputs<double> out = Forward(in, with_residual);
    for (int64_t t = 0; t < in.tokens; ++t) {
      double squares = 0;
      std::vector<double> s(in.hidden);
      for (int64_t h = 0; h < in.hidden; ++h) {
        const int64_t i = t * in.hidden + h;
        s[h] = in.x[i] + (with_residual ? in.residual[i] : 0);
        squares += s[h] * s[h];
        if (with_residual) {
          EXPECT_EQ(out.sum[i], s[h]);
        }
      }
      const double r = 1 / std::sqrt(squares / in.hidden + kEps);
      EXPECT_NEAR(out.rstd[t], r, 1e-14 * r);
      for (int64_t h = 0; h < in.hidden; ++h)
        EXPECT_NEAR(out.y[t * in.hidden + h], s[h] * r * in.weight[h], 1e-14);
    }
  }
}

// float32 rounds to 2^-24 = 6e-8. A sum of n terms of one sign, in eight lanes,
// errs by less than n/8 of that, typically sqrt(n/8); outputs then take some
// four roundings. 2e-6 leaves both room up to n = 4099.
TEST(RmsNorm, Float32IsNearFloat64) {
  for (auto [tokens, hidden] : {std::pair<int64_t, int64_t>{1, 1},
                                {3, 1},
                                {1, 4099},
                                {17, 13},
                                {1031, 31},
                                {67, 256}}) {
    const Inputs<float> in32(tokens, hidden);
    const Inputs<double> in64(tokens, hidden);
    for (bool with_residual : {false, true}) {
      const Outputs<float> out32 = Forward(in32, with_residual);
      const Outputs<double> out64 = Forward(in64, with_residual);
      EXPECT_LT(RelativeL2(out32.y, out64.y), 2e-6) << tokens << "x" << hidden;
      EXPECT_LT(RelativeL2(out32.rstd, out64.rstd), 2e-6);
    }
    if (hidden == 1) continue;  // dx is 0 up to eps: below
    const Gradients<float> grads32 = Backward(in32);
    const Gradients<double> grads64 = Backward(in64);
    EXPECT_LT(RelativeL2(grads32.dx, grads64.dx), 2e-6) << tokens;
    EXPECT_LT(RelativeL2(grads32.dweight, grads64.dweight), 2e-6) << tokens;
  }
}

// With one column y is sign(x) w: its gradient cancels, and what is left is
// rounding of terms of size r |w dy|.
TEST(RmsNorm, OneColumnHasNearlyNoGradient) {
  const Gradients<float> grads32 = Backward(Inputs<float>(37, 1));
  const Gradients<double> grads64 = Backward(Inputs<double>(37, 1));
  const Outputs<double> out = Forward(Inputs<double>(37, 1));
  for (int64_t t = 0; t < 37; ++t)
    EXPECT_NEAR(grads32.dx[t], grads64.dx[t], 1e-6 * out.rstd[t]);
}

TEST(RmsNorm, EmptyBatch) {
  const Inputs<float> in(0, 5);
  EXPECT_TRUE(Forward(in).y.empty());
  EXPECT_EQ(Backward(in).dweight, std::vector<float>(5, 0));
  EXPECT_EQ(Backward(in, /*accumulate=*/true).dweight, in.old_dweight);
}

TEST(RmsNorm, GradientIsTheDerivative) {
  const Inputs<double> in(19, 5);  // two chunks of rows
  const Gradients<double> grads = Backward(in);
  EXPECT_LT(GradCheck(
                [&](const std::vector<double>& x) {
                  Inputs<double> moved = in;
                  moved.x = x;
                  return Dot(Forward(moved).y, in.dy);
                },
                in.x, grads.dx),
            1e-8);
  EXPECT_LT(GradCheck(
                [&](const std::vector<double>& weight) {
                  Inputs<double> moved = in;
                  moved.weight = weight;
                  return Dot(Forward(moved).y, in.dy);
                },
                in.weight, grads.dweight),
            1e-8);
}

TEST(RmsNorm, GradientsAccumulate) {
  const Inputs<double> in(37, 11);
  const Gradients<double> written = Backward(in);
  const Gradients<double> added = Backward(in, /*accumulate=*/true);
  for (size_t i = 0; i < in.x.size(); ++i)
    EXPECT_NEAR(added.dx[i], in.old_dx[i] + written.dx[i], 1e-12);
  for (int64_t h = 0; h < in.hidden; ++h)
    EXPECT_NEAR(added.dweight[h], in.old_dweight[h] + written.dweight[h],
                1e-12);
}

TEST(RmsNorm, EitherGradientAlone) {
  const Inputs<float> in(23, 9);
  const Outputs<float> out = Forward(in);
  const Gradients<float> both = Backward(in);
  Gradients<float> alone{Poisoned<float>(in.x.size()), Poisoned<float>(9)};
  std::vector<float> workspace = Poisoned<float>(
      RmsNormBackwardWorkspaceBytes(23, 9, DType::kFloat32) / sizeof(float));
  RmsNormBackwardArgs args{.x = in.x.data(),
                           .weight = in.weight.data(),
                           .rstd = out.rstd.data(),
                           .dy = in.dy.data(),
                           .dx = alone.dx.data(),
                           .accumulate_dx = false,
                           .dweight = nullptr,
                           .dweight_beta = 0,
                           .workspace = nullptr,
                           .tokens = 23,
                           .hidden = 9,
                           .dtype = DType::kFloat32};
  RmsNormBackward(args, Stream());
  args.dx = nullptr;
  args.dweight = alone.dweight.data();
  args.workspace = workspace.data();
  RmsNormBackward(args, Stream());
  EXPECT_EQ(alone.dx, both.dx);
  EXPECT_EQ(alone.dweight, both.dweight);
}

TEST(RmsNorm, ThreadsDoNotChangeABit) {
  const Inputs<float> in(1031, 67);
  SetNumThreads(1);
  const Outputs<float> out = Forward(in, true);
  const Gradients<float> grads = Backward(in);
  SetNumThreads(3);
  EXPECT_EQ(Forward(in, true).y, out.y);
  EXPECT_EQ(Backward(in).dx, grads.dx);
  EXPECT_EQ(Backward(in).dweight, grads.dweight);
}

TEST(RmsNormDeathTest, ResidualWithoutSum) {
  float v = 1;
  EXPECT_DEATH(RmsNormForward({.x = &v,
                               .residual = &v,
                               .weight = &v,
                               .sum = nullptr,
                               .y = &v,
                               .rstd = &v,
                               .tokens = 1,
                               .hidden = 1,
                               .eps = kEps,
                               .dtype = DType::kFloat32},
                              Stream()),
               "a sum goes with a residual");
}

}  // namespace
}  // namespace mimo::kernels
