// OptimizerConfig: the `optimizer:` keys of a run, and the learning rate they
// give to an iteration.
#ifndef MIMO_MIMO_OPTIM_OPTIMIZER_CONFIG_H_
#define MIMO_MIMO_OPTIM_OPTIMIZER_CONFIG_H_

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/base/dtype.h"
#include "mimo/config/dtype_names.h"
#include "mimo/config/fields.h"

namespace mimo {

enum class LrDecayStyle { kCosine, kLinear, kConstant };
template <>
struct EnumNames<LrDecayStyle> {
  static constexpr std::array<std::pair<LrDecayStyle, absl::string_view>, 3>
      kNames = {{{LrDecayStyle::kCosine, "cosine"},
                 {LrDecayStyle::kLinear, "linear"},
                 {LrDecayStyle::kConstant, "constant"}}};
};

// What a module of its own name has in place of the rates of all.
struct ModuleOptimizerConfig {
  double lr_mult = 1;  // times the learning rate
  double wd_mult = 1;  // times weight_decay

  template <typename V>
  void Fields(V& v) {
    v("lr_mult", lr_mult);
    v("wd_mult", wd_mult);
  }
  absl::Status Validate() const;
};

struct OptimizerConfig {
  double lr = 1e-3;     // the peak
  double min_lr = 0.0;  // after the decay
  int64_t lr_warmup_iters = 0;
  std::optional<int64_t> lr_decay_iters;  // absent: train_iters
  LrDecayStyle lr_decay_style = LrDecayStyle::kCosine;
  double weight_decay = 0.01;  // of parameters with two or more dimensions
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.999;
  double adam_eps = 1e-8;
  DType exp_avg_dtype = DType::kFloat32;  // of the first moment
  double clip_grad = 1.0;  // largest global L2 norm; 0: no clipping
  // Of a module, "images", or of a part of it alone, "images.encoders".
  std::map<std::string, ModuleOptimizerConfig> modules;

  template <typename V>
  void Fields(V& v) {
    v("lr", lr);
    v("min_lr", min_lr);
    v("lr_warmup_iters", lr_warmup_iters);
    v("lr_decay_iters", lr_decay_iters);
    v("lr_decay_style", lr_decay_style);
    v("weight_decay", weight_decay);
    v("adam_beta1", adam_beta1);
    v("adam_beta2", adam_beta2);
    v("adam_eps", adam_eps);
    v("exp_avg_dtype", exp_avg_dtype);
    v("clip_grad", clip_grad);
    v("modules", modules);
  }
  absl::Status Validate() const;
};

// The learning rate of `iteration`, counted from 0; w = lr_warmup_iters,
// d = lr_decay_iters, else train_iters:
//   i < w         lr (i + 1) / w
//   constant      lr
//   w <= i < d    min_lr + (lr - min_lr) f(p),  p = (i - w) / (d - w),
//                 f = (1 + cos(pi p)) / 2 (cosine) or 1 - p (linear)
//   i >= d        min_lr
double LearningRate(const OptimizerConfig& config, int64_t train_iters,
                    int64_t iteration);

}  // namespace mimo

#endif  // MIMO_MIMO_OPTIM_OPTIMIZER_CONFIG_H_
