#include "kernels/optim/adamw.h"

#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/bfloat16.h"
#include "kernels/base/parallel.h"
#include "kernels/optim/on_backend.h"
#include "kernels/testing/backend.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

using Values = std::vector<double>;

constexpr double kBeta1 = 0.9, kBeta2 = 0.95, kEps = 1e-8, kScale = 0.37;
constexpr double kLr = 1e-3;
constexpr double kLrScale[] = {3, 1, 20, 1};
constexpr double kDecay[] = {0.1, 0, 0.5, 0.1};

class AdamWTest : public BackendTest {};
MIMO_ON_BACKENDS(AdamWTest);

// Tensors of the given sizes and an optimizer's state, on a backend.
class State {
 public:
  State(const Backend& on, const std::vector<int64_t>& sizes)
      : State(on, sizes, AccumulatorOf(on.dtype)) {}
  State(const Backend& on, const std::vector<int64_t>& sizes,
        DType exp_avg_dtype)
      : on_(on),
        exp_avg_dtype_(exp_avg_dtype),
        control_(on, {.lr = kLr, .grad_scale = kScale}) {
    const DType accumulator = AccumulatorOf(on.dtype);
    std::vector<AdamWTensor> tensors;
    for (size_t i = 0; i < sizes.size(); ++i) {
      param_.emplace_back(on, RandomValues(sizes[i], 10 + i));
      grad_.push_back(Array::Poisoned(on, accumulator, sizes[i]));
      exp_avg_.emplace_back(on, exp_avg_dtype, Values(sizes[i]));
      exp_avg_sq_.emplace_back(on, accumulator, Values(sizes[i]));
      tensors.push_back({.param = param_[i].data(),
                         .remainder = Remainder(sizes[i]),
                         .grad = grad_[i].data(),
                         .exp_avg = exp_avg_[i].data(),
                         .exp_avg_sq = exp_avg_sq_[i].data(),
                         .size = sizes[i],
                         .lr_scale = kLrScale[i],
                         .weight_decay = kDecay[i]});
    }
    list_ = std::make_unique<TensorList>(tensors, on.dtype, StreamOf(on));
  }

  static Values RandomGrad(size_t tensor, int64_t size, int64_t step) {
    return RandomValues(size, 100 * step + tensor);
  }
  void SetGrad(size_t tensor, const Values& values) {
    const Array fresh(on_, AccumulatorOf(on_.dtype), values);
    CopyBytes(grad_[tensor].data(), fresh.data(),
              values.size() * SizeOf(AccumulatorOf(on_.dtype)), StreamOf(on_));
    Synchronize(StreamOf(on_));
  }
  void Step(int64_t step) {
    for (size_t i = 0; i < grad_.size(); ++i)
      SetGrad(i, RandomGrad(i, param(i).size(), step));
    Step();
  }
  void Step() {
    AdamW({.tensors = list_.get(),
           .exp_avg_dtype = exp_avg_dtype_,
           .beta1 = kBeta1,
           .beta2 = kBeta2,
           .eps = kEps,
           .control = control_.data()},
          StreamOf(on_));
  }

  Values param(size_t i) const { return param_[i].Values(); }
  // Of a bfloat16 parameter by way of its gradient.
  Values master(size_t i) const {
    if (on_.dtype != DType::kBFloat16) return param(i);
    JoinMasters({.tensors = list_.get()}, StreamOf(on_));
    return grad_[i].Values();
  }
  void SetMaster(const Values& values) {
    SetGrad(0, values);
    SplitMasters({.tensors = list_.get()}, StreamOf(on_));
  }
  Values exp_avg(size_t i) const { return exp_avg_[i].Values(); }
  Values exp_avg_sq(size_t i) const { return exp_avg_sq_[i].Values(); }
  ControlOn& control() { return control_; }

 private:
  // The parameters are the masters.
  int16_t* Remainder(int64_t size) {
    if (on_.dtype != DType::kBFloat16 || size == 0) return nullptr;
    remainder_.emplace_back(on_, on_.dtype, Values(size));
    return static_cast<int16_t*>(remainder_.back().data());
  }

