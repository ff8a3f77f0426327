#include "mimo/autograd/ops/linear.h"

#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/log/check.h"
#include "kernels/base/device.h"
#include "kernels/base/parallel.h"
#include "kernels/gemm/gemm.h"
#include "kernels/quantise/quantise.h"
#include "mimo/autograd/ops/collectives.h"

namespace mimo {
namespace {

Quantised Quantise(const Context& ctx, const Tensor& x, DType code_dtype,
                   bool transpose = false) {
  const Quantised q = {
      ctx.Empty(transpose ? Shape{x.dim(1), x.dim(0)} : x.shape(), code_dtype),
      ctx.Empty({2}, DType::kFloat32)};
  kernels::Quantise({.x = x.data(),
                     .codes = q.codes.data(),
                     .scale = q.scale.pointer<float>(),
                     .transpose = transpose,
                     .rows = x.dim(0),
                     .columns = x.dim(1),
                     .dtype = x.dtype(),
                     .code_dtype = code_dtype},
                    ctx.compute);
  return q;
}

// All threads make the new pages: one alone needs most of a second for a GiB.
Tensor ToHost(const Tensor& x) {
  Allocator host;
  Tensor copy(host, x.shape(), x.dtype());
  ParallelFor(copy.bytes(), 1 << 20, [&](int64_t begin, int64_t end) {
    std::memset(static_cast<char*>(copy.data()) + begin, 0, end - begin);
  });
  copy.CopyFrom(x);
  return copy;
}

// Quantises a frozen weight as its products read it, those of a backward pass
// too if `gradients`. Nothing else reads the weight itself: on a GPU it goes to
// the host, to make room.
void KeepQuantised(const Context& ctx, Parameter& weight, bool gradients) {
  const bool forward = !weight.quantised.codes.defined();
  const bool backward = gradients && !weight.transposed.codes.defined();
  if (!forward && !backward) return;
  const Device device = ctx.compute.device;
  const Tensor values = weight.data.device() == device
                            ? weight.Values()
                            : weight.data.Clone(*ctx.allocator);
  if (forward) weight.quantised = Quantise(ctx, values, DType::kFloat8E4M3);
  if (backward)
    weight.transposed =
        Quantise(ctx, values, DType::kFloat8E4M3, /*transpose=*/true);
  if (device == Device::kCpu || weight.data.device() == Device::kCpu) return;
  Synchronize(ctx.compute);
  weight.data = ToHost(weight.data);
  ctx.allocator->ReleaseKept();
}

// The weight as a product reads it.
Quantised QuantisedWeight(const Context& ctx, Parameter& weight,
                          bool transpose) {
  if (!weight.frozen)
    return Quantise(ctx, weight.Values(), DType::kFloat8E4M3, transpose);
  KeepQuantised(ctx, weight, transpose);
  return transpose ? weight.transposed : weight.quantised;
}

// args.c = in w^T (kForward) or in w (kBackward) as the weight's quantization
// says, with what else is in `args`.
enum Direction { kForward, kBackward };
void Multiply(const Context& ctx, const Tensor& in, Parameter& weight,
              Direction direction, kernels::GemmArgs args) {
  args.m = in.dim(0);
  args.k = in.dim(1);
  args.n = weight.data.dim(direction == kForward ? 0 : 1);
  if (weight.quantization == Quantization::kNone) {
    args.a = in.data();
    args.b = weight.Values().data();
    args.transpose_b = direction == kForward;
    args.dtype = in.dtype();
    return kernels::Gemm(args, ctx.compute);
  }
  const Quantised a = Quantise(
      ctx, in, direction == kForward ? DType::kFloat8E4M3 : DType::kFloat8E5M2);
  const Quantised w = QuantisedWeight(ctx, weight, direction == kBackward);
  args.a = a.codes.data();
  args.b = w.codes.data();
  args.transpose_b = true;
  args.dtype = a.codes.dtype();
  args.b_dtype = w.codes.dtype();
  args.c_dtype = in.dtype();
  args.a_scale = a.scale.pointer<float>();
  args.b_scale = w.scale.pointer<float>();
  kernels::Gemm(args, ctx.compute);
}

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
    Multiply(exec, dy, *weight, kBackward,
             {.c = dx.data(), .beta = accumulate ? 1.0f : 0.0f});
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
  if (weight.frozen && weight.quantization != Quantization::kNone)
    KeepQuantised(ctx, weight, record && x.needs_grad());
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
    Multiply(ctx, in, weight, kForward,
             {.c = y.value.data(),
              .bias = with_bias ? bias->Values().data() : nullptr,
              .activation = activation,
              .z = z.defined() ? z.data() : nullptr});
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
