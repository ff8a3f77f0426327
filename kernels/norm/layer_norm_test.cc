#include "kernels/norm/layer_norm.h"

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
        bias(RandomVector<T>(hidden, 4)),
        dy(RandomVector<T>(tokens * hidden, 5)),
        old_dx(RandomVector<T>(tokens * hidden, 6)),
        old_dweight(RandomVector<T>(hidden, 7)),
        old_dbias(RandomVector<T>(hidden, 8)) {}
  int64_t tokens, hidden;
  std::vector<T> x, residual, weight, bias, dy, old_dx, old_dweight, old_dbias;
};

template <typename T>
struct Outputs {
  std::vector<T> sum, y, mean, rstd;
};

template <typename T>
Outputs<T> Forward(const Inputs<T>& in, bool with_residual = false) {
  Outputs<T> out{Poisoned<T>(in.x.size()), Poisoned<T>(in.x.size()),
                 Poisoned<T>(in.tokens), Poisoned<T>(in.tokens)};
  LayerNormForward({.x = in.x.data(),
                    .residual = with_residual ? in.residual.data() : nullptr,
                    .weight = in.weight.data(),
                    .bias = in.bias.data(),
                    .sum = with_residual ? out.sum.data() : nullptr,
                    .y = out.y.data(),
                    .mean = out.mean.data(),
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
  std::vector<T> dx, dweight, dbias;
};

// Gradients are added to when `accumulate`, else written over NaN.
template <typename T>
Gradients<T> Backward(const Inputs<T>& in, bool accumulate = false) {
  const Outputs<T> out = Forward(in);
  Gradients<T> grads{Poisoned<T>(in.x.size()), Poisoned<T>(in.hidden),
                     Poisoned<T>(in.hidden)};
  if (accumulate) grads = {in.old_dx, in.old_dweight, in.old_dbias};
  const int64_t bytes =
      LayerNormBackwardWorkspaceBytes(in.tokens, in.hidden, DTypeOf<T>::value);
  std::vector<T> workspace = Poisoned<T>(bytes / sizeof(T));
  const float beta = accumulate ? 1 : 0;
  LayerNormBackward({.x = in.x.data(),
                     .weight = in.weight.data(),
                     .mean = out.mean.data(),
                     .rstd = out.rstd.data(),
                     .dy = in.dy.data(),
                     .dx = grads.dx.data(),
                     .accumulate_dx = accumulate,
                     .dweight = grads.dweight.data(),
                     .dbias = grads.dbias.data(),
                     .dweight_beta = beta,
                     .dbias_beta = beta,
                     .workspace = workspace.data(),
                     .tokens = in.tokens,
                     .hidden = in.hidden,
                     .dtype = DTypeOf<T>::value},
                    Stream());
  return grads;
}

TEST(LayerNorm, ForwardIsTheFormula) {
  const Inputs<double> in(5, 7);
  for (bool with_residual : {false, true}) {
    const Outputs<double> out = Forward(in, with_residual);
    for (int64_t t = 0; t < in.tokens; ++t) {
      double mean = 0, variance = 0;
      std::vector<double> s(in.hidden);
      for (int64_t h = 0; h < in.hidden; ++h) {
        const int64_t i = t * in.hidden + h;
        s[h] = in.x[i] + (with_residual ? in.residual[i] : 0);
        mean += s[h] / in.hidden;
        if (with_residual) {
          EXPECT_EQ(out.sum[i], s[h]);
        }
      }
      for (double v : s) variance += (v - mean) * (v - mean) / in.hidden;
      const double r = 1 / std::sqrt(variance + kEps);
      EXPECT_NEAR(out.mean[t], mean, 1e-14);
      EXPECT_NEAR(out.rstd[t], r, 1e-13 * r);
      for (int64_t h = 0; h < in.hidden; ++h) {
        EXPECT_NEAR(out.y[t * in.hidden + h],
                    (s[h] - mean) * r * in.weight[h] + in.bias[h], 1e-13);
      }
    }
  }
}

// float32 rounds to 2^-24 = 6e-8. A sum of n terms in eight lanes errs by less
// than n/8 of that, typically sqrt(n/8); outputs then take some five roundings.
// 2e-6 leaves both room up to n = 4099.
TEST(LayerNorm, Float32IsNearFloat64) {
  for (auto [tokens, hidden] : {std::pair<int64_t, int64_t>{1, 4099},
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
      EXPECT_LT(MaxAbs(out32.mean, out64.mean), 2e-6);
    }
    const Gradients<float> grads32 = Backward(in32);
    const Gradients<double> grads64 = Backward(in64);
    EXPECT_LT(RelativeL2(grads32.dx, grads64.dx), 2e-6) << tokens;
    EXPECT_LT(RelativeL2(grads32.dweight, grads64.dweight), 2e-6) << tokens;
    EXPECT_LT(RelativeL2(grads32.dbias, grads64.dbias), 2e-6) << tokens;
  }
}

// A large mean: two passes keep the variance. The inputs themselves are rounded
// to 1000 * 2^-24, alike in both dtypes.
TEST(LayerNorm, LargeMean) {
  Inputs<float> in32(3, 1021);
  Inputs<double> in64(3, 1021);
  for (size_t i = 0; i < in32.x.size(); ++i) {
    in32.x[i] += 1000;
    in64.x[i] = in32.x[i];
  }
  // The mean is off by some 2^-24 * 1000 = 6e-5 beside a deviation of 0.6.
  EXPECT_LT(RelativeL2(Forward(in32).y, Forward(in64).y), 1e-3);
}

// One column: n = 0, so y = b and dw = 0. dx is the rounding of w dy (2^-25 of
// it, seen by a fused multiply-add) times r = 1 / sqrt(eps) = 316.
TEST(LayerNorm, OneColumn) {
  const Inputs<float> in(37, 1);
  EXPECT_EQ(Forward(in).y, std::vector<float>(37, in.bias[0]));
  const Gradients<float> grads = Backward(in);
  EXPECT_LT(MaxAbs(grads.dx, std::vector<float>(37, 0)), 316 * 0x1p-25);
  EXPECT_EQ(grads.dweight[0], 0);
}

TEST(LayerNorm, EmptyBatch) {
  const Inputs<float> in(0, 5);
  EXPECT_TRUE(Forward(in).y.empty());
  EXPECT_EQ(Backward(in).dweight, std::vector<float>(5, 0));
  EXPECT_EQ(Backward(in).dbias, std::vector<float>(5, 0));
  EXPECT_EQ(Backward(in, /*accumulate=*/true).dbias, in.old_dbias);
}

TEST(LayerNorm, GradientIsTheDerivative) {
  const Inputs<double> in(19, 5);  // two chunks of rows
  const Gradients<double> grads = Backward(in);
  const auto check = [&](std::vector<double> Inputs<double>::*member,
                         const std::vector<double>& gradient) {
    return GradCheck(
        [&](const std::vector<double>& value) {
          Inputs<double> moved = in;
          moved.*member = value;
          return Dot(Forward(moved).y, in.dy);
        },
        in.*member, gradient);
  };
  EXPECT_LT(check(&Inputs<double>::x, grads.dx), 1e-8);
  EXPECT_LT(check(&Inputs<double>::weight, grads.dweight), 1e-8);
  EXPECT_LT(check(&Inputs<double>::bias, grads.dbias), 1e-8);
}

TEST(LayerNorm, GradientsAccumulate) {
  const Inputs<double> in(37, 11);
  const Gradients<double> written = Backward(in);
  const Gradients<double> added = Backward(in, /*accumulate=*/true);
  for (size_t i = 0; i < in.x.size(); ++i)
    EXPECT_NEAR(added.dx[i], in.old_dx[i] + written.dx[i], 1e-12);
  for (int64_t h = 0; h < in.hidden; ++h) {
    EXPECT_NEAR(added.dweight[h], in.old_dweight[h] + written.dweight[h],
                1e-12);
    EXPECT_NEAR(added.dbias[h], in.old_dbias[h] + written.dbias[h], 1e-12);
  }
}

TEST(LayerNorm, EachGradientAlone) {
  const Inputs<float> in(23, 9);
  const Outputs<float> out = Forward(in);
  const Gradients<float> all = Backward(in);
  Gradients<float> alone{Poisoned<float>(in.x.size()), Poisoned<float>(9),
                         Poisoned<float>(9)};
  std::vector<float> workspace = Poisoned<float>(
      LayerNormBackwardWorkspaceBytes(23, 9, DType::kFloat32) / sizeof(float));
  LayerNormBackwardArgs args{.x = in.x.data(),
                             .weight = in.weight.data(),
                             .mean = out.mean.data(),
                             .rstd = out.rstd.data(),
                             .dy = in.dy.data(),
                             .dx = alone.dx.data(),
                             .accumulate_dx = false,
                             .dweight = nullptr,
                             .dbias = nullptr,
                             .dweight_beta = 0,
                             .dbias_beta = 0,
                             .workspace = nullptr,
                             .tokens = 23,
                             .hidden = 9,
                             .dtype = DType::kFloat32};
  LayerNormBackward(args, Stream());
  args.dx = nullptr;
  args.workspace = workspace.data();
  args.dweight = alone.dweight.data();
  LayerNormBackward(args, Stream());
  args.dweight = nullptr;
  args.dbias = alone.dbias.data();
  LayerNormBackward(args, Stream());
  EXPECT_EQ(alone.dx, all.dx);
  EXPECT_EQ(alone.dweight, all.dweight);
  EXPECT_EQ(alone.dbias, all.dbias);
}

TEST(LayerNorm, ThreadsDoNotChangeABit) {
  const Inputs<float> in(1031, 67);
  SetNumThreads(1);
  const Outputs<float> out = Forward(in, true);
  const Gradients<float> grads = Backward(in);
  SetNumThreads(3);
  EXPECT_EQ(Forward(in, true).y, out.y);
  EXPECT_EQ(Backward(in).dx, grads.dx);
  EXPECT_EQ(Backward(in).dweight, grads.dweight);
  EXPECT_EQ(Backward(in).dbias, grads.dbias);
}

}  // namespace
}  // namespace mimo::kernels