  Backend on_;
  DType exp_avg_dtype_;
  std::vector<Array> param_, remainder_, grad_, exp_avg_, exp_avg_sq_;
  std::unique_ptr<TensorList> list_;
  ControlOn control_;
};

TEST(AdamW, IsTheAlgorithm) {
  const std::vector<int64_t> sizes = {1, 40009, 17};
  State state(Oracle(), sizes);
  std::vector<Values> theta, m, v;
  for (size_t k = 0; k < sizes.size(); ++k) {
    theta.push_back(state.param(k));
    m.emplace_back(sizes[k]);
    v.emplace_back(sizes[k]);
  }
  for (int64_t step = 1; step <= 5; ++step) {
    state.Step(step);
    for (size_t k = 0; k < sizes.size(); ++k) {
      const Values grad = State::RandomGrad(k, sizes[k], step);
      for (int64_t i = 0; i < sizes[k]; ++i) {
        const double g = grad[i] * kScale;
        m[k][i] = kBeta1 * m[k][i] + (1 - kBeta1) * g;
        v[k][i] = kBeta2 * v[k][i] + (1 - kBeta2) * g * g;
        const double m_hat = m[k][i] / (1 - std::pow(kBeta1, step));
        const double v_hat = v[k][i] / (1 - std::pow(kBeta2, step));
        theta[k][i] -=
            kLr * kLrScale[k] *
            (m_hat / (std::sqrt(v_hat) + kEps) + kDecay[k] * theta[k][i]);
      }
    }
  }
  for (size_t k = 0; k < sizes.size(); ++k) {
    EXPECT_LT(MaxAbs(state.param(k), theta[k]), 1e-14);
    EXPECT_LT(MaxAbs(state.exp_avg(k), m[k]), 1e-15);
    EXPECT_LT(MaxAbs(state.exp_avg_sq(k), v[k]), 1e-15);
  }
}

// Five steps round p, of size one, five times: 5 * 2^-24. An update is at most
// lr and its some ten roundings are 1e-6 of that; m may cancel, to first order
// by no more than its own rounding over sqrt(v).
TEST_P(AdamWTest, IsNearFloat64) {
  const std::vector<int64_t> sizes = {1, 40009, 0, 16387};
  State state(backend(), sizes), oracle(Oracle(), sizes);
  for (int64_t step = 1; step <= 5; ++step) {
    state.Step(step);
    oracle.Step(step);
  }
  for (size_t k = 0; k < sizes.size(); ++k) {
    EXPECT_LT(MaxAbs(state.master(k), oracle.param(k)), 4e-7) << k;
    EXPECT_LT(MaxAbs(state.exp_avg(k), oracle.exp_avg(k)), 4e-7) << k;
    EXPECT_LT(MaxAbs(state.exp_avg_sq(k), oracle.exp_avg_sq(k)), 4e-7) << k;
  }
  const AdamWControl control = state.control().Get();
  EXPECT_EQ(control.steps, 5);
  EXPECT_EQ(control.skipped, 0);
}

// To the nearest, ties to even.
Values InBFloat16(Values values) {
  for (double& x : values)
    x = static_cast<float>(BFloat16(static_cast<float>(x)));
  return values;
}

// The float32 first moment makes the step; only what is kept is rounded.
TEST_P(AdamWTest, ABFloat16MomentIsRoundedBehindTheStep) {
  const std::vector<int64_t> sizes = {16387, 5};
  State half(backend(), sizes, DType::kBFloat16), full(backend(), sizes);
  half.Step(1);
  full.Step(1);
  for (size_t k : {0, 1}) {
    EXPECT_EQ(half.master(k), full.master(k));
    EXPECT_EQ(half.exp_avg(k), InBFloat16(full.exp_avg(k)));
    EXPECT_NE(half.exp_avg(k), full.exp_avg(k));
  }
  half.Step(2);
  full.Step(2);
  EXPECT_NE(half.master(0), full.master(0));
  for (size_t k : {0, 1}) EXPECT_EQ(half.exp_avg_sq(k), full.exp_avg_sq(k));
}

