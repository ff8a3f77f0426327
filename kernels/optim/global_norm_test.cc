#include "kernels/optim/global_norm.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/optim/on_backend.h"
#include "kernels/testing/backend.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

using Values = std::vector<double>;

class GlobalNormTest : public BackendTest {};
MIMO_ON_BACKENDS(GlobalNormTest);

AdamWControl Norm(const Backend& on, const std::vector<Values>& grads,
                  double max_norm, size_t uncounted = 0) {
  std::vector<Array> buffers;
  std::vector<AdamWTensor> tensors;
  for (const Values& grad : grads) {
    buffers.emplace_back(on, AccumulatorOf(on.dtype), grad);
    void* data = buffers.back().data();
    const bool half = on.dtype == DType::kBFloat16;
    tensors.push_back(
        {.remainder = half ? static_cast<int16_t*>(data) : nullptr,
         .grad = data,
         .size = static_cast<int64_t>(grad.size()),
         .counted = tensors.size() >= uncounted});
  }
  const TensorList list(tensors, on.dtype, StreamOf(on));
  const double nan = std::nan("");
  const ControlOn control(on, {.squares = nan, .norm = nan, .grad_scale = nan});
  SumSquares({.tensors = &list, .control = control.data()}, StreamOf(on));
  ClipFactor({.max_norm = max_norm, .control = control.data()}, StreamOf(on));
  return control.Get();
}

// The same numbers in all dtypes, summed in double: the same norm.
TEST_P(GlobalNormTest, IsTheFormula) {
  std::vector<Values> grads;
  long double squares = 0;
  for (int64_t size : {1, 0, 17, 40009, 16384, 16387}) {
    grads.push_back(RandomValues(size, size + 1));
    for (double v : grads.back()) squares += v * v;
  }
  const double norm = static_cast<double>(std::sqrt(squares));
  for (double max_norm : {0.0, 1.0, norm / 2, 2 * norm}) {
    const double scale =
        max_norm == 0 || max_norm > norm ? 1 : max_norm / (norm + 1e-6);
    for (const Backend& on : {backend(), Oracle()}) {
      const AdamWControl control = Norm(on, grads, max_norm);
      EXPECT_NEAR(control.norm, norm, 1e-13 * norm);
      EXPECT_NEAR(control.grad_scale, scale, 1e-13);
    }
  }
}

TEST_P(GlobalNormTest, WhatIsNotCountedIsNot) {
  const Values other(100000, 7), three(9, 1);
  EXPECT_EQ(Norm(backend(), {other, three, {4}}, 1, 1).norm, 5);
  EXPECT_EQ(Norm(backend(), {other, three, {4}}, 1, 2).norm, 4);
}

TEST_P(GlobalNormTest, NothingHasNormZero) {
  EXPECT_EQ(Norm(backend(), {}, 1).norm, 0);
  EXPECT_EQ(Norm(backend(), {}, 1).grad_scale, 1);
}

TEST_P(GlobalNormTest, LargeFloatsDoNotOverflow) {
  EXPECT_NEAR(Norm(backend(), {{3e38}, {3e38}}, 0).norm / 4.2426406871e38, 1,
              1e-6);
}

TEST_P(GlobalNormTest, NanAndInfinityShow) {
  for (double bad : {std::numeric_limits<double>::quiet_NaN(),
                     -std::numeric_limits<double>::infinity()}) {
    Values x(40009, 1);
    for (int64_t where : {0, 20011, 40008}) {
      Values grad = x;
      grad[where] = bad;
      EXPECT_FALSE(std::isfinite(Norm(backend(), {grad}, 1).norm));
      EXPECT_FALSE(std::isfinite(Norm(backend(), {grad, x}, 1, 1).norm));
    }
  }
}

TEST_P(GlobalNormTest, ALossThatIsNotFiniteMakesItNan) {
  const ControlOn control(backend(), {.squares = 9});
  for (double loss : {-1e300, std::numeric_limits<double>::quiet_NaN(), 2.0,
                      std::numeric_limits<double>::infinity()}) {
    const Array copy(backend(), DType::kFloat64, Values{loss});
    ClipFactor({.max_norm = 0,
                .loss = static_cast<const double*>(copy.data()),
                .control = control.data()},
               StreamOf(backend()));
    const double norm = control.Get().norm;
    if (std::isfinite(loss)) {
      EXPECT_EQ(norm, 3) << loss;
    } else {
      EXPECT_TRUE(std::isnan(norm)) << loss;
    }
  }
}

TEST_P(GlobalNormTest, IsDeterministic) {
  const std::vector<Values> grads = {RandomValues(100003, 1),
                                     RandomValues(40009, 2)};
  SetNumThreads(1);
  const AdamWControl one = Norm(backend(), grads, 1);
  SetNumThreads(3);
  EXPECT_EQ(Norm(backend(), grads, 1).norm, one.norm);
  EXPECT_EQ(Norm(backend(), grads, 1).grad_scale, one.grad_scale);
}

}  // namespace
}  // namespace mimo::kernels
