#include "kernels/norm/rms_norm.h"

#include <cmath>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/backend.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

using Values = std::vector<double>;

constexpr double kEps = 1e-5;

class RmsNormTest : public BackendTest {};
MIMO_ON_BACKENDS(RmsNormTest);

struct Inputs {
  Inputs(int64_t tokens, int64_t hidden)
      : tokens(tokens),
        hidden(hidden),
        x(RandomValues(tokens * hidden, 1)),
        residual(RandomValues(tokens * hidden, 2)),
        weight(RandomValues(hidden, 3)),
        dy(RandomValues(tokens * hidden, 4)),
        old_dx(RandomValues(tokens * hidden, 5)),
        old_dweight(RandomValues(hidden, 6)) {}
  int64_t tokens, hidden;
  Values x, residual, weight, dy, old_dx, old_dweight;
};

struct Outputs {
  Values sum, y, rstd;
};

Outputs Forward(const Backend& on, const Inputs& in,
                bool with_residual = false) {
  const Array x(on, in.x), residual(on, in.residual), weight(on, in.weight);
  const Array sum = Array::Poisoned(on, with_residual ? in.x.size() : 0);
  const Array y = Array::Poisoned(on, in.x.size());
  const Array rstd = Array::Poisoned(on, AccumulatorOf(on.dtype), in.tokens);
  RmsNormForward({.x = x.data(),
                  .residual = with_residual ? residual.data() : nullptr,
                  .weight = weight.data(),
                  .sum = sum.data(),
                  .y = y.data(),
                  .rstd = rstd.data(),
                  .tokens = in.tokens,
                  .hidden = in.hidden,
                  .eps = kEps,
                  .dtype = on.dtype},
                 StreamOf(on));
  return {sum.Values(), y.Values(), rstd.Values()};
}

enum class Want { kBoth, kDx, kDweight };

struct Gradients {
  Values dx, dweight;
};

// Added to when `accumulate`, else written over NaN.
Gradients Backward(const Backend& on, const Inputs& in, bool accumulate = false,
                   Want want = Want::kBoth) {
  const DType statistic = AccumulatorOf(on.dtype);
  const Array x(on, in.x), weight(on, in.weight), dy(on, in.dy);
  const Array rstd(on, statistic, Forward(on, in).rstd);
  const Array dx =
      accumulate ? Array(on, in.old_dx) : Array::Poisoned(on, in.x.size());
  const Array dweight = accumulate ? Array(on, statistic, in.old_dweight)
                                   : Array::Poisoned(on, statistic, in.hidden);
  const Array workspace = Array::Workspace(
      on,
      RmsNormBackwardWorkspaceBytes(in.tokens, in.hidden, on.dtype, on.device));
  RmsNormBackward({.x = x.data(),
                   .weight = weight.data(),
                   .rstd = rstd.data(),
                   .dy = dy.data(),
                   .dx = want == Want::kDweight ? nullptr : dx.data(),
                   .accumulate_dx = accumulate,
                   .dweight = want == Want::kDx ? nullptr : dweight.data(),
                   .dweight_beta = accumulate ? 1.0f : 0.0f,
                   .workspace = want == Want::kDx ? nullptr : workspace.data(),
                   .tokens = in.tokens,
                   .hidden = in.hidden,
                   .dtype = on.dtype},
                  StreamOf(on));
  return {dx.Values(), dweight.Values()};
}