// What the roundings of m may do in 20 steps, element by element: `kept` is how
// far m in memory may be off, `off` the float32 m of a step,
//   off = beta1 kept,   kept = off + 2^-8 (|m| + off)
// of which the parameter takes rate / (sqrt(v hat) + eps). All else is float32
// as in IsNearFloat64, four times as many steps: 1.6e-6.
TEST_P(AdamWTest, WithABFloat16MomentIsNearFloat64) {
  const std::vector<int64_t> sizes = {1, 40009, 0, 16387};
  State state(backend(), sizes, DType::kBFloat16), oracle(Oracle(), sizes);
  std::vector<Values> kept, moved;
  for (int64_t size : sizes) {
    kept.emplace_back(size);
    moved.emplace_back(size);
  }
  constexpr double kFloat32 = 1.6e-6, kHalfUlp = 0x1p-8;
  for (int64_t step = 1; step <= 20; ++step) {
    state.Step(step);
    oracle.Step(step);
    const double rate = kLr / (1 - std::pow(kBeta1, step));
    const double root2 = 1 / std::sqrt(1 - std::pow(kBeta2, step));
    for (size_t k = 0; k < sizes.size(); ++k) {
      const Values m = oracle.exp_avg(k), v = oracle.exp_avg_sq(k);
      for (int64_t i = 0; i < sizes[k]; ++i) {
        const double off = kBeta1 * kept[k][i];
        kept[k][i] = off + kHalfUlp * (std::fabs(m[i]) + off);
        moved[k][i] +=
            rate * kLrScale[k] * off / (std::sqrt(v[i]) * root2 + kEps);
      }
    }
  }
  for (size_t k = 0; k < sizes.size(); ++k) {
    const Values m = state.exp_avg(k), p = state.master(k);
    const Values m_wanted = oracle.exp_avg(k), p_wanted = oracle.param(k);
    for (int64_t i = 0; i < sizes[k]; ++i) {
      ASSERT_NEAR(m[i], m_wanted[i], kept[k][i] + kFloat32) << k << " " << i;
      ASSERT_NEAR(p[i], p_wanted[i], moved[k][i] + kFloat32) << k << " " << i;
    }
    EXPECT_LT(MaxAbs(state.exp_avg_sq(k), oracle.exp_avg_sq(k)), kFloat32);
  }
}

// adamw.h: where a step is half an ulp, 2^-8 / (1-beta1) from its end, m stays.
TEST_P(AdamWTest, ABFloat16MomentDoesNotStall) {
  for (double g : {1.0, -3e-5}) {
    State state(backend(), {1}, DType::kBFloat16);
    const auto steps = [&](double grad) {
      for (int i = 0; i < 200; ++i) {
        state.SetGrad(0, {grad});
        state.Step();
      }
      return state.exp_avg(0)[0];
    };
    const double whole = kScale * g;
    EXPECT_NEAR(steps(g), whole, 0x1p-8 / (1 - kBeta1) * std::fabs(whole));
    EXPECT_NEAR(steps(0), 0, 1e-8 * std::fabs(whole));
  }
}

// A master in two halves is bitwise the whole one.
TEST_P(AdamWTest, MastersAreThoseOfFloat32) {
  if (backend().dtype != DType::kBFloat16) GTEST_SKIP() << "is the master";
  const std::vector<int64_t> sizes = {16387, 5};
  State state(backend(), sizes);
  State whole({backend().device, DType::kFloat32}, sizes);
  for (int64_t step = 1; step <= 20; ++step) {
    state.Step(step);
    whole.Step(step);
    for (size_t k : {0, 1}) {
      EXPECT_EQ(state.master(k), whole.param(k)) << step;
      EXPECT_NE(state.master(k), state.param(k)) << step;
    }
  }
}

// To the nearest, ties away from zero.
float Rounded(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x) + 0x8000;
  return std::bit_cast<float>(bits & 0xffff0000);
}

