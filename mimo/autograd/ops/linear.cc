#include "mimo/autograd/ops/linear.h"

#include <memory>
#include <utility>

#include "absl/log/check.h"
#include "kernels/base/device.h"
#include "kernels/gemm/gemm.h"
#include "mimo/autograd/ops/collectives.h"

namespace mimo {
namespace {

struct LinearNode final : Node {
  Slot x_slot, y_slot;
  Shape x_shape;
  Saved x;  // [T, H] before it is gathered; undefined with a frozen weight
  Saved z;  // [T, F] x w^T + b; undefined without an activation
  ParameterUse weight;
  ParameterUse bias;  // or null
  Activation activation;
  LinearSplit split;

  const char* name() const override { return "Linear"; }

  // With the tp ranks, the collectives of a column-split layer run beside the
  // products:   comm     gather x | reduce dx
  //             compute  dx       | dw
  void Backward(BackwardContext& ctx) override {
    const Context& exec = ctx.exec();
    Tensor dy = ctx.Take(y_slot);  // [T, F]
    if (!dy.defined()) return;
    Tensor full_x = x.get();
    if (split.kind == LinearSplit::kRow && split.tokens) {
      dy = GatherTokens(exec, dy, *split.tp);
      WaitFor(exec.compute, exec.comm);
    }
    if (split.kind == LinearSplit::kColumn && split.tokens && full_x.defined())
      full_x = GatherTokens(exec, full_x, *split.tp);
    dy = BeforeActivation(exec, std::move(dy));
    if (split.kind != LinearSplit::kColumn) {
      const auto dx = ctx.GradFor(x_slot, x_shape, dy.dtype());
      if (dx.buffer.defined()) Dx(exec, dy, dx.buffer, dx.accumulate);
      if (!weight->frozen) Dweight(exec, dy, full_x);
      return;
    }
    Tensor part, dx;  // of this rank's outputs; of all
    if (x_slot != kNoGrad) {
      part = exec.Empty({dy.dim(0), x_shape[1]}, dy.dtype());
      Dx(exec, dy, part, /*accumulate=*/false);
    }
    WaitFor(exec.compute, exec.comm);  // for x
    if (part.defined())
      dx = split.tokens ? ReduceTokens(exec, part, *split.tp)
                        : Reduce(exec, part, *split.tp);
    if (!weight->frozen) Dweight(exec, dy, full_x);
    WaitFor(exec.compute, exec.comm);
    ctx.PassGrad(x_slot, std::move(dx));
  }

  // The gradient of x w^T + b, and that of b.
  Tensor BeforeActivation(const Context& exec, Tensor dy) {
    const bool in_place = activation != Activation::kIdentity;
    if (in_place && !dy.unique()) dy = dy.Clone(*exec.allocator);
    const int64_t tokens = dy.dim(0), features = dy.dim(1);
    const bool bias_grad = bias != nullptr && !bias->frozen;
    if (!bias_grad && !in_place) return dy;
    const Tensor workspace =
        exec.Empty({kernels::BiasActivationBackwardWorkspaceBytes(
                       tokens, features, dy.dtype(), exec.compute.device)},
                   DType::kUInt8);
    kernels::BiasActivationBackward(
        {.x = z.get().defined() ? z.get().data() : nullptr,
         .bias = nullptr,  // z has it
         .dy = dy.data(),
         .dx = in_place ? dy.data() : nullptr,
         .dbias = bias_grad ? bias->main_grad.data() : nullptr,
         .dbias_beta = bias_grad ? bias->NextBeta() : 0,
         .workspace = workspace.data(),
         .activation = activation,
         .tokens = tokens,
         .features = features,
         .dtype = dy.dtype()},
        exec.compute);
    return dy;
  }

  void Dx(const Context& exec, const Tensor& dy, const Tensor& dx,
          bool accumulate) const {
    kernels::Gemm({.a = dy.data(),
                   .b = weight->data.data(),
                   .c = dx.data(),
                   .m = dy.dim(0),
                   .n = dx.dim(1),
                   .k = dy.dim(1),
                   .beta = accumulate ? 1.0f : 0.0f,
                   .dtype = dy.dtype()},
                  exec.compute);
  }

  void Dweight(const Context& exec, const Tensor& dy, const Tensor& in) const {
    kernels::Gemm({.a = dy.data(),
                   .b = in.data(),
                   .c = weight->main_grad.data(),
                   .m = dy.dim(1),
                   .n = in.dim(1),
                   .k = dy.dim(0),
                   .transpose_a = true,
                   .beta = weight->NextBeta(),
                   .dtype = dy.dtype(),
                   .c_dtype = weight->main_grad.dtype()},
                  exec.compute);
  }
};

Var Apply(const Context& ctx, const Var& x, Parameter& weight, Parameter* bias,
          Activation activation, const LinearSplit& split,
          bool record_only = false) {
  CHECK_EQ(x.value.dim(1), weight.data.dim(1))
      << weight.name << ": input " << ToString(x.value.shape()) << ", weight "
      << ToString(weight.data.shape());
  const bool column = split.kind == LinearSplit::kColumn;
  const bool row = split.kind == LinearSplit::kRow;
  CHECK_EQ(column || row, split.tp != nullptr) << weight.name;
  CHECK(!row || activation == Activation::kIdentity) << weight.name;
  const bool record =
      ctx.tape != nullptr &&
      (x.needs_grad() || !weight.frozen || (bias != nullptr && !bias->frozen));
  Var y;
  Tensor z;  // kept for the backward of an activation
  if (!record_only) {
    Tensor in = x.value;
    if (column && split.tokens) {
      in = GatherTokens(ctx, in, *split.tp);
      WaitFor(ctx.compute, ctx.comm);
    }
    y.value = ctx.Empty({in.dim(0), weight.data.dim(0)}, in.dtype());
    if (record && activation != Activation::kIdentity)
      z = ctx.Empty(y.value.shape(), y.value.dtype());
    // Of a sum over ranks one has the bias.
    const bool with_bias = bias != nullptr && (!row || split.tp->rank() == 0);
    kernels::Gemm({.a = in.data(),
                   .b = weight.data.data(),
                   .c = y.value.data(),
                   .m = in.dim(0),
                   .n = y.value.dim(1),
                   .k = in.dim(1),
                   .transpose_b = true,
                   .dtype = y.value.dtype(),
                   .bias = with_bias ? bias->data.data() : nullptr,
                   .activation = activation,
                   .z = z.defined() ? z.data() : nullptr},
                  ctx.compute);
    if (row) {
      const Tensor part = std::move(y.value);
      y.value = split.tokens ? ReduceTokens(ctx, part, *split.tp)
                             : Reduce(ctx, part, *split.tp);
      WaitFor(ctx.compute, ctx.comm);
    }
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
  node->split = split;
  ctx.tape->Append(std::move(node));
  return y;
}

}  // namespace

Var Linear(const Context& ctx, const Var& x, Parameter& weight, Parameter* bias,
           Activation activation, const LinearSplit& split) {
  return Apply(ctx, x, weight, bias, activation, split);
}

Var RecordLinear(const Context& ctx, const Var& x, Parameter& weight,
                 Parameter* bias, const LinearSplit& split) {
  return Apply(ctx, x, weight, bias, Activation::kIdentity, split,
               /*record_only=*/true);
}

}  // namespace mimo
