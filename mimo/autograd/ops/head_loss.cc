#include "mimo/autograd/ops/head_loss.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/log/check.h"
#include "kernels/loss/head_cross_entropy.h"

namespace mimo {
namespace {

// Rows of logits that exist at a time: 4 Mi elements, at least 16 rows.
int64_t Chunk(int64_t tokens, int64_t vocab) {
  return std::clamp<int64_t>((int64_t{1} << 22) / vocab, 16,
                             std::max<int64_t>(tokens, 16));
}

Tensor Workspace(const Context& ctx, int64_t chunk, const Tensor& weight) {
  return ctx.Empty({kernels::HeadCrossEntropyWorkspaceBytes(
                       chunk, weight.dim(1), weight.dim(0), weight.dtype())},
                   DType::kUInt8);
}

struct HeadLossNode final : Node {
  Slot x_slot, loss_slot;
  Saved x, lse;
  Tensor labels;
  Parameter* weight;

  const char* name() const override { return "HeadLoss"; }
  void Backward(BackwardContext& ctx) override {
    const Context& exec = ctx.exec();
    const Tensor dloss = ctx.Take(loss_slot);
    if (!dloss.defined()) return;
    const Tensor& in = x.get();
    const auto dx = ctx.GradFor(x_slot, in.shape(), in.dtype());
    CHECK(!dx.accumulate) << "HeadLoss must be the final norm's only user";
    const int64_t vocab = weight->data.dim(0);
    const int64_t chunk = Chunk(in.dim(0), vocab);
    const Tensor workspace = Workspace(exec, chunk, weight->data);
    kernels::HeadCrossEntropyBackward(
        {.x = in.data(),
         .weight = weight->data.data(),
         .labels = labels.span<int32_t>().data(),
         .lse = lse.get().data(),
         .dloss = dloss.span<double>().data(),
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

}  // namespace

Var HeadLoss(const Context& ctx, const Var& x, Parameter& weight,
             const Tensor& labels) {
  const Tensor& in = x.value;
  CHECK_EQ(in.dim(0), labels.numel());
  CHECK_EQ(in.dim(1), weight.data.dim(1)) << weight.name;
  Var loss{ctx.Empty({1}, DType::kFloat64)};
  Tensor lse = ctx.Empty({in.dim(0)}, AccumulatorOf(in.dtype()));
  const int64_t vocab = weight.data.dim(0);
  const int64_t chunk = Chunk(in.dim(0), vocab);
  const Tensor workspace = Workspace(ctx, chunk, weight.data);
  kernels::HeadCrossEntropyForward({.x = in.data(),
                                    .weight = weight.data.data(),
                                    .labels = labels.span<int32_t>().data(),
                                    .loss = loss.value.span<double>().data(),
                                    .lse = lse.data(),
                                    .workspace = workspace.data(),
                                    .tokens = in.dim(0),
                                    .hidden = in.dim(1),
                                    .vocab = vocab,
                                    .chunk = chunk,
                                    .dtype = in.dtype()},
                                   ctx.compute);
  if (ctx.tape == nullptr || !(x.needs_grad() || !weight.frozen)) return loss;
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
