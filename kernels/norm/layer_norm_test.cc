#include "kernels/norm/layer_norm.h"

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

class LayerNormTest : public BackendTest {};
MIMO_ON_BACKENDS(LayerNormTest);

struct Inputs {
  Inputs(int64_t tokens, int64_t hidden)
      : tokens(tokens),
        hidden(hidden),
        x(RandomValues(tokens * hidden, 1)),
        residual(RandomValues(tokens * hidden, 2)),
        weight(RandomValues(hidden, 3)),
        bias(RandomValues(hidden, 4)),
        dy(RandomValues(tokens * hidden, 5)),
        old_dx(RandomValues(tokens * hidden, 6)),
        old_dweight(RandomValues(hidden, 7)),
        old_dbias(RandomValues(hidden, 8)) {}
  int64_t tokens, hidden;
  Values x, residual, weight, bias, dy, old_dx, old_dweight, old_dbias;
};

struct Outputs {
  Values sum, y, mean, rstd;
};

Outputs Forward(const Backend& on, const Inputs& in,
                bool with_residual = false) {
  const DType statistic = AccumulatorOf(on.dtype);
  const Array x(on, in.x), residual(on, in.residual);
  const Array weight(on, in.weight), bias(on, in.bias);
  const Array sum = Array::Poisoned(on, with_residual ? in.x.size() : 0);
  const Array y = Array::Poisoned(on, in.x.size());
  const Array mean = Array::Poisoned(on, statistic, in.tokens);
  const Array rstd = Array::Poisoned(on, statistic, in.tokens);
  LayerNormForward({.x = x.data(),
                    .residual = with_residual ? residual.data() : nullptr,
                    .weight = weight.data(),
                    .bias = bias.data(),
                    .sum = with_residual ? sum.data() : nullptr,
                    .y = y.data(),
                    .mean = mean.data(),
                    .rstd = rstd.data(),
                    .tokens = in.tokens,
                    .hidden = in.hidden,
                    .eps = kEps,
                    .dtype = on.dtype},
                   StreamOf(on));
  return {sum.Values(), y.Values(), mean.Values(), rstd.Values()};
}

struct Want {
  bool dx = true, dweight = true, dbias = true;
};

struct Gradients {
  Values dx, dweight, dbias;
};

// Added to when `accumulate`, else written over NaN.
Gradients Backward(const Backend& on, const Inputs& in, bool accumulate = false,
                   Want want = {}) {
  const DType statistic = AccumulatorOf(on.dtype);
  const Outputs out = Forward(on, in);
  const Array x(on, in.x), weight(on, in.weight), dy(on, in.dy);
  const Array mean(on, statistic, out.mean), rstd(on, statistic, out.rstd);
  const auto sink = [&](const Values& old) {
    return accumulate ? Array(on, statistic, old)
                      : Array::Poisoned(on, statistic, in.hidden);
  };
  const Array dx =
      accumulate ? Array(on, in.old_dx) : Array::Poisoned(on, in.x.size());
  const Array dweight = sink(in.old_dweight), dbias = sink(in.old_dbias);
  const Array workspace =
      Array::Workspace(on, LayerNormBackwardWorkspaceBytes(
                               in.tokens, in.hidden, on.dtype, on.device));
  const float beta = accumulate ? 1 : 0;
  LayerNormBackward(
      {.x = x.data(),
       .weight = weight.data(),
       .mean = mean.data(),
       .rstd = rstd.data(),
       .dy = dy.data(),
       .dx = want.dx ? dx.data() : nullptr,
       .accumulate_dx = accumulate,
       .dweight = want.dweight ? dweight.data() : nullptr,
       .dbias = want.dbias ? dbias.data() : nullptr,
       .dweight_beta = beta,
       .dbias_beta = beta,
       .workspace = want.dweight || want.dbias ? workspace.data() : nullptr,
       .tokens = in.tokens,
       .hidden = in.hidden,
       .dtype = on.dtype},
      StreamOf(on));
  return {dx.Values(), dweight.Values(), dbias.Values()};
}

