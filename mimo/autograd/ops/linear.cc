#include "mimo/autograd/ops/linear.h"

#include <memory>
#include <utility>

#include "absl/log/check.h"
#include "kernels/gemm/gemm.h"

namespace mimo {
namespace {

struct LinearNode final : Node {
  Slot x_slot, y_slot;
  Shape x_shape;
  Saved x;  // [T, H]; undefined when the weight is frozen
  Saved z;  // [T, F] x w^T + b; undefined without an activation
  ParameterUse weight;
  ParameterUse bias;  // or null
  Activation activation;

  const char* name() const override { return "Linear"; }

  void Backward(BackwardContext& ctx) override {
    const Context& exec = ctx.exec();
    Tensor dy = ctx.Take(y_slot);  // [T, F]
    if (!dy.defined()) return;
    const bool in_place = activation != Activation::kIdentity;
    if (in_place && !dy.unique()) dy = dy.Clone(*exec.allocator);
    const int64_t tokens = dy.dim(0), features = dy.dim(1);
    const bool bias_grad = bias != nullptr && !bias->frozen;
    if (bias_grad || activation != Activation::kIdentity) {
      const Tensor workspace =
          exec.Empty({kernels::BiasActivationBackwardWorkspaceBytes(
                         tokens, features, dy.dtype(), exec.compute.device)},
                     DType::kUInt8);
      kernels::BiasActivationBackward(
          {.x = z.get().defined() ? z.get().data() : nullptr,
           .bias = nullptr,  // z has it
           .dy = dy.data(),
           .dx = activation == Activation::kIdentity ? nullptr : dy.data(),
           .dbias = bias_grad ? bias->main_grad.data() : nullptr,
           .dbias_beta = bias_grad ? bias->NextBeta() : 0,
           .workspace = workspace.data(),
           .activation = activation,
           .tokens = tokens,
           .features = features,
           .dtype = dy.dtype()},
          exec.compute);
    }
    const int64_t hidden = x_shape[1];
    if (auto dx = ctx.GradFor(x_slot, x_shape, dy.dtype());
        dx.buffer.defined()) {
      kernels::Gemm({.a = dy.data(),
                     .b = weight->data.data(),
                     .c = dx.data(),
                     .m = tokens,
                     .n = hidden,
                     .k = features,
                     .beta = dx.accumulate ? 1.0f : 0.0f,
                     .dtype = dy.dtype()},
                    exec.compute);
    }
    if (!weight->frozen) {
      kernels::Gemm({.a = dy.data(),
                     .b = x.get().data(),
                     .c = weight->main_grad.data(),
                     .m = features,
                     .n = hidden,
                     .k = tokens,
                     .transpose_a = true,
                     .beta = weight->NextBeta(),
                     .dtype = dy.dtype(),
                     .c_dtype = weight->main_grad.dtype()},
                    exec.compute);
    }
  }
};

Var Apply(const Context& ctx, const Var& x, Parameter& weight, Parameter* bias,
          Activation activation, bool record_only = false) {
  CHECK_EQ(x.value.dim(1), weight.data.dim(1))
      << weight.name << ": input " << ToString(x.value.shape()) << ", weight "
      << ToString(weight.data.shape());
  const int64_t tokens = x.value.dim(0), features = weight.data.dim(0);
  const bool record =
      ctx.tape != nullptr &&
      (x.needs_grad() || !weight.frozen || (bias != nullptr && !bias->frozen));
  Var y;
  Tensor z;  // kept for the backward of an activation
  if (!record_only) y.value = ctx.Empty({tokens, features}, x.value.dtype());
  if (record && activation != Activation::kIdentity)
    z = ctx.Empty(y.value.shape(), y.value.dtype());
  if (!record_only) {
    kernels::Gemm({.a = x.value.data(),
                   .b = weight.data.data(),
                   .c = y.value.data(),
                   .m = tokens,
                   .n = features,
                   .k = x.value.dim(1),
                   .transpose_b = true,
                   .dtype = y.value.dtype(),
                   .bias = bias != nullptr ? bias->data.data() : nullptr,
                   .activation = activation,
                   .z = z.defined() ? z.data() : nullptr},
                  ctx.compute);
  }
  if (!record) return y;
  auto node = std::make_unique<LinearNode>();
  node->x_slot = x.slot;
  node->y_slot = y.slot = ctx.tape->NewSlot();
  node->x_shape = x.value.shape();
  if (!weight.frozen) node->x = Saved(x.value);
  if (z.defined()) node->z = Saved(std::move(z));
  node->weight = &weight;
  node->bias = bias;
  node->activation = activation;
  ctx.tape->Append(std::move(node));
  return y;
}

}  // namespace

Var Linear(const Context& ctx, const Var& x, Parameter& weight, Parameter* bias,
           Activation activation) {
  return Apply(ctx, x, weight, bias, activation);
}

Var RecordLinear(const Context& ctx, const Var& x, Parameter& weight,
                 Parameter* bias) {
  return Apply(ctx, x, weight, bias, Activation::kIdentity,
               /*record_only=*/true);
}

}  // namespace mimo
