#include "mimo/optim/adamw.h"

#include <limits>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/device.h"
#include "kernels/optim/adamw.h"
#include "kernels/optim/global_norm.h"

namespace mimo {

AdamW::AdamW(const OptimizerConfig& config,
             const std::vector<Parameter*>& parameters, Allocator& allocator)
    : config_(config),
      stream_(allocator.stream()),
      control_(allocator, {sizeof(kernels::AdamWControl)}, DType::kUInt8) {
  DType dtype = DType::kFloat32;
  std::vector<kernels::AdamWTensor> tensors;
  for (Parameter* parameter : parameters) {
    if (parameter->frozen) continue;
    const Tensor& data = parameter->data;
    if (parameters_.empty()) dtype = data.dtype();
    CHECK(data.dtype() == dtype)
        << parameter->name << " is " << Name(data.dtype());
    parameters_.push_back(parameter);
    const auto add = [&](const char* what) -> void* {
      const auto [it, fresh] = state_.emplace(
          absl::StrCat(what, ".", parameter->name),
          Tensor::Zeros(allocator, data.shape(), AccumulatorOf(dtype)));
      CHECK(fresh) << "two parameters are named " << parameter->name;
      return it->second.data();
    };
    tensors.push_back(
        {.param = data.data(),
         .master = AccumulatorOf(dtype) == dtype ? nullptr : add("master"),
         .grad = parameter->main_grad.data(),
         .exp_avg = add("exp_avg"),
         .exp_avg_sq = add("exp_avg_sq"),
         .size = data.numel(),
         .lr_scale = 1,
         .weight_decay = data.rank() >= 2 ? config.weight_decay : 0});
  }
  tensors_.emplace(tensors, dtype, stream_);
  SetControl({});
  SetMasters();
}

void AdamW::Step(double lr) {
  SetLearningRate(lr);
  Update();
}

void AdamW::SetLearningRate(double lr) {
  CopyBytes(&control()->lr, &lr, sizeof(lr), stream_);
}

void AdamW::Update() {
  for (Parameter* parameter : parameters_) parameter->Grad();
  kernels::GlobalNorm({.tensors = &*tensors_,
                       .max_norm = config_.clip_grad,
                       .control = control()},
                      stream_);
  kernels::AdamW({.tensors = &*tensors_,
                  .beta1 = config_.adam_beta1,
                  .beta2 = config_.adam_beta2,
                  .eps = config_.adam_eps,
                  .control = control()},
                 stream_);
}

void AdamW::Skip() {
  kernels::AdamWControl value = Control();
  value.norm = std::numeric_limits<double>::quiet_NaN();
  ++value.skipped;
  SetControl(value);
}

void AdamW::Restore(int64_t steps, int64_t skipped) {
  SetControl({.steps = steps, .skipped = skipped});
}

void AdamW::SetMasters() {
  kernels::SetMasters({.tensors = &*tensors_}, stream_);
}

kernels::AdamWControl AdamW::Control() const {
  kernels::AdamWControl value;
  CopyBytes(&value, control_.data(), sizeof(value), stream_);
  Synchronize(stream_);
  return value;
}

void AdamW::SetControl(const kernels::AdamWControl& value) {
  CopyBytes(control_.data(), &value, sizeof(value), stream_);
}

}  // namespace mimo