TEST_P(AdamWTest, AnyFloatIsAParameterAndItsRemainder) {
  if (backend().dtype != DType::kBFloat16) GTEST_SKIP() << "has no remainder";
  using Limits = std::numeric_limits<float>;
  Values values = {0.0,
                   1 + 0x1p-8,
                   1 + 3 * 0x1p-8,  // ties
                   1 + 0x1p-8 - 0x1p-23,
                   1 + 0x1p-8 + 0x1p-23,
                   0x1p-149,
                   Limits::min(),
                   Limits::max(),
                   Limits::infinity()};
  for (size_t i = 0, n = values.size(); i < n; ++i)
    values.push_back(-values[i]);
  std::mt19937 rng(3);
  while (values.size() < 40009) {
    const float any = std::bit_cast<float>(static_cast<uint32_t>(rng()));
    if (any == any) values.push_back(any);
  }
  State state(backend(), {static_cast<int64_t>(values.size())});
  state.SetMaster(values);
  Values rounded;
  for (double x : values) rounded.push_back(Rounded(static_cast<float>(x)));
  EXPECT_EQ(state.param(0), rounded);
  EXPECT_EQ(state.master(0), values);
}

TEST_P(AdamWTest, AMasterThatIsNoNumberShows) {
  if (backend().dtype != DType::kBFloat16) GTEST_SKIP() << "has no remainder";
  State state(backend(), {2});
  for (uint32_t bits : {0x7fc00000u, 0x7fffffffu, 0xffffffffu}) {
    state.SetMaster({1, std::bit_cast<float>(bits)});
    EXPECT_EQ(state.master(0)[0], 1);
    EXPECT_TRUE(std::isnan(state.param(0)[1])) << bits;
    EXPECT_TRUE(std::isnan(state.master(0)[1])) << bits;
  }
}

TEST_P(AdamWTest, ANormThatIsNotFiniteChangesNothing) {
  State state(backend(), {40009, 3});
  state.Step(1);
  const Values param = state.param(0), exp_avg = state.exp_avg(1);
  for (double bad : {std::numeric_limits<double>::quiet_NaN(),
                     std::numeric_limits<double>::infinity()}) {
    AdamWControl control = state.control().Get();
    control.norm = bad;
    state.control().Set(control);
    state.Step(2);
  }
  EXPECT_EQ(state.param(0), param);
  EXPECT_EQ(state.exp_avg(1), exp_avg);
  EXPECT_EQ(state.control().Get().steps, 1);
  EXPECT_EQ(state.control().Get().skipped, 2);
}

// The first step is lr * sign(g) whatever the size of g; in bfloat16 0.875 and
// 1.125 are exact.
TEST_P(AdamWTest, FirstStepIsTheSign) {
  for (double g : {1e-3, -5e3}) {
    State state(backend(), {1});
    const double before = state.param(0)[0];
    state.control().Set({.lr = 0.125 / kLrScale[0], .grad_scale = 1});
    state.SetGrad(0, {g});
    state.Step();
    const double kept = before * (1 - 0.125 * kDecay[0]);
    EXPECT_NEAR(state.master(0)[0], kept + (g > 0 ? -0.125 : 0.125), 2e-6);
  }
}

TEST_P(AdamWTest, IsDeterministic) {
  State one(backend(), {40009, 100003}), many(backend(), {40009, 100003});
  for (int64_t step = 1; step <= 3; ++step) {
    SetNumThreads(1);
    one.Step(step);
    SetNumThreads(3);
    many.Step(step);
  }
  for (size_t k : {0, 1}) {
    EXPECT_EQ(one.master(k), many.master(k));
    EXPECT_EQ(one.exp_avg(k), many.exp_avg(k));
    EXPECT_EQ(one.exp_avg_sq(k), many.exp_avg_sq(k));
  }
}

TEST_P(AdamWTest, NothingToUpdate) {
  State state(backend(), {});
  state.Step(1);
  EXPECT_EQ(state.control().Get().steps, 1);
}

TEST(AdamWDeathTest, ARemainderOfWhatNeedsNone) {
  float x;
  int16_t remainder;
  EXPECT_DEATH(TensorList({{&x, &remainder, &x, &x, &x, 1, 1, 0}},
                          DType::kFloat32, Stream()),
               "remainders go with parameters in float32");
}

}  // namespace
}  // namespace mimo::kernels
