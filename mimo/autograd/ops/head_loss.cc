#include "mimo/autograd/ops/head_loss.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/log/check.h"
#include "kernels/base/device.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/loss/head_cross_entropy.h"
#include "mimo/autograd/ops/collectives.h"

namespace mimo {
namespace {

// Rows of logits that exist at a time, at least 16: 4 Mi elements; on a GPU 256
// Mi, because every chunk reads and writes the weight's whole gradient. `vocab`
// is alike on all tp ranks.
int64_t Chunk(int64_t tokens, int64_t vocab, Device device) {
  const int bits = device == Device::kCpu ? 22 : 28;
  return std::clamp<int64_t>((int64_t{1} << bits) / vocab, 16,
                             std::max<int64_t>(tokens, 16));
}

// The head of one rank, for the kernels.
struct Head {
  Head(const Context& ctx, const Tensor& x, const Parameter& weight,
       DType logit_dtype, Communicator* tp)
      : vocab(weight.data.dim(0)) {
    // The largest part.
    const int64_t most =
        tp == nullptr ? vocab : (weight.whole[0] - 1) / tp->size() + 1;
    chunk = Chunk(x.dim(0), most, x.device());
    workspace = ctx.Empty(
        {kernels::HeadCrossEntropyWorkspaceBytes(
            chunk, x.dim(1), vocab, x.dtype(), logit_dtype, x.device())},
        DType::kUInt8);
    if (tp == nullptr) return;
    part.first = weight.sharding.shards[0].begin;
    part.join = [&ctx, tp](const int32_t* labels, double* lse, double* loss,
                           int64_t rows) {
      const Shape shape = {tp->size(), rows};
      const Tensor part_lse = ctx.Empty(shape, DType::kFloat64);
      const Tensor part_loss = ctx.Empty(shape, DType::kFloat64);
      WaitFor(ctx.comm, ctx.compute);
      const ProfileRange range = Meeting(ctx, "all-gather", *tp);
      tp->AllGather(lse, part_lse.data(), rows, DType::kFloat64, ctx.comm);
      tp->AllGather(loss, part_loss.data(), rows, DType::kFloat64, ctx.comm);
      WaitFor(ctx.compute, ctx.comm);
      kernels::CrossEntropyJoin({.part_lse = part_lse.pointer<double>(),
                                 .part_loss = part_loss.pointer<double>(),
                                 .labels = labels,
                                 .lse = lse,
                                 .loss = loss,
                                 .parts = tp->size(),
                                 .tokens = rows},
                                ctx.compute);
    };
  }
  const kernels::VocabularyPart* part_or_null() const {
    return part.join == nullptr ? nullptr : &part;
  }

  int64_t vocab, chunk;
  Tensor workspace;
  kernels::VocabularyPart part;
};

struct HeadLossNode final : Node {
  Slot x_slot, loss_slot;
  Saved x, lse;
  Tensor labels;
  ParameterUse weight;
  DType logit_dtype;
  Communicator* tp;

