#include "mimo/optim/adamw.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "mimo/tensor/tensor.h"

namespace mimo {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Parameters of random values, their gradients poisoned until SetGrad.
struct Model {
  Allocator allocator;
  std::vector<std::unique_ptr<Parameter>> owned;
  std::mt19937 rng{7};

  Parameter& Add(Shape shape, DType dtype, bool frozen = false) {
    auto parameter = std::make_unique<Parameter>();
    parameter->name = absl::StrCat("layer.", owned.size());
    parameter->data = Tensor(allocator, shape, dtype);
    parameter->frozen = frozen;
    Fill(parameter->data, [&] { return Random(); });
    if (!frozen) {
      parameter->main_grad = Tensor(allocator, shape, AccumulatorOf(dtype));
      Fill(parameter->main_grad, [] { return kNan; });
    }
    owned.push_back(std::move(parameter));
    return *owned.back();
  }
  double Random() { return std::normal_distribution<double>()(rng); }
  template <typename F>
  static void Fill(const Tensor& tensor, F&& value) {
    if (tensor.dtype() == DType::kFloat64) {
      for (double& x : tensor.span<double>()) x = value();
    } else {
      for (float& x : tensor.span<float>()) x = static_cast<float>(value());
    }
  }
  void SetGrad(Parameter& parameter) {
    Fill(parameter.main_grad, [&] { return Random(); });
    parameter.NextBeta();
  }
  std::vector<Parameter*> All() const {
    std::vector<Parameter*> all;
    for (const auto& parameter : owned) all.push_back(parameter.get());
    return all;
  }
};

std::vector<double> Values(const Tensor& tensor) {
  if (tensor.dtype() == DType::kFloat64) {
    return {tensor.span<double>().begin(), tensor.span<double>().end()};
  }
  return {tensor.span<float>().begin(), tensor.span<float>().end()};
}

OptimizerConfig Config() {
  OptimizerConfig config;
  config.weight_decay = 0.1;
  config.adam_beta2 = 0.95;
  config.clip_grad = 1.0;
  return config;
}

// The update written out over doubles, one element at a time.
struct Oracle {
  std::vector<std::vector<double>> p, m, v;
  int64_t step = 0;

