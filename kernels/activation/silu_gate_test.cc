#include "kernels/activation/silu_gate.h"

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

class SiluGateTest : public BackendTest {};
MIMO_ON_BACKENDS(SiluGateTest);

Values Forward(const Backend& on, const Values& x, int64_t tokens,
               int64_t features) {
  const Array input(on, x);
  const Array y = Array::Poisoned(on, tokens * features);
  SiluGateForward({.x = input.data(),
                   .y = y.data(),
                   .tokens = tokens,
                   .features = features,
                   .dtype = on.dtype},
                  StreamOf(on));
  return y.Values();
}

Values Backward(const Backend& on, const Values& x, const Values& dy,
                int64_t tokens, int64_t features, bool in_place = false) {
  const Array input(on, x), gradient(on, dy);
  const Array dx = in_place ? input : Array::Poisoned(on, x.size());
  SiluGateBackward({.x = input.data(),
                    .dy = gradient.data(),
                    .dx = dx.data(),
                    .tokens = tokens,
                    .features = features,
                    .dtype = on.dtype},
                   StreamOf(on));
  return dx.Values();
}

TEST(SiluGate, ForwardIsTheFormula) {
  const Values x = RandomValues(5 * 2 * 7, 1, 8);
  const Values y = Forward(Oracle(), x, 5, 7);
  for (int64_t t = 0; t < 5; ++t) {
    for (int64_t f = 0; f < 7; ++f) {
      const double gate = x[t * 14 + f], up = x[t * 14 + 7 + f];
      EXPECT_NEAR(y[t * 7 + f], gate / (1 + std::exp(-gate)) * up, 1e-13);
    }
  }
}

// In float32 three roundings and the 3 ulp of a sigmoid forward; in the
// derivative 1 + g (1 - s), |g| < 8, cancels to no less than a tenth of its
// terms. In bfloat16 results are rounded once more, by at most 2^-8; the fast
// exponential errs by some 2^-21 for such g.
TEST_P(SiluGateTest, IsNearFloat64) {
  const double rounding =
      backend().dtype == DType::kBFloat16 ? Roundoff(DType::kBFloat16) : 0;
  for (auto [tokens, features] : {std::pair<int64_t, int64_t>{1, 1},
                                  {0, 3},
                                  {1, 4099},
                                  {1031, 13},
                                  {66001, 2},
                                  {67, 256},
                                  {3, 2056}}) {
    SCOPED_TRACE(testing::Message() << tokens << " x " << features);
    const Values x = RandomValues(tokens * 2 * features, 1, 8);
    const Values dy = RandomValues(tokens * features, 2);
    EXPECT_LE(RelativeL2(Forward(backend(), x, tokens, features),
                         Forward(Oracle(), x, tokens, features)),
              rounding + 5e-7);
    EXPECT_LE(RelativeL2(Backward(backend(), x, dy, tokens, features),
                         Backward(Oracle(), x, dy, tokens, features)),
              rounding + 1e-6);
  }
}

TEST_P(SiluGateTest, ExtremeGates) {
  const Values x = {-8192, 8192, 2, 2};  // gates, then ups
  EXPECT_EQ(Forward(backend(), x, 1, 2), (Values{0, 16384}));
  EXPECT_EQ(Backward(backend(), x, {1, 1}, 1, 2), (Values{0, 2, 0, 8192}));
}

TEST(SiluGate, GradientIsTheDerivative) {
  const Values x = RandomValues(3 * 2 * 5, 1, 8);
  const Values dy = RandomValues(3 * 5, 2);
  EXPECT_LT(GradCheck(
                [&](const Values& moved) {
                  return Dot(Forward(Oracle(), moved, 3, 5), dy);
                },
                x, Backward(Oracle(), x, dy, 3, 5)),
            1e-8);
}

TEST_P(SiluGateTest, BackwardInPlace) {
  for (int64_t features : {37, 1104}) {
    const Values x = RandomValues(3 * 2 * features, 1, 8);
    const Values dy = RandomValues(3 * features, 2);
    EXPECT_EQ(Backward(backend(), x, dy, 3, features, /*in_place=*/true),
              Backward(backend(), x, dy, 3, features));
  }
}

// The same bits again, whatever the number of threads.
TEST_P(SiluGateTest, IsDeterministic) {
  const Values x = RandomValues(1031 * 2 * 67, 1, 8);
  const Values dy = RandomValues(1031 * 67, 2);
  SetNumThreads(1);
  const Values y = Forward(backend(), x, 1031, 67);
  const Values dx = Backward(backend(), x, dy, 1031, 67);
  SetNumThreads(3);
  EXPECT_EQ(Forward(backend(), x, 1031, 67), y);
  EXPECT_EQ(Backward(backend(), x, dy, 1031, 67), dx);
}

}  // namespace
}  // namespace mimo::kernels
