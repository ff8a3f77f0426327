#include "mimo/optim/optimizer_config.h"

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "mimo/config/config_node.h"

namespace mimo {
namespace {

OptimizerConfig Golden() {
  OptimizerConfig config;
  config.lr = 2e-3;
  config.min_lr = 2e-4;
  config.lr_warmup_iters = 3;
  config.lr_decay_iters = 20;
  return config;
}

// Worked out by hand from the contract: warm-up lr (i + 1) / 3; with 17 steps
// of decay, cos(pi p) is 1 at i = 3, -1 at i = 20.
TEST(LearningRate, CosineTable) {
  const OptimizerConfig config = Golden();
  const std::vector<std::pair<int64_t, double>> table = {
      {0, 2e-3 / 3},
      {1, 4e-3 / 3},
      {2, 2e-3},
      {3, 2e-3},
      {4, 0.0019846757897155117},
      {11, 0.0011830415235169719},
      {12, 0.0010169584764830283},
      {19, 0.00021532421028448842},
      {20, 2e-4},
      {21, 2e-4},
      {1000000, 2e-4},
  };
  for (auto [iteration, lr] : table) {
    EXPECT_NEAR(LearningRate(config, 20, iteration), lr, 1e-15) << iteration;
  }
}

TEST(LearningRate, LinearAndConstant) {
  OptimizerConfig config = Golden();
  config.lr_decay_style = LrDecayStyle::kLinear;
  EXPECT_NEAR(LearningRate(config, 20, 1), 4e-3 / 3, 1e-15);
  EXPECT_NEAR(LearningRate(config, 20, 11), 2e-3 - 1.8e-3 * 8 / 17, 1e-15);
  EXPECT_NEAR(LearningRate(config, 20, 20), 2e-4, 1e-15);
  config.lr_decay_style = LrDecayStyle::kConstant;
  EXPECT_NEAR(LearningRate(config, 20, 1), 4e-3 / 3, 1e-15);
  EXPECT_EQ(LearningRate(config, 20, 3), 2e-3);
  EXPECT_EQ(LearningRate(config, 20, 1000), 2e-3);
}

TEST(LearningRate, DecaysOverTheRunByDefault) {
  OptimizerConfig config = Golden();
  config.lr_decay_iters.reset();
  for (int64_t i = 0; i < 25; ++i) {
    EXPECT_EQ(LearningRate(config, 20, i), LearningRate(Golden(), 999, i));
  }
  // A run shorter than its warm-up never decays.
  EXPECT_NEAR(LearningRate(config, 2, 1), 4e-3 / 3, 1e-15);
  config.lr_warmup_iters = 0;
  EXPECT_EQ(LearningRate(config, 20, 0), 2e-3);
}

TEST(OptimizerConfig, SaysWhatIsWrong) {
  EXPECT_TRUE(OptimizerConfig().Validate().ok());
  EXPECT_TRUE(Golden().Validate().ok());
  using Edit = std::function<void(OptimizerConfig&)>;
  const std::vector<std::pair<Edit, std::string>> cases = {
      {[](auto& c) { c.lr = -1; }, "lr: -1, wanted 0 or more"},
      {[](auto& c) { c.lr = 0.0 / 0.0; }, "lr: nan, wanted 0 or more"},
      {[](auto& c) { c.min_lr = 1; }, "min_lr: 1, wanted 0 to lr, 0.002"},
      {[](auto& c) { c.lr_warmup_iters = -2; },
       "lr_warmup_iters: -2, wanted 0 or more"},
      {[](auto& c) { c.lr_decay_iters = 2; },
       "lr_decay_iters: 2, wanted lr_warmup_iters, 3, or more"},
      {[](auto& c) { c.weight_decay = -0.1; },
       "weight_decay: -0.1, wanted 0 or more"},
      {[](auto& c) { c.adam_beta1 = 1; },
       "adam_beta1: 1, wanted 0 or more and below 1"},
      {[](auto& c) { c.adam_beta2 = -1; },
       "adam_beta2: -1, wanted 0 or more and below 1"},
      {[](auto& c) { c.adam_eps = 0; }, "adam_eps: 0, wanted above 0"},
      {[](auto& c) { c.clip_grad = -1; },
       "clip_grad: -1, wanted 0 (no clipping) or more"},
  };
  for (const auto& [edit, message] : cases) {
    OptimizerConfig config = Golden();
    edit(config);
    const absl::Status status = config.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), message);
  }
}

TEST(OptimizerConfig, ReadsTheContractsKeys) {
  const auto node = ParseYaml(
      "{lr: 1.0e-3, min_lr: 1.0e-5, lr_warmup_iters: 10, lr_decay_iters: 100, "
      "lr_decay_style: linear, weight_decay: 0.1, adam_beta1: 0.8, "
      "adam_beta2: 0.95, adam_eps: 1.0e-7, exp_avg_dtype: bfloat16, "
      "clip_grad: 0.5}",
      "c.yaml");
  ASSERT_TRUE(node.ok()) << node.status();
  OptimizerConfig config;
  ASSERT_TRUE(FromYaml(*node, config).ok());
  EXPECT_EQ(config.lr, 1e-3);
  EXPECT_EQ(config.min_lr, 1e-5);
  EXPECT_EQ(config.lr_warmup_iters, 10);
  EXPECT_EQ(config.lr_decay_iters, 100);
  EXPECT_EQ(config.lr_decay_style, LrDecayStyle::kLinear);
  EXPECT_EQ(config.weight_decay, 0.1);
  EXPECT_EQ(config.adam_beta1, 0.8);
  EXPECT_EQ(config.adam_beta2, 0.95);
  EXPECT_EQ(config.adam_eps, 1e-7);
  EXPECT_EQ(config.exp_avg_dtype, DType::kBFloat16);
  EXPECT_EQ(config.clip_grad, 0.5);
}

TEST(OptimizerConfig, ADtypeThatIsNoMoments) {
  const auto node = ParseYaml("{exp_avg_dtype: float16}", "c.yaml");
  ASSERT_TRUE(node.ok()) << node.status();
  OptimizerConfig config;
  EXPECT_EQ(FromYaml(*node, config).message(),
            "c.yaml: exp_avg_dtype: \"float16\", wanted float32 | bfloat16");
}

}  // namespace
}  // namespace mimo
