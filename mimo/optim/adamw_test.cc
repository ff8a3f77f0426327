#include "mimo/optim/adamw.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/base/device.h"
#include "kernels/testing/backend.h"
#include "mimo/tensor/tensor.h"

namespace mimo {
namespace {

using Values = std::vector<double>;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

class AdamWTest : public BackendTest {};
MIMO_ON_BACKENDS(AdamWTest);

Values ValuesOf(const Backend& on, const Tensor& tensor) {
  const Array copy = Array::Poisoned(on, tensor.dtype(), tensor.numel());
  CopyBytes(copy.data(), tensor.data(), tensor.bytes(), StreamOf(on));
  return copy.Values();
}

void Fill(const Backend& on, const Tensor& tensor, const Values& values) {
  const Array source(on, tensor.dtype(), values);
  CopyBytes(tensor.data(), source.data(), tensor.bytes(), StreamOf(on));
  Synchronize(StreamOf(on));
}

// Parameters of random values, their gradients poisoned until SetGrad.
struct Model {
  explicit Model(const Backend& on) : on(on), allocator(StreamOf(on)) {}

  Parameter& Add(Shape shape, bool frozen = false) {
    auto parameter = std::make_unique<Parameter>();
    parameter->name = absl::StrCat("layer.", owned.size());
    parameter->data = Tensor(allocator, shape, on.dtype);
    parameter->frozen = frozen;
    Fill(on, parameter->data, Random(parameter->data.numel()));
    if (!frozen) {
      parameter->main_grad = Tensor(allocator, shape, AccumulatorOf(on.dtype));
      Fill(on, parameter->main_grad, Values(parameter->data.numel(), kNan));
    }
    owned.push_back(std::move(parameter));
    return *owned.back();
  }
  Values Random(int64_t n) {
    Values values(n);
    for (double& x : values) x = std::normal_distribution<double>()(rng);
    return values;
  }
  void SetGrad(Parameter& parameter) {
    Fill(on, parameter.main_grad, Random(parameter.data.numel()));
    parameter.NextBeta();
  }
  std::vector<Parameter*> All() const {
    std::vector<Parameter*> all;
    for (const auto& parameter : owned) all.push_back(parameter.get());
    return all;
  }
  Values Get(const Tensor& tensor) const { return ValuesOf(on, tensor); }
  // What an update is made to: the master where there is one.
  Values Master(AdamW& optimizer, const Parameter& parameter) const {
    const auto found =
        optimizer.State().find(absl::StrCat("master.", parameter.name));
    return Get(found == optimizer.State().end() ? parameter.data
                                                : found->second.data);
  }

  Backend on;
  Allocator allocator;
  std::vector<std::unique_ptr<Parameter>> owned;
  std::mt19937 rng{7};
};

OptimizerConfig Config() {
  OptimizerConfig config;
  config.weight_decay = 0.1;
  config.adam_beta2 = 0.95;
  config.clip_grad = 1.0;
  return config;
}

// The update written out over doubles, one element at a time.
struct LiteralAdamW {
  std::vector<Values> p, m, v;
  int64_t step = 0;

