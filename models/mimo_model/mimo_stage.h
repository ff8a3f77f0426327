// MimoStage: a whole MimoModel as one stage of training.
#ifndef MIMO_MODELS_MIMO_MODEL_MIMO_STAGE_H_
#define MIMO_MODELS_MIMO_MODEL_MIMO_STAGE_H_

#include <vector>

#include "mimo/train/train_stage.h"
#include "models/mimo_model/mimo_model.h"

namespace mimo {

// The sum of the labelled tokens' losses, [1] float64, recorded on ctx.tape;
// `hidden` is the model's Forward of the same inputs.
Var LossSum(const Context& ctx, const MimoModel& model,
            const ModelInputs& inputs, const Var& hidden);
// The number in a loss.
double HostValue(const Tensor& loss);
// Both for a batch whose gradient nobody wants.
absl::StatusOr<double> LossSum(const Context& ctx, const MimoModel& model,
                               const MicroBatch& batch);

class MimoStage : public TrainStage {
 public:
  MimoStage(MimoModel& model, Allocator& allocator)
      : model_(model), ctx_{.allocator = &allocator} {}

  std::vector<Parameter*> Parameters() override { return model_.Parameters(); }
  absl::StatusOr<double> ForwardBackward(const MicroBatch& batch,
                                         double loss_scale) override;
  absl::StatusOr<double> Loss(const MicroBatch& batch) override;

 private:
  MimoModel& model_;
  Context ctx_;
};

}  // namespace mimo

#endif  // MIMO_MODELS_MIMO_MODEL_MIMO_STAGE_H_
