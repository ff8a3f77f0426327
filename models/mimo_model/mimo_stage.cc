#include "models/mimo_model/mimo_stage.h"

#include <utility>

#include "kernels/base/status_macros.h"

namespace mimo {

absl::StatusOr<Var> LossSum(const Context& ctx, const MimoModel& model,
                            const MicroBatch& batch) {
  MIMO_ASSIGN_OR_RETURN(const Var hidden,
                        model.Forward(ctx, batch.input_ids, batch.batch,
                                      batch.seq, model.InputsOf(ctx, batch)));
  MIMO_ASSIGN_OR_RETURN(const Tensor targets, model.Targets(ctx, batch));
  return model.language_model().Loss(ctx, hidden, targets);
}

absl::StatusOr<double> MimoStage::ForwardBackward(const MicroBatch& batch,
                                                  double loss_scale) {
  Tape tape;
  Context ctx = ctx_;
  ctx.tape = &tape;
  MIMO_ASSIGN_OR_RETURN(const Var loss, LossSum(ctx, model_, batch));
  std::vector<Tape::Seed> seeds;
  seeds.push_back(
      {loss.slot, Tensor::From<double>(*ctx.allocator, {1}, {loss_scale})});
  tape.Backward(ctx, std::move(seeds));
  return loss.value.span<double>()[0];
}

absl::StatusOr<double> MimoStage::Loss(const MicroBatch& batch) {
  MIMO_ASSIGN_OR_RETURN(const Var loss, LossSum(ctx_, model_, batch));
  return loss.value.span<double>()[0];
}

}  // namespace mimo