  double Step(const OptimizerConfig& c, const std::vector<Parameter*>& params,
              const std::vector<Values>& grads, double lr) {
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

void ExpectFollowsOracle(const Backend& on, double clip_grad,
                         double tolerance) {
  OptimizerConfig config = Config();
  config.clip_grad = clip_grad;
  Model model(on);
  model.Add({17, 13});
  Parameter& frozen = model.Add({5, 3}, /*frozen=*/true);
  model.Add({31});
  model.Add({2, 3, 7});
  model.Add({1});
  model.Add({0, 4});
  const Values frozen_before = model.Get(frozen.data);
  std::vector<Parameter*> trainable;
  LiteralAdamW literal;
  for (Parameter* parameter : model.All()) {
    if (parameter->frozen) continue;
    trainable.push_back(parameter);
    literal.p.push_back(model.Get(parameter->data));
    literal.m.emplace_back(parameter->data.numel());
    literal.v.emplace_back(parameter->data.numel());
  }

  AdamW optimizer(config, model.All(), model.allocator);
  for (int step = 0; step < 10; ++step) {
    const double lr = 1e-2 / (step + 1);
    std::vector<Values> grads;
    for (Parameter* parameter : trainable) {
      // Nothing writes the gradient of the last two in even steps: it is zero
      // however stale or poisoned its buffer is.
      if (step % 2 == 0 && parameter->data.numel() <= 1) {
        grads.emplace_back(parameter->data.numel());
      } else {
        model.SetGrad(*parameter);
        grads.push_back(model.Get(parameter->main_grad));
      }
    }
    optimizer.Step(lr);
    const double wanted = literal.Step(config, trainable, grads, lr);
    EXPECT_NEAR(optimizer.norm(), wanted, 1e-12 * wanted);
    for (Parameter* parameter : trainable) parameter->ForgetGrad();
  }
  for (size_t i = 0; i < trainable.size(); ++i) {
    const Values got = model.Master(optimizer, *trainable[i]);
    const Values param = model.Get(trainable[i]->data);
    for (size_t j = 0; j < got.size(); ++j) {
      EXPECT_NEAR(got[j], literal.p[i][j], tolerance) << i << " " << j;
      // A bfloat16 parameter is its master rounded.
      EXPECT_NEAR(param[j], got[j],
                  on.dtype == DType::kBFloat16 ? 0x1p-8 * std::fabs(got[j]) : 0)
          << i << " " << j;
    }
  }
  EXPECT_EQ(optimizer.steps(), 10);
  EXPECT_EQ(optimizer.skipped(), 0);
  EXPECT_EQ(model.Get(frozen.data), frozen_before);
}

TEST(AdamW, FollowsALiteralLoopInDouble) {
  // 10 steps of a dozen double roundings on values below 4.
  for (double clip : {1.0, 0.0, 1e9})
    ExpectFollowsOracle(Oracle(), clip, 1e-13);
}

TEST_P(AdamWTest, FollowsALiteralLoop) {
  // Each of 10 steps rounds p (below 4) to 2^-24 relative, 1.2e-7 each; the
  // update itself, at most ~3e-2, to a few 2^-24 more. So of a bfloat16
  // parameter's master.
  ExpectFollowsOracle(backend(), 1.0, 3e-6);
}

TEST_P(AdamWTest, ANormThatIsNotFiniteChangesNothing) {
  for (double bad : {kNan, std::numeric_limits<double>::infinity()}) {
    Model model(backend());
    Parameter& a = model.Add({4, 4});
    Parameter& b = model.Add({3});
    AdamW optimizer(Config(), model.All(), model.allocator);
    model.SetGrad(a);
    model.SetGrad(b);
    optimizer.Step(1e-2);
    const Values before = model.Get(a.data);
    const Values moment =
        model.Get(optimizer.State().at("exp_avg.layer.0").data);
    model.SetGrad(a);
    model.SetGrad(b);
    Fill(backend(), b.main_grad, {0, bad, 0});
    optimizer.Step(1e-2);
    EXPECT_FALSE(std::isfinite(optimizer.norm()));
    EXPECT_EQ(model.Get(a.data), before);
    EXPECT_EQ(model.Get(optimizer.State().at("exp_avg.layer.0").data), moment);
    EXPECT_EQ(optimizer.steps(), 1);
    EXPECT_EQ(optimizer.skipped(), 1);
  }
}

TEST_P(AdamWTest, ALossThatIsNotFiniteChangesNothing) {
  Model model(backend());
  Parameter& a = model.Add({4, 4});
  AdamW optimizer(Config(), model.All(), model.allocator);
  const Values before = model.Get(a.data);
  model.SetGrad(a);
  int64_t skipped = 0;
  for (double bad : {kNan, -std::numeric_limits<double>::infinity()}) {
    const Array loss(backend(), DType::kFloat64, {bad});
    optimizer.Step(1e-2, static_cast<double*>(loss.data()));
    EXPECT_TRUE(std::isnan(optimizer.norm()));
    EXPECT_EQ(optimizer.steps(), 0);
    EXPECT_EQ(optimizer.skipped(), ++skipped);
    EXPECT_EQ(model.Get(a.data), before);
  }
  const Array loss(backend(), DType::kFloat64, {1e300});
  optimizer.Step(1e-2, static_cast<double*>(loss.data()));
  EXPECT_TRUE(std::isfinite(optimizer.norm()));
  EXPECT_EQ(optimizer.steps(), 1);
  EXPECT_EQ(optimizer.skipped(), skipped);
  EXPECT_NE(model.Get(a.data), before);
}

// What it does to a trajectory: kernels/optim/adamw_test.
TEST_P(AdamWTest, TheFirstMomentMayBeBFloat16) {
  OptimizerConfig config = Config();
  config.exp_avg_dtype = DType::kBFloat16;
  Model model(backend()), full(backend());
  AdamW half_step(config, {&model.Add({5, 7})}, model.allocator);
  AdamW full_step(Config(), {&full.Add({5, 7})}, full.allocator);
  model.SetGrad(*model.owned[0]);
  full.SetGrad(*full.owned[0]);
  half_step.Step(1e-2);
  full_step.Step(1e-2);
  const Tensor half = half_step.State().at("exp_avg.layer.0").data;
  const Tensor whole = full_step.State().at("exp_avg.layer.0").data;
  EXPECT_EQ(half.dtype(), DType::kBFloat16);
  EXPECT_EQ(whole.dtype(), AccumulatorOf(backend().dtype));
  EXPECT_EQ(model.Get(half),
            Array(Oracle(), DType::kBFloat16, full.Get(whole)).Values());
  EXPECT_EQ(model.Get(half_step.State().at("exp_avg_sq.layer.0").data),
            full.Get(full_step.State().at("exp_avg_sq.layer.0").data));
}

TEST_P(AdamWTest, ARestoredOptimizerGoesOnBitwise) {
  for (DType exp_avg_dtype : {DType::kFloat32, DType::kBFloat16}) {
    OptimizerConfig config = Config();
    config.exp_avg_dtype = exp_avg_dtype;
    Model straight(backend()), resumed(backend());
    for (Model* model : {&straight, &resumed}) {
      model->Add({5, 7});
      model->Add({11});
    }
    AdamW first(config, straight.All(), straight.allocator);
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
    AdamW second(config, resumed.All(), resumed.allocator);
    ASSERT_EQ(second.State().size(),
              backend().dtype == DType::kBFloat16 ? 6u : 4u);
    for (const auto& [name, slice] : second.State()) {
      Tensor target = slice.data;
      target.CopyFrom(first.State().at(name).data);
    }
    second.Restore(first.steps(), first.skipped());

    for (int i = 0; i < 3; ++i) {
      step(straight, first);
      step(resumed, second);
    }
    for (size_t i = 0; i < straight.owned.size(); ++i) {
      EXPECT_EQ(straight.Master(first, *straight.owned[i]),
                resumed.Master(second, *resumed.owned[i]));
      EXPECT_EQ(straight.Get(straight.owned[i]->data),
                resumed.Get(resumed.owned[i]->data));
    }
  }
}

// Powers of two: bitwise what an optimizer of its own with those settings does.
TEST_P(AdamWTest, GroupsHaveRatesAndDecaysOfTheirOwn) {
  OptimizerConfig config = Config();
  config.clip_grad = 0;
  Model model(backend()), alone(backend());
  for (Model* m : {&model, &alone}) {
    m->Add({5, 7});
    m->Add({4, 3});
  }
  AdamW optimizer(config,
                  {{.shards = WholeShards({model.All()[0]})},
                   {.shards = WholeShards({model.All()[1]}),
                    .lr_mult = 0.25,
                    .wd_mult = 2}},
                  nullptr, model.allocator);
  AdamW first(config, {alone.All()[0]}, alone.allocator);
  config.weight_decay *= 2;
  AdamW second(config, {alone.All()[1]}, alone.allocator);
  for (int step = 0; step < 3; ++step) {
    for (Model* m : {&model, &alone})
      for (Parameter* parameter : m->All()) m->SetGrad(*parameter);
    optimizer.Step(1e-2);
    first.Step(1e-2);
    second.Step(0.25e-2);
  }
  for (int i : {0, 1}) {
    EXPECT_EQ(model.Get(model.All()[i]->data), alone.Get(alone.All()[i]->data))
        << i;
  }
}

// Weights that are read after the optimizer was made.
TEST_P(AdamWTest, SetMastersTakesTheParameters) {
  Model model(backend());
  Parameter& a = model.Add({4, 5});
  AdamW optimizer(Config(), model.All(), model.allocator);
  EXPECT_EQ(model.Master(optimizer, a), model.Get(a.data));
  Fill(backend(), a.data, model.Random(20));
  optimizer.SetMasters();
  EXPECT_EQ(model.Master(optimizer, a), model.Get(a.data));
}

TEST_P(AdamWTest, NothingToTrain) {
  Model model(backend());
  model.Add({4, 4}, /*frozen=*/true);
  AdamW optimizer(Config(), model.All(), model.allocator);
  optimizer.Step(1);
  EXPECT_EQ(optimizer.norm(), 0);
  EXPECT_TRUE(optimizer.State().empty());
}

}  // namespace
}  // namespace mimo