  const char* name() const override { return "HeadLoss"; }
  void Backward(BackwardContext& ctx) override {
    const Context& exec = ctx.exec();
    const Tensor dloss = ctx.Take(loss_slot);
    if (!dloss.defined()) return;
    const Tensor& in = x.get();
    const auto dx = ctx.GradFor(x_slot, in.shape(), in.dtype());
    CHECK(!dx.accumulate) << "HeadLoss must be the final norm's only user";
    const Head head(exec, in, *weight, logit_dtype, tp);
    kernels::HeadCrossEntropyBackward(
        {.x = in.data(),
         .weight = weight->data.data(),
         .labels = labels.pointer<int32_t>(),
         .lse = lse.get().pointer<double>(),
         .dloss = dloss.pointer<double>(),
         .dx = dx.data(),
         .dweight = weight->main_grad_or_null(),
         .dweight_beta = weight->frozen ? 0 : weight->NextBeta(),
         .workspace = head.workspace.data(),
         .tokens = in.dim(0),
         .hidden = in.dim(1),
         .vocab = head.vocab,
         .chunk = head.chunk,
         .part = head.part_or_null(),
         .dtype = in.dtype(),
         .logits_dtype = logit_dtype},
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
                     const Tensor& labels, const Tensor& dloss,
                     DType logit_dtype, Communicator* tp) {
  const Tensor& in = x.value;
  auto node = std::make_unique<HeadLossDoneNode>();
  node->x_slot = x.slot;
  if (x.needs_grad()) node->dx = ctx.Empty(in.shape(), in.dtype());
  node->weight = &weight;
  Var loss{ctx.Empty({1}, DType::kFloat64), ctx.tape->NewSlot()};
  node->loss_slot = loss.slot;
  const Head head(ctx, in, weight, logit_dtype, tp);
  kernels::HeadCrossEntropyForwardBackward(
      {.x = in.data(),
       .weight = weight.Values().data(),
       .labels = labels.pointer<int32_t>(),
       .loss = loss.value.pointer<double>(),
       .dloss = dloss.pointer<double>(),
       .dx = x.needs_grad() ? node->dx.data() : nullptr,
       .dweight = weight.main_grad_or_null(),
       .dweight_beta = weight.frozen ? 0 : weight.NextBeta(),
       .workspace = head.workspace.data(),
       .tokens = in.dim(0),
       .hidden = in.dim(1),
       .vocab = head.vocab,
       .chunk = head.chunk,
       .part = head.part_or_null(),
       .dtype = in.dtype(),
       .logits_dtype = logit_dtype},
      ctx.compute);
  ctx.tape->Append(std::move(node));
  return loss;
}

// x of all tokens.
Var Loss(const Context& ctx, const Var& x, Parameter& weight,
         const Tensor& labels, const Tensor& dloss, DType logit_dtype,
         Communicator* tp) {
  const Tensor& in = x.value;
  CHECK_EQ(in.dim(0), labels.numel());
  CHECK_EQ(in.dim(1), weight.data.dim(1)) << weight.name;
  const bool record = ctx.tape != nullptr && (x.needs_grad() || !weight.frozen);
  if (record && dloss.defined())
    return LossAndGradients(ctx, x, weight, labels, dloss, logit_dtype, tp);
  Var loss{ctx.Empty({1}, DType::kFloat64)};
  Tensor lse = ctx.Empty({in.dim(0)}, DType::kFloat64);
  const Head head(ctx, in, weight, logit_dtype, tp);
  kernels::HeadCrossEntropyForward({.x = in.data(),
                                    .weight = weight.Values().data(),
                                    .labels = labels.pointer<int32_t>(),
                                    .loss = loss.value.pointer<double>(),
                                    .lse = lse.pointer<double>(),
                                    .workspace = head.workspace.data(),
                                    .tokens = in.dim(0),
                                    .hidden = in.dim(1),
                                    .vocab = head.vocab,
                                    .chunk = head.chunk,
                                    .part = head.part_or_null(),
                                    .dtype = in.dtype(),
                                    .logits_dtype = logit_dtype},
                                   ctx.compute);
  if (!record) return loss;
  auto node = std::make_unique<HeadLossNode>();
  node->x_slot = x.slot;
  node->loss_slot = loss.slot = ctx.tape->NewSlot();
  node->x = Saved(in);
  node->lse = Saved(std::move(lse));
  node->labels = labels;
  node->weight = &weight;
  node->logit_dtype = logit_dtype;
  node->tp = tp;
  ctx.tape->Append(std::move(node));
  return loss;
}

}  // namespace

Var HeadLoss(const Context& ctx, const Var& x, Parameter& weight,
             const Tensor& labels, const Tensor& dloss,
             const ParallelGroups& groups, std::optional<DType> logit_dtype) {
  const Var all = groups.sequence_parallel
                      ? GatherTokensReduceGrad(ctx, x, groups.tp)
                      : CopyReduceGrad(ctx, x, groups.tp);
  return Loss(ctx, all, weight, PadIndices(ctx, labels, all.value.dim(0)),
              dloss, logit_dtype.value_or(all.value.dtype()), groups.tp);
}

}  // namespace mimo