TEST(LayerNorm, ForwardIsTheFormula) {
  const Inputs in(5, 7);
  for (bool with_residual : {false, true}) {
    const Outputs out = Forward(Oracle(), in, with_residual);
    for (int64_t t = 0; t < in.tokens; ++t) {
      double mean = 0, variance = 0;
      Values s(in.hidden);
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

// float32 rounds to 2^-24 = 6e-8. A sum of n terms in eight lanes or more errs
// by less than n/8 of that, typically sqrt(n/8)/3; outputs then take some five
// roundings. 2e-6 leaves both room up to n = 8200. In bfloat16 an output is
// rounded once more, by at most 2^-8, and y twice with a residual: s, |s| < 2,
// which is kept rounded, then y.
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
    EXPECT_LT(MaxAbs(out.mean, oracle.mean), tolerance);
  }
  const Gradients grads = Backward(backend, in);
  const Gradients oracle = Backward(Oracle(), in);
  EXPECT_LT(RelativeL2(grads.dx, oracle.dx), tolerance);
  EXPECT_LT(RelativeL2(grads.dweight, oracle.dweight), tolerance);
  EXPECT_LT(RelativeL2(grads.dbias, oracle.dbias), tolerance);
}

TEST_P(LayerNormTest, IsNearFloat64) {
  for (auto [tokens, hidden] : {std::pair<int64_t, int64_t>{1, 4099},
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
TEST_P(LayerNormTest, WideRows) {
  for (int64_t hidden : {12289, 12296, 16384, 32767, 32768})
    ExpectNearFloat64(backend(), 5, hidden,
                      Tolerance(backend().dtype) + 32768 / 8 * 0x1p-24);
}

// A large mean: two passes keep the variance. x = 1024 + k step for k < 128,
// exact in the dtype.
TEST_P(LayerNormTest, LargeMean) {
  const bool is_bfloat16 = backend().dtype == DType::kBFloat16;
  Inputs in(3, 1021);
  for (double& x : in.x)
    x = 1024 + (is_bfloat16 ? 8 : 0x1p-7) * std::floor(64 * (x + 1));
  // The mean is off by some 2^-24 * 1024 = 6e-5 beside a deviation of 0.3.
  EXPECT_LT(RelativeL2(Forward(backend(), in).y, Forward(Oracle(), in).y),
            1e-3 + (is_bfloat16 ? Roundoff(DType::kBFloat16) : 0));
}

// One column: n = 0, so y = b and dw = 0. dx is the rounding of w dy (2^-25 of
// it, seen by a fused multiply-add) times r = 1 / sqrt(eps) = 316.
TEST_P(LayerNormTest, OneColumn) {
  const Inputs in(37, 1);
  EXPECT_EQ(Forward(backend(), in).y, Values(37, in.bias[0]));
  const Gradients grads = Backward(backend(), in);
  EXPECT_LT(MaxAbs(grads.dx, Values(37, 0)), 316 * 0x1p-25);
  EXPECT_EQ(grads.dweight[0], 0);
}

TEST_P(LayerNormTest, EmptyBatch) {
  const Inputs in(0, 5);
  EXPECT_TRUE(Forward(backend(), in).y.empty());
  EXPECT_EQ(Backward(backend(), in).dweight, Values(5, 0));
  EXPECT_EQ(Backward(backend(), in).dbias, Values(5, 0));
  EXPECT_EQ(Backward(backend(), in, /*accumulate=*/true).dbias, in.old_dbias);
}

TEST(LayerNorm, GradientIsTheDerivative) {
  const Inputs in(19, 5);  // two chunks of rows
  const Gradients grads = Backward(Oracle(), in);
  const auto check = [&](Values Inputs::*member, const Values& gradient) {
    return GradCheck(
        [&](const Values& value) {
          Inputs moved = in;
          moved.*member = value;
          return Dot(Forward(Oracle(), moved).y, in.dy);
        },
        in.*member, gradient);
  };
  EXPECT_LT(check(&Inputs::x, grads.dx), 1e-8);
  EXPECT_LT(check(&Inputs::weight, grads.dweight), 1e-8);
  EXPECT_LT(check(&Inputs::bias, grads.dbias), 1e-8);
}

TEST_P(LayerNormTest, GradientsAccumulate) {
  const double tolerance = Tolerance(backend().dtype);
  for (int64_t hidden : {11, 64}) {
    const Inputs in(37, hidden);
    const Gradients added = Backward(backend(), in, /*accumulate=*/true);
    const Gradients oracle = Backward(Oracle(), in, /*accumulate=*/true);
    EXPECT_LT(RelativeL2(added.dx, oracle.dx), tolerance);
    EXPECT_LT(RelativeL2(added.dweight, oracle.dweight), tolerance);
    EXPECT_LT(RelativeL2(added.dbias, oracle.dbias), tolerance);
  }
}

TEST_P(LayerNormTest, EachGradientAlone) {
  for (int64_t hidden : {9, 72}) {
    const Inputs in(23, hidden);
    const Gradients all = Backward(backend(), in);
    EXPECT_EQ(Backward(backend(), in, false, {true, false, false}).dx, all.dx);
    EXPECT_EQ(Backward(backend(), in, false, {false, true, false}).dweight,
              all.dweight);
    EXPECT_EQ(Backward(backend(), in, false, {false, false, true}).dbias,
              all.dbias);
  }
}

// The same bits again, whatever the number of threads.
TEST_P(LayerNormTest, IsDeterministic) {
  const Inputs in(1031, 67);
  SetNumThreads(1);
  const Outputs out = Forward(backend(), in, true);
  const Gradients grads = Backward(backend(), in);
  SetNumThreads(3);
  EXPECT_EQ(Forward(backend(), in, true).y, out.y);
  EXPECT_EQ(Backward(backend(), in).dx, grads.dx);
  EXPECT_EQ(Backward(backend(), in).dweight, grads.dweight);
  EXPECT_EQ(Backward(backend(), in).dbias, grads.dbias);
}

}  // namespace
}  // namespace mimo::kernels
