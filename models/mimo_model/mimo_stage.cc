#include "models/mimo_model/mimo_stage.h"

#include <utility>
#include <vector>

#include "kernels/base/status_macros.h"
#include "mimo/autograd/ops/embedding.h"

namespace mimo {

Var LossSum(const Context& ctx, const MimoModel& model,
            const ModelInputs& inputs, const Var& hidden) {
  // Rows without a target do not enter the head.
  const bool all = inputs.loss_rows.numel() == hidden.value.dim(0);
  return model.language_model().Loss(
      ctx, all ? hidden : SelectRows(ctx, hidden, inputs.loss_rows),
      inputs.targets);
}

double HostValue(const Tensor& loss) {
  Allocator host;
  return loss.Clone(host).span<double>()[0];
}

absl::StatusOr<double> LossSum(const Context& ctx, const MimoModel& model,
                               const MicroBatch& batch) {
  MIMO_ASSIGN_OR_RETURN(const ModelInputs inputs, model.Prepare(ctx, batch));
  MIMO_ASSIGN_OR_RETURN(const Var hidden, model.Forward(ctx, inputs));
  return HostValue(LossSum(ctx, model, inputs, hidden).value);
}

absl::StatusOr<double> MimoStage::ForwardBackward(const MicroBatch& batch,
                                                  double loss_scale) {
  Tape tape;
  Context ctx = ctx_;
  ctx.tape = &tape;
  MIMO_ASSIGN_OR_RETURN(const ModelInputs inputs, model_.Prepare(ctx, batch));
  std::vector<Tape::Seed> seeds(1);
  seeds[0].grad = Tensor::From<double>(*ctx.allocator, {1}, {loss_scale});
  MIMO_ASSIGN_OR_RETURN(const Var hidden, model_.Forward(ctx, inputs));
  const Var loss = LossSum(ctx, model_, inputs, hidden);
  seeds[0].slot = loss.slot;
  tape.Backward(ctx, std::move(seeds));
  return HostValue(loss.value);
}

absl::StatusOr<double> MimoStage::Loss(const MicroBatch& batch) {
  return LossSum(ctx_, model_, batch);
}

}  // namespace mimo
