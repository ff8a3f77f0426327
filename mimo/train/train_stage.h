// TrainStage: what the trainer knows of a model.
#ifndef MIMO_MIMO_TRAIN_TRAIN_STAGE_H_
#define MIMO_MIMO_TRAIN_TRAIN_STAGE_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "mimo/data/batch.h"
#include "mimo/nn/parameter.h"
#include "mimo/parallel/schedule_simulator.h"
#include "mimo/tensor/tensor.h"

namespace mimo {

class Profiler;

// What goes on around an iteration's work.
struct AroundIteration {
  // The one that comes i micro-batches after the last of these; null: training
  // ends before. What of it waits for no update (its upload, frozen encoders)
  // may be done beside these ones' work. An error: it cannot be read.
  std::function<absl::StatusOr<const MicroBatch*>(int i)> next =
      [](int) -> const MicroBatch* { return nullptr; };
  // Called around the last backward of each module.
  std::function<void(const std::string& module)> before_last_backward =
      [](const std::string&) {};
  std::function<void()> after_last_backward = [] {};
};

class TrainStage {
 public:
  virtual ~TrainStage() = default;

  // Every parameter, frozen ones too, in a fixed order.
  virtual std::vector<Parameter*> Parameters() = 0;

  // Adds the gradient of loss_scale * (sum of the labelled tokens' losses) of
  // an iteration's micro-batches to the trainable parameters' main_grad;
  // returns that sum, unscaled; both are [1] float64. On a GPU all is only
  // enqueued. An error is a batch that does not fit the model. Of several ranks
  // each returns a part: their sum is the sum.
  virtual absl::StatusOr<Tensor> ForwardBackward(
      absl::Span<const MicroBatch> batches, const Tensor& loss_scale,
      const AroundIteration& around = {}) = 0;
  // The sum of the labelled tokens' losses alone, waited for; likewise.
  virtual absl::StatusOr<double> Loss(absl::Span<const MicroBatch> batches) = 0;
  // Whether the tokens and labels of this rank's batches count: of the ranks
  // that have the same text, one says so.
  virtual bool CountsTokens() const = 0;

  // The share of the ranks' time in an iteration's forwards and backwards with
  // neither, at best: were a stage to take these times.
  virtual double IdealBubble(int micro_batches, const StageTimes& times) = 0;

  // Measures from now on what the stage does; null: nothing any more.
  virtual void SetProfiler(Profiler* profiler) = 0;
};

}  // namespace mimo

#endif  // MIMO_MIMO_TRAIN_TRAIN_STAGE_H_
