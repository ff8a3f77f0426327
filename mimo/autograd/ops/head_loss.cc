#include "mimo/autograd/ops/head_loss.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/log/check.h"
#include "kernels/loss/head_cross_entropy.h"

namespace mimo {
namespace {

// Rows of logits that exist at a time, at least 16: 4 Mi elements; on a GPU 256
// Mi, because every chunk reads and writes the weight's whole gradient.
int64_t Chunk(int64_t tokens, const Tensor& weight) {
  const int bits = weight.device() == Device::kCpu ? 22 : 28;
  return std::clamp<int64_t>((int64_t{1} << bits) / weight.dim(0), 16,
                             std::max<int64_t>(tokens, 16));
}

Tensor Workspace(const Context& ctx, int64_t chunk, const Tensor& weight) {
  return ctx.Empty({kernels::HeadCrossEntropyWorkspaceBytes(
                       chunk, weight.dim(1), weight.dim(0), weight.dtype(),
                       weight.device())},
                   DType::kUInt8);
}

struct HeadLossNode final : Node {
  Slot x_slot, loss_slot;
  Saved x, lse;
  Tensor labels;
  ParameterUse weight;

  const char* name() const override { return "HeadLoss"; }
  void Backward(BackwardContext& ctx) override {
    const Context& exec = ctx.exec();
    const Tensor dloss = ctx.Take(loss_slot);
    if (!dloss.defined()) return;
    const Tensor& in = x.get();
    const auto dx = ctx.GradFor(x_slot, in.shape(), in.dtype());
    CHECK(!dx.accumulate) << "HeadLoss must be the final norm's only user";
    const int64_t vocab = weight->data.dim(0);
    const int64_t chunk = Chunk(in.dim(0), weight->data);
    const Tensor workspace = Workspace(exec, chunk, weight->data);
    kernels::HeadCrossEntropyBackward(
        {.x = in.data(),
         .weight = weight->data.data(),
         .labels = labels.pointer<int32_t>(),
         .lse = lse.get().data(),
         .dloss = dloss.pointer<double>(),
         .dx = dx.data(),
         .dweight = weight->main_grad_or_null(),
         .dweight_beta = weight->frozen ? 0 : weight->NextBeta(),
         .workspace = workspace.data(),
         .tokens = in.dim(0),
         .hidden = in.dim(1),
         .vocab = vocab,
         .chunk = chunk,
         .dtype = in.dtype()},
        exec.compute);
  }
};

// The gradients are there since the forward.
struct HeadLossDoneNode final : Node {
  Slot x_slot, loss_slot;
  Tensor dx;
  ParameterUse weight;

  const char* name() const override { return "HeadLossDone"; }
  void Backward(BackwardContext& ctx) override {
    if (ctx.Take(loss_slot).defined()) ctx.PassGrad(x_slot, std::move(dx));
  }
};

Var LossAndGradients(const Context& ctx, const Var& x, Parameter& weight,
                     const Tensor& labels, const Tensor& dloss) {
  const Tensor& in = x.value;
  auto node = std::make_unique<HeadLossDoneNode>();
  node->x_slot = x.slot;
  if (x.needs_grad()) node->dx = ctx.Empty(in.shape(), in.dtype());
  node->weight = &weight;
  Var loss{ctx.Empty({1}, DType::kFloat64), ctx.tape->NewSlot()};
  node->loss_slot = loss.slot;
  const int64_t chunk = Chunk(in.dim(0), weight.data);
  const Tensor workspace = Workspace(ctx, chunk, weight.data);
  kernels::HeadCrossEntropyForwardBackward(
      {.x = in.data(),
       .weight = weight.data.data(),
       .labels = labels.pointer<int32_t>(),
       .loss = loss.value.pointer<double>(),
       .dloss = dloss.pointer<double>(),
       .dx = x.needs_grad() ? node->dx.data() : nullptr,
       .dweight = weight.main_grad_or_null(),
       .dweight_beta = weight.frozen ? 0 : weight.NextBeta(),
       .workspace = workspace.data(),
       .tokens = in.dim(0),
       .hidden = in.dim(1),
       .vocab = weight.data.dim(0),
       .chunk = chunk,
       .dtype = in.dtype()},
      ctx.compute);
  ctx.tape->Append(std::move(node));
  return loss;
}

}  // namespace

Var HeadLoss(const Context& ctx, const Var& x, Parameter& weight,
             const Tensor& labels, const Tensor& dloss) {
  const Tensor& in = x.value;
  CHECK_EQ(in.dim(0), labels.numel());
  CHECK_EQ(in.dim(1), weight.data.dim(1)) << weight.name;
  const bool record = ctx.tape != nullptr && (x.needs_grad() || !weight.frozen);
  if (record && dloss.defined())
    return LossAndGradients(ctx, x, weight, labels, dloss);
  Var loss{ctx.Empty({1}, DType::kFloat64)};
  Tensor lse = ctx.Empty({in.dim(0)}, AccumulatorOf(in.dtype()));
  const int64_t vocab = weight.data.dim(0);
  const int64_t chunk = Chunk(in.dim(0), weight.data);
  const Tensor workspace = Workspace(ctx, chunk, weight.data);
  kernels::HeadCrossEntropyForward({.x = in.data(),
                                    .weight = weight.data.data(),
                                    .labels = labels.pointer<int32_t>(),
                                    .loss = loss.value.pointer<double>(),
                                    .lse = lse.data(),
                                    .workspace = workspace.data(),
                                    .tokens = in.dim(0),
                                    .hidden = in.dim(1),
                                    .vocab = vocab,
                                    .chunk = chunk,
                                    .dtype = in.dtype()},
                                   ctx.compute);
  if (!record) return loss;
  auto node = std::make_unique<HeadLossNode>();
  node->x_slot = x.slot;
  node->loss_slot = loss.slot = ctx.tape->NewSlot();
  node->x = Saved(in);
  node->lse = Saved(std::move(lse));
  node->labels = labels;
  node->weight = &weight;
  ctx.tape->Append(std::move(node));
  return loss;
}

}  // namespace mimo
