#include "mimo/optim/adamw.h"

#include <cmath>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "kernels/optim/adamw.h"
#include "kernels/optim/global_norm.h"

namespace mimo {

AdamW::AdamW(const OptimizerConfig& config,
             const std::vector<Parameter*>& parameters, Allocator& allocator)
    : config_(config) {
  for (Parameter* parameter : parameters) {
    if (parameter->frozen) continue;
    const Tensor& data = parameter->data;
    CHECK(entries_.empty() ||
          data.dtype() == entries_[0].parameter->data.dtype())
        << parameter->name << " is " << Name(data.dtype());
    const DType dtype = AccumulatorOf(data.dtype());
    entries_.push_back({parameter,
                        Tensor::Zeros(allocator, data.shape(), dtype),
                        Tensor::Zeros(allocator, data.shape(), dtype)});
    const Entry& entry = entries_.back();
    const bool fresh =
        state_.emplace(absl::StrCat("exp_avg.", parameter->name), entry.exp_avg)
            .second;
    CHECK(fresh) << "two parameters are named " << parameter->name;
    state_.emplace(absl::StrCat("exp_avg_sq.", parameter->name),
                   entry.exp_avg_sq);
  }
}

double AdamW::Step(double lr) {
  if (entries_.empty()) return 0;
  const DType dtype = entries_[0].parameter->data.dtype();
  std::vector<kernels::NormTensor> grads;
  std::vector<kernels::AdamWTensor> tensors;
  for (Entry& entry : entries_) {
    Parameter& parameter = *entry.parameter;
    const Tensor& grad = parameter.Grad();
    grads.push_back({.x = grad.data(), .size = grad.numel()});
    tensors.push_back({.param = parameter.data.data(),
                       .grad = grad.data(),
                       .exp_avg = entry.exp_avg.data(),
                       .exp_avg_sq = entry.exp_avg_sq.data(),
                       .size = parameter.data.numel(),
                       .lr = lr,
                       .weight_decay = parameter.data.rank() >= 2
                                           ? config_.weight_decay
                                           : 0});
  }
  double norm, scale;
  kernels::GlobalNorm({.tensors = grads,
                       .max_norm = config_.clip_grad,
                       .norm = &norm,
                       .scale = &scale,
                       .dtype = AccumulatorOf(dtype)},
                      Stream());
  if (!std::isfinite(norm)) {
    Skip();
    return norm;
  }
  kernels::AdamW({.tensors = tensors,
                  .beta1 = config_.adam_beta1,
                  .beta2 = config_.adam_beta2,
                  .eps = config_.adam_eps,
                  .step = ++steps_,
                  .grad_scale = &scale,
                  .dtype = dtype},
                 Stream());
  return norm;
}

void AdamW::Restore(int64_t steps, int64_t skipped) {
  steps_ = steps;
  skipped_ = skipped;
}

}  // namespace mimo