  double Step(const OptimizerConfig& c, const std::vector<Parameter*>& params,
              const std::vector<std::vector<double>>& grads, double lr) {
    double sum = 0;
    for (const auto& grad : grads) {
      for (double g : grad) sum += g * g;
    }
    const double norm = std::sqrt(sum);
    const double clip =
        c.clip_grad > 0 ? std::min(1.0, c.clip_grad / (norm + 1e-6)) : 1;
    ++step;
    for (size_t i = 0; i < p.size(); ++i) {
      const double decay =
          params[i]->data.shape().size() > 1 ? c.weight_decay : 0;
      for (size_t j = 0; j < p[i].size(); ++j) {
        const double g = clip * grads[i][j];
        m[i][j] = c.adam_beta1 * m[i][j] + (1 - c.adam_beta1) * g;
        v[i][j] = c.adam_beta2 * v[i][j] + (1 - c.adam_beta2) * g * g;
        const double mh = m[i][j] / (1 - std::pow(c.adam_beta1, step));
        const double vh = v[i][j] / (1 - std::pow(c.adam_beta2, step));
        p[i][j] =
            p[i][j] * (1 - lr * decay) - lr * mh / (std::sqrt(vh) + c.adam_eps);
      }
    }
    return norm;
  }
};

void ExpectFollowsOracle(DType dtype, double clip_grad, double tolerance) {
  OptimizerConfig config = Config();
  config.clip_grad = clip_grad;
  Model model;
  model.Add({17, 13}, dtype);
  Parameter& frozen = model.Add({5, 3}, dtype, /*frozen=*/true);
  model.Add({31}, dtype);
  model.Add({2, 3, 7}, dtype);
  model.Add({1}, dtype);
  model.Add({0, 4}, dtype);
  const std::vector<double> frozen_before = Values(frozen.data);
  std::vector<Parameter*> trainable;
  Oracle oracle;
  for (Parameter* parameter : model.All()) {
    if (parameter->frozen) continue;
    trainable.push_back(parameter);
    oracle.p.push_back(Values(parameter->data));
    oracle.m.emplace_back(parameter->data.numel());
    oracle.v.emplace_back(parameter->data.numel());
  }

  AdamW optimizer(config, model.All(), model.allocator);
  for (int step = 0; step < 10; ++step) {
    const double lr = 1e-2 / (step + 1);
    std::vector<std::vector<double>> grads;
    for (Parameter* parameter : trainable) {
      // Nothing writes the gradient of the last two in even steps: it is zero
      // however stale or poisoned its buffer is.
      if (step % 2 == 0 && parameter->data.numel() <= 1) {
        grads.emplace_back(parameter->data.numel());
      } else {
        model.SetGrad(*parameter);
        grads.push_back(Values(parameter->main_grad));
      }
    }
    const double norm = optimizer.Step(lr);
    const double wanted = oracle.Step(config, trainable, grads, lr);
    EXPECT_NEAR(norm, wanted, 1e-12 * wanted);
    for (Parameter* parameter : trainable) parameter->ForgetGrad();
  }
  for (size_t i = 0; i < trainable.size(); ++i) {
    const std::vector<double> got = Values(trainable[i]->data);
    for (size_t j = 0; j < got.size(); ++j) {
      EXPECT_NEAR(got[j], oracle.p[i][j], tolerance) << i << " " << j;
    }
  }
  EXPECT_EQ(optimizer.steps(), 10);
  EXPECT_EQ(Values(frozen.data), frozen_before);
}

TEST(AdamW, FollowsALiteralLoopInDouble) {
  // 10 steps of a dozen double roundings on values below 4.
  ExpectFollowsOracle(DType::kFloat64, 1.0, 1e-13);
  ExpectFollowsOracle(DType::kFloat64, 0.0, 1e-13);
  ExpectFollowsOracle(DType::kFloat64, 1e9, 1e-13);
}

TEST(AdamW, FollowsALiteralLoopInFloat) {
  // Each of 10 steps rounds p (below 4) to 2^-24 relative, 1.2e-7 each; the
  // update itself, at most ~3e-2, to a few 2^-24 more.
  ExpectFollowsOracle(DType::kFloat32, 1.0, 3e-6);
}

TEST(AdamW, ANormThatIsNotFiniteChangesNothing) {
  for (double bad : {kNan, std::numeric_limits<double>::infinity()}) {
    Model model;
    Parameter& a = model.Add({4, 4}, DType::kFloat32);
    Parameter& b = model.Add({3}, DType::kFloat32);
    AdamW optimizer(Config(), model.All(), model.allocator);
    model.SetGrad(a);
    model.SetGrad(b);
    optimizer.Step(1e-2);
    const auto before = Values(a.data);
    const auto moment = Values(optimizer.state().at("exp_avg.layer.0"));
    b.main_grad.span<float>()[1] = static_cast<float>(bad);
    EXPECT_FALSE(std::isfinite(optimizer.Step(1e-2)));
    EXPECT_EQ(Values(a.data), before);
    EXPECT_EQ(Values(optimizer.state().at("exp_avg.layer.0")), moment);
    EXPECT_EQ(optimizer.steps(), 1);
    EXPECT_EQ(optimizer.skipped(), 1);
  }
}

TEST(AdamW, ARestoredOptimizerGoesOnBitwise) {
  Model straight, resumed;
  for (Model* model : {&straight, &resumed}) {
    model->Add({5, 7}, DType::kFloat32);
    model->Add({11}, DType::kFloat32);
  }
  AdamW first(Config(), straight.All(), straight.allocator);
  auto step = [](Model& model, AdamW& optimizer) {
    for (Parameter* parameter : model.All()) {
      model.SetGrad(*parameter);
    }
    optimizer.Step(3e-3);
    for (Parameter* parameter : model.All()) parameter->ForgetGrad();
  };
  for (int i = 0; i < 3; ++i) step(straight, first);

  for (size_t i = 0; i < straight.owned.size(); ++i) {
    resumed.owned[i]->data.CopyFrom(straight.owned[i]->data);
  }
  resumed.rng = straight.rng;
  AdamW second(Config(), resumed.All(), resumed.allocator);
  ASSERT_EQ(second.state().size(), 4u);
  for (const auto& [name, tensor] : second.state()) {
    Tensor target = tensor;
    target.CopyFrom(first.state().at(name));
  }
  second.Restore(first.steps(), first.skipped());

  for (int i = 0; i < 3; ++i) {
    step(straight, first);
    step(resumed, second);
  }
  for (size_t i = 0; i < straight.owned.size(); ++i) {
    EXPECT_EQ(Values(straight.owned[i]->data), Values(resumed.owned[i]->data));
  }
}

TEST(AdamW, NothingToTrain) {
  Model model;
  model.Add({4, 4}, DType::kFloat32, /*frozen=*/true);
  AdamW optimizer(Config(), model.All(), model.allocator);
  EXPECT_EQ(optimizer.Step(1), 0);
  EXPECT_TRUE(optimizer.state().empty());
}

}  // namespace
}  // namespace mimo
