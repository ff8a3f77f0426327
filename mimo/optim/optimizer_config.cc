#include "mimo/optim/optimizer_config.h"

#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

absl::Status Want(bool good, absl::string_view field, double found,
                  absl::string_view wanted) {
  if (good && std::isfinite(found)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", found, ", wanted ", wanted));
}

}  // namespace

absl::Status ModuleOptimizerConfig::Validate() const {
  MIMO_RETURN_IF_ERROR(Want(lr_mult >= 0, "lr_mult", lr_mult, "0 or more"));
  return Want(wd_mult >= 0, "wd_mult", wd_mult, "0 or more");
}

absl::Status OptimizerConfig::Validate() const {
  MIMO_RETURN_IF_ERROR(Want(lr >= 0, "lr", lr, "0 or more"));
  MIMO_RETURN_IF_ERROR(Want(0 <= min_lr && min_lr <= lr, "min_lr", min_lr,
                            absl::StrCat("0 to lr, ", lr)));
  MIMO_RETURN_IF_ERROR(Want(lr_warmup_iters >= 0, "lr_warmup_iters",
                            lr_warmup_iters, "0 or more"));
  if (lr_decay_iters) {
    MIMO_RETURN_IF_ERROR(Want(
        *lr_decay_iters >= lr_warmup_iters, "lr_decay_iters", *lr_decay_iters,
        absl::StrCat("lr_warmup_iters, ", lr_warmup_iters, ", or more")));
  }
  MIMO_RETURN_IF_ERROR(
      Want(weight_decay >= 0, "weight_decay", weight_decay, "0 or more"));
  MIMO_RETURN_IF_ERROR(Want(0 <= adam_beta1 && adam_beta1 < 1, "adam_beta1",
                            adam_beta1, "0 or more and below 1"));
  MIMO_RETURN_IF_ERROR(Want(0 <= adam_beta2 && adam_beta2 < 1, "adam_beta2",
                            adam_beta2, "0 or more and below 1"));
  MIMO_RETURN_IF_ERROR(Want(adam_eps > 0, "adam_eps", adam_eps, "above 0"));
  return Want(clip_grad >= 0, "clip_grad", clip_grad,
              "0 (no clipping) or more");
}

double LearningRate(const OptimizerConfig& config, int64_t train_iters,
                    int64_t iteration) {
  const int64_t warmup = config.lr_warmup_iters;
  if (iteration < warmup) {
    return config.lr * static_cast<double>(iteration + 1) /
           static_cast<double>(warmup);
  }
  if (config.lr_decay_style == LrDecayStyle::kConstant) return config.lr;
  const int64_t decay = config.lr_decay_iters.value_or(train_iters);
  if (iteration >= decay) return config.min_lr;
  const double progress = static_cast<double>(iteration - warmup) /
                          static_cast<double>(decay - warmup);
  const double share = config.lr_decay_style == LrDecayStyle::kLinear
                           ? 1 - progress
                           : (1 + std::cos(std::numbers::pi * progress)) / 2;
  return config.min_lr + (config.lr - config.min_lr) * share;
}

}  // namespace mimo
