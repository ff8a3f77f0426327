#include "kernels/optim/adamw.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

constexpr double kBeta1 = 0.9, kBeta2 = 0.95, kEps = 1e-8, kScale = 0.37;
constexpr double kLr[] = {3e-3, 1e-3, 2e-2};
constexpr double kDecay[] = {0.1, 0, 0.5};

template <typename T>
struct State {
  explicit State(const std::vector<int64_t>& sizes) {
    for (size_t i = 0; i < sizes.size(); ++i) {
      param.push_back(RandomVector<T>(sizes[i], 10 + i));
      exp_avg.emplace_back(sizes[i]);
      exp_avg_sq.emplace_back(sizes[i]);
    }
  }
  std::vector<T> Grad(size_t tensor, int64_t step) const {
    return RandomVector<T>(param[tensor].size(), 100 * step + tensor);
  }
  std::vector<std::vector<T>> param, exp_avg, exp_avg_sq;
};

template <typename T>
void Step(State<T>& state, int64_t step) {
  std::vector<std::vector<T>> grads;
  std::vector<AdamWTensor> tensors;
  for (size_t i = 0; i < state.param.size(); ++i) {
    grads.push_back(state.Grad(i, step));
    tensors.push_back({.param = state.param[i].data(),
                       .grad = grads[i].data(),
                       .exp_avg = state.exp_avg[i].data(),
                       .exp_avg_sq = state.exp_avg_sq[i].data(),
                       .size = static_cast<int64_t>(grads[i].size()),
                       .lr = kLr[i],
                       .weight_decay = kDecay[i]});
  }
  AdamW({.tensors = tensors,
         .beta1 = kBeta1,
         .beta2 = kBeta2,
         .eps = kEps,
         .step = step,
         .grad_scale = &kScale,
         .dtype = DTypeOf<T>::value},
        Stream());
}

TEST(AdamW, IsTheAlgorithm) {
  const std::vector<int64_t> sizes = {1, 40009, 17};
  State<double> state(sizes);
  std::vector<std::vector<double>> theta = state.param;
  std::vector<std::vector<double>> m = state.exp_avg, v = state.exp_avg_sq;
  for (int64_t step = 1; step <= 5; ++step) {
    Step(state, step);
    for (size_t k = 0; k < sizes.size(); ++k) {
      const std::vector<double> grad = state.Grad(k, step);
      for (int64_t i = 0; i < sizes[k]; ++i) {
        const double g = grad[i] * kScale;
        m[k][i] = kBeta1 * m[k][i] + (1 - kBeta1) * g;
        v[k][i] = kBeta2 * v[k][i] + (1 - kBeta2) * g * g;
        const double m_hat = m[k][i] / (1 - std::pow(kBeta1, step));
        const double v_hat = v[k][i] / (1 - std::pow(kBeta2, step));
        theta[k][i] -= kLr[k] * (m_hat / (std::sqrt(v_hat) + kEps) +
                                 kDecay[k] * theta[k][i]);
      }
    }
  }
  for (size_t k = 0; k < sizes.size(); ++k) {
    EXPECT_LT(MaxAbs(state.param[k], theta[k]), 1e-14);
    EXPECT_LT(MaxAbs(state.exp_avg[k], m[k]), 1e-15);
    EXPECT_LT(MaxAbs(state.exp_avg_sq[k], v[k]), 1e-15);
  }
}

// Five steps round p, of size one, five times: 5 * 2^-24. An update is at most
// lr and its some ten roundings are 1e-6 of that; m may cancel, to first order
// by no more than its own rounding over sqrt(v).
TEST(AdamW, Float32IsNearFloat64) {
  const std::vector<int64_t> sizes = {1, 40009, 0};
  State<float> state32(sizes);
  State<double> state64(sizes);
  for (int64_t step = 1; step <= 5; ++step) {
    Step(state32, step);
    Step(state64, step);
  }
  for (size_t k = 0; k < sizes.size(); ++k) {
    EXPECT_LT(MaxAbs(state32.param[k], state64.param[k]), 4e-7);
    EXPECT_LT(MaxAbs(state32.exp_avg[k], state64.exp_avg[k]), 4e-7);
    EXPECT_LT(MaxAbs(state32.exp_avg_sq[k], state64.exp_avg_sq[k]), 4e-7);
  }
}

// The first step is lr * sign(g) whatever the size of g.
TEST(AdamW, FirstStepIsTheSign) {
  for (float g : {1e-3f, -5e3f}) {
    float param = 1, exp_avg = 0, exp_avg_sq = 0;
    const double scale = 1;
    const AdamWTensor tensor = {&param, &g, &exp_avg, &exp_avg_sq, 1, 0.125, 0};
    AdamW({.tensors = {&tensor, 1},
           .beta1 = kBeta1,
           .beta2 = kBeta2,
           .eps = kEps,
           .step = 1,
           .grad_scale = &scale,
           .dtype = DType::kFloat32},
          Stream());
    EXPECT_NEAR(param, g > 0 ? 0.875 : 1.125, 1e-5);
  }
}

TEST(AdamW, ThreadsDoNotChangeABit) {
  State<float> one({40009, 100003}), many({40009, 100003});
  for (int64_t step = 1; step <= 3; ++step) {
    SetNumThreads(1);
    Step(one, step);
    SetNumThreads(3);
    Step(many, step);
  }
  EXPECT_EQ(one.param, many.param);
  EXPECT_EQ(one.exp_avg, many.exp_avg);
  EXPECT_EQ(one.exp_avg_sq, many.exp_avg_sq);
}

TEST(AdamWDeathTest, StepCountsFromOne) {
  State<float> state({1});
  EXPECT_DEATH(Step(state, 0), "step");
}

}  // namespace
}  // namespace mimo::kernels
