// TrainStage: what the trainer knows of a model.
#ifndef MIMO_MIMO_TRAIN_TRAIN_STAGE_H_
#define MIMO_MIMO_TRAIN_TRAIN_STAGE_H_

#include <vector>

#include "absl/status/statusor.h"
#include "mimo/data/batch.h"
#include "mimo/nn/parameter.h"

namespace mimo {

class Profiler;

class TrainStage {
 public:
  virtual ~TrainStage() = default;

  // Every parameter, frozen ones too, in a fixed order.
  virtual std::vector<Parameter*> Parameters() = 0;

  // Adds the gradient of loss_scale * (sum of the labelled tokens' losses) to
  // the trainable parameters' main_grad; returns that sum, unscaled. An error
  // is a batch that does not fit the model. `next`, if not null, is the batch
  // of the call after this one: what of it waits for no update (its upload,
  // frozen encoders) is done beside this one's work.
  virtual absl::StatusOr<double> ForwardBackward(const MicroBatch& batch,
                                                 double loss_scale,
                                                 const MicroBatch* next) = 0;
  // The sum of the labelled tokens' losses alone.
  virtual absl::StatusOr<double> Loss(const MicroBatch& batch) = 0;

  // Measures from now on what the stage does; null: nothing any more.
  virtual void SetProfiler(Profiler* profiler) = 0;
};

}  // namespace mimo

#endif  // MIMO_MIMO_TRAIN_TRAIN_STAGE_H_