TEST(RmsNorm, ForwardIsTheFormula) {
  const Inputs in(5, 7);
  for (bool with_residual : {false, true}) {
    const Outputs out = Forward(Oracle(), in, with_residual);
    for (int64_t t = 0; t < in.tokens; ++t) {
      double squares = 0;
      Values s(in.hidden);
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

// Sums are float32: n terms of one sign, in eight lanes or more, err by less
// than n/8 of 2^-24, typically sqrt(n/8)/3, and some four roundings follow;
// 2e-6 leaves room up to n = 32768. In bfloat16 an output is rounded once more,
// by at most 2^-8, and y twice with a residual: s, which is kept rounded, then
// y.
double Tolerance(DType dtype) {
  return 2e-6 + (dtype == DType::kBFloat16 ? 2 * Roundoff(dtype) : 0);
}

void ExpectNearFloat64(const Backend& backend, int64_t tokens, int64_t hidden,
                       double tolerance) {
  SCOPED_TRACE(testing::Message() << tokens << " x " << hidden);
  const Inputs in(tokens, hidden);
  for (bool with_residual : {false, true}) {
    const Outputs out = Forward(backend, in, with_residual);
    const Outputs oracle = Forward(Oracle(), in, with_residual);
    EXPECT_LT(RelativeL2(out.y, oracle.y), tolerance);
    EXPECT_LT(RelativeL2(out.rstd, oracle.rstd), tolerance);
    EXPECT_LT(RelativeL2(out.sum, oracle.sum), tolerance);
  }
  if (hidden == 1) return;  // dx is 0 up to eps: below
  const Gradients grads = Backward(backend, in);
  const Gradients oracle = Backward(Oracle(), in);
  EXPECT_LT(RelativeL2(grads.dx, oracle.dx), tolerance);
  EXPECT_LT(RelativeL2(grads.dweight, oracle.dweight), tolerance);
}

TEST_P(RmsNormTest, IsNearFloat64) {
  for (auto [tokens, hidden] : {std::pair<int64_t, int64_t>{1, 1},
                                {3, 1},
                                {1, 4099},
                                {17, 13},
                                {1031, 31},
                                {67, 256},
                                {37, 1501},
                                {1031, 1024},
                                {3, 4096},
                                {5, 4104},
                                {5, 8200}}) {
    ExpectNearFloat64(backend(), tokens, hidden, Tolerance(backend().dtype));
  }
}

// n/8 of 2^-24 in full.
TEST_P(RmsNormTest, WideRows) {
  for (int64_t hidden : {12289, 12296, 16384, 32767, 32768})
    ExpectNearFloat64(backend(), 5, hidden,
                      Tolerance(backend().dtype) + 32768 / 8 * 0x1p-24);
}

// With one column y is sign(x) w: its gradient cancels, and what is left is
// rounding of terms of size r |w dy|, in float32.
TEST_P(RmsNormTest, OneColumnHasNearlyNoGradient) {
  const Inputs in(37, 1);
  const Gradients grads = Backward(backend(), in);
  const Gradients oracle = Backward(Oracle(), in);
  const Outputs out = Forward(Oracle(), in);
  for (int64_t t = 0; t < 37; ++t)
    EXPECT_NEAR(grads.dx[t], oracle.dx[t],
                1e-6 * out.rstd[t] +
                    Roundoff(backend().dtype) * std::fabs(oracle.dx[t]));
}

TEST_P(RmsNormTest, EmptyBatch) {
  const Inputs in(0, 5);
  EXPECT_TRUE(Forward(backend(), in).y.empty());
  EXPECT_EQ(Backward(backend(), in).dweight, Values(5, 0));
  EXPECT_EQ(Backward(backend(), in, /*accumulate=*/true).dweight,
            in.old_dweight);
}

TEST(RmsNorm, GradientIsTheDerivative) {
  const Inputs in(19, 5);  // two chunks of rows
  const Gradients grads = Backward(Oracle(), in);
  EXPECT_LT(GradCheck(
                [&](const Values& x) {
                  Inputs moved = in;
                  moved.x = x;
                  return Dot(Forward(Oracle(), moved).y, in.dy);
                },
                in.x, grads.dx),
            1e-8);
  EXPECT_LT(GradCheck(
                [&](const Values& weight) {
                  Inputs moved = in;
                  moved.weight = weight;
                  return Dot(Forward(Oracle(), moved).y, in.dy);
                },
                in.weight, grads.dweight),
            1e-8);
}

TEST_P(RmsNormTest, GradientsAccumulate) {
  const double tolerance = Tolerance(backend().dtype);
  for (int64_t hidden : {11, 64}) {
    const Inputs in(37, hidden);
    const Gradients added = Backward(backend(), in, /*accumulate=*/true);
    const Gradients oracle = Backward(Oracle(), in, /*accumulate=*/true);
    EXPECT_LT(RelativeL2(added.dx, oracle.dx), tolerance);
    EXPECT_LT(RelativeL2(added.dweight, oracle.dweight), tolerance);
  }
}

TEST_P(RmsNormTest, EitherGradientAlone) {
  const Inputs in(23, 9);
  const Gradients both = Backward(backend(), in);
  EXPECT_EQ(Backward(backend(), in, false, Want::kDx).dx, both.dx);
  EXPECT_EQ(Backward(backend(), in, false, Want::kDweight).dweight,
            both.dweight);
}

// The same bits again, whatever the number of threads.
TEST_P(RmsNormTest, IsDeterministic) {
  const Inputs in(1031, 67);
  SetNumThreads(1);
  const Outputs out = Forward(backend(), in, true);
  const Gradients grads = Backward(backend(), in);
  SetNumThreads(3);
  EXPECT_EQ(Forward(backend(), in, true).y, out.y);
  EXPECT_EQ(Backward(backend(), in).dx, grads.dx);
  EXPECT_EQ(Backward(backend(), in).dweight, grads.dweight);
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
