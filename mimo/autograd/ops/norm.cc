#include "mimo/autograd/ops/norm.h"

#include <memory>
#include <utility>

#include "absl/log/check.h"
#include "kernels/elementwise/add.h"
#include "kernels/norm/layer_norm.h"
#include "kernels/norm/rms_norm.h"

namespace mimo {
namespace {

struct AddNormNode final : Node {
  Slot x_slot, residual_slot, sum_slot, y_slot;
  Saved sum;   // [T, H]
  Saved mean;  // [T]; undefined for RMS norm
  Saved rstd;  // [T]
  ParameterUse weight;
  ParameterUse bias;  // null: RMS norm

  const char* name() const override { return "AddNorm"; }

  void Backward(BackwardContext& ctx) override {
    const Context& exec = ctx.exec();
    const Tensor dy = ctx.Take(y_slot);
    Tensor dsum = ctx.Take(sum_slot);
    const bool wanted = x_slot != kNoGrad || residual_slot != kNoGrad;
    if (dy.defined()) {
      const Tensor& s = sum.get();
      const bool accumulate = dsum.defined();
      if (!wanted) {
        dsum = Tensor();
      } else if (!accumulate) {
        dsum = exec.Empty(s.shape(), s.dtype());
      } else if (!dsum.unique()) {
        dsum = dsum.Clone(*exec.allocator);
      }
      void* dx = dsum.defined() ? dsum.data() : nullptr;
      if (bias == nullptr) {
        BackwardRms(exec, s, dy, dx, accumulate);
      } else {
        BackwardLayer(exec, s, dy, dx, accumulate);
      }
    }
    ctx.PassGrad(residual_slot, dsum);
    ctx.PassGrad(x_slot, std::move(dsum));
  }

  void BackwardRms(const Context& exec, const Tensor& s, const Tensor& dy,
                   void* dx, bool accumulate) {
    const Tensor workspace =
        exec.Empty({kernels::RmsNormBackwardWorkspaceBytes(
                       s.dim(0), s.dim(1), s.dtype(), s.device())},
                   DType::kUInt8);
    kernels::RmsNormBackward(
        {.x = s.data(),
         .weight = weight->data.data(),
         .rstd = rstd.get().data(),
         .dy = dy.data(),
         .dx = dx,
         .accumulate_dx = accumulate,
         .dweight = weight->main_grad_or_null(),
         .dweight_beta = weight->frozen ? 0 : weight->NextBeta(),
         .workspace = workspace.data(),
         .tokens = s.dim(0),
         .hidden = s.dim(1),
         .dtype = s.dtype()},
        exec.compute);
  }

  void BackwardLayer(const Context& exec, const Tensor& s, const Tensor& dy,
                     void* dx, bool accumulate) {
    const Tensor workspace =
        exec.Empty({kernels::LayerNormBackwardWorkspaceBytes(
                       s.dim(0), s.dim(1), s.dtype(), s.device())},
                   DType::kUInt8);
    kernels::LayerNormBackward(
        {.x = s.data(),
         .weight = weight->data.data(),
         .mean = mean.get().data(),
         .rstd = rstd.get().data(),
         .dy = dy.data(),
         .dx = dx,
         .accumulate_dx = accumulate,
         .dweight = weight->main_grad_or_null(),
         .dbias = bias->main_grad_or_null(),
         .dweight_beta = weight->frozen ? 0 : weight->NextBeta(),
         .dbias_beta = bias->frozen ? 0 : bias->NextBeta(),
         .workspace = workspace.data(),
         .tokens = s.dim(0),
         .hidden = s.dim(1),
         .dtype = s.dtype()},
        exec.compute);
  }
};

struct AddNode final : Node {
  Slot x_slot, y_slot, out_slot;
  const char* name() const override { return "Add"; }
  void Backward(BackwardContext& ctx) override {
    Tensor grad = ctx.Take(out_slot);
    ctx.PassGrad(x_slot, grad);
    ctx.PassGrad(y_slot, std::move(grad));
  }
};

}  // namespace

NormOutput AddNorm(const Context& ctx, const Var& x, const Var& residual,
                   Parameter& weight, Parameter* bias, double eps) {
  const Shape& shape = x.value.shape();
  const DType dtype = x.value.dtype();
  CHECK_EQ(shape[1], weight.data.dim(0)) << weight.name;
  const bool add = residual.value.defined();
  if (add) CHECK(residual.value.shape() == shape) << weight.name;
  NormOutput out;
  out.sum.value = add ? ctx.Empty(shape, dtype) : x.value;
  out.normalized.value = ctx.Empty(shape, dtype);
  Tensor rstd = ctx.Empty({shape[0]}, AccumulatorOf(dtype));
  Tensor mean;
  const void* residual_data = add ? residual.value.data() : nullptr;
  void* sum_data = add ? out.sum.value.data() : nullptr;
  if (bias == nullptr) {
    kernels::RmsNormForward({.x = x.value.data(),
                             .residual = residual_data,
                             .weight = weight.Values().data(),
                             .sum = sum_data,
                             .y = out.normalized.value.data(),
                             .rstd = rstd.data(),
                             .tokens = shape[0],
                             .hidden = shape[1],
                             .eps = eps,
                             .dtype = dtype},
                            ctx.compute);
  } else {
    mean = ctx.Empty({shape[0]}, AccumulatorOf(dtype));
    kernels::LayerNormForward({.x = x.value.data(),
                               .residual = residual_data,
                               .weight = weight.Values().data(),
                               .bias = bias->Values().data(),
                               .sum = sum_data,
                               .y = out.normalized.value.data(),
                               .mean = mean.data(),
                               .rstd = rstd.data(),
                               .tokens = shape[0],
                               .hidden = shape[1],
                               .eps = eps,
                               .dtype = dtype},
                              ctx.compute);
  }
  const bool input_grad = x.needs_grad() || residual.needs_grad();
  if (ctx.tape == nullptr ||
      !(input_grad || !weight.frozen || (bias != nullptr && !bias->frozen))) {
    return out;
  }
  auto node = std::make_unique<AddNormNode>();
  node->x_slot = x.slot;
  node->residual_slot = residual.slot;
  node->sum_slot = out.sum.slot = input_grad ? ctx.tape->NewSlot() : kNoGrad;
  node->y_slot = out.normalized.slot = ctx.tape->NewSlot();
  node->sum = Saved(out.sum.value);
  if (mean.defined()) node->mean = Saved(std::move(mean));
  node->rstd = Saved(std::move(rstd));
  node->weight = &weight;
  node->bias = bias;
  ctx.tape->Append(std::move(node));
  return out;
}

Var Add(const Context& ctx, const Var& x, const Var& y) {
  CHECK(x.value.shape() == y.value.shape());
  Var out{ctx.Empty(x.value.shape(), x.value.dtype())};
  kernels::Add({.a = x.value.data(),
                .b = y.value.data(),
                .out = out.value.data(),
                .size = out.value.numel(),
                .dtype = out.value.dtype()},
               ctx.compute);
  if (ctx.tape == nullptr || !(x.needs_grad() || y.needs_grad())) return out;
  auto node = std::make_unique<AddNode>();
  node->x_slot = x.slot;
  node->y_slot = y.slot;
  node->out_slot = out.slot = ctx.tape->NewSlot();
  ctx.tape->Append(std::move(node));
  return out;
}

}  // namespace mimo
