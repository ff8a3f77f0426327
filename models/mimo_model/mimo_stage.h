// MimoStage: a whole MimoModel as one stage of training.
#ifndef MIMO_MODELS_MIMO_MODEL_MIMO_STAGE_H_
#define MIMO_MODELS_MIMO_MODEL_MIMO_STAGE_H_

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/base/device.h"
#include "mimo/train/train_stage.h"
#include "models/mimo_model/mimo_model.h"

namespace mimo {

// The sum of the labelled tokens' losses, [1] float64, recorded on ctx.tape;
// `hidden` is the model's Forward of the same inputs, of all rows or of the
// labelled ones, `dloss` what the sum will be seeded with, when it is known.
Var LossSum(const Context& ctx, const MimoModel& model,
            const ModelInputs& inputs, const Var& hidden,
            const Tensor& dloss = {});
// The number in a loss.
double HostValue(const Tensor& loss);
// Both for a batch whose gradient nobody wants.
absl::StatusOr<double> LossSum(const Context& ctx, const MimoModel& model,
                               const MicroBatch& batch);

// With `capture`, on a GPU, a forward and backward is recorded once for each
// shape of batch and replayed from then on: one launch in place of thousands,
// the same kernels on the same values, so bitwise what it was.
//
// Batches are uploaded, and the frozen encoders run, on a stream of their own:
// of the batch announced as `next`, beside the work on the one before it. That
// stream's memory is written again only after the passes that read it.
class MimoStage : public TrainStage {
 public:
  MimoStage(MimoModel& model, Allocator& allocator, bool capture = false)
      : model_(model),
        ctx_{.allocator = &allocator},
        capture_(capture && ctx_.compute.device != Device::kCpu),
        captured_memory_(ctx_.compute),
        ahead_memory_(NewStream(ctx_.compute.device)) {}

  std::vector<Parameter*> Parameters() override { return model_.Parameters(); }
  absl::StatusOr<double> ForwardBackward(const MicroBatch& batch,
                                         double loss_scale,
                                         const MicroBatch* next) override;
  absl::StatusOr<double> Loss(const MicroBatch& batch) override;
  // What is measured runs uncaptured, and nothing ahead.
  void SetProfiler(Profiler* profiler) override {
    ctx_.profiler = profiler;
    ahead_.reset();
  }

 private:
  // A forward and backward of one shape.
  struct Pass {
    int64_t runs = 0;
    ModelInputs inputs;  // of the captured work, as are these:
    Tensor dloss, loss;
    std::vector<Parameter*> wrote;
    std::shared_ptr<void> work;
  };

  // A batch whose inputs were made before its turn.
  struct Ahead {
    std::vector<int32_t> input_ids;
    absl::StatusOr<ModelInputs> inputs;
  };

  absl::StatusOr<ModelInputs> Prepare(const MicroBatch& batch);
  // Enqueues the pass; its loss.
  absl::StatusOr<Tensor> Enqueue(ModelInputs inputs, double loss_scale);
  absl::StatusOr<Tensor> Run(const Context& ctx, const ModelInputs& inputs,
                             const Tensor& dloss);
  absl::Status Capture(Pass& pass, ModelInputs inputs, Tensor dloss);

  MimoModel& model_;
  Context ctx_;
  bool capture_;
  Allocator captured_memory_;  // what captured work writes is nobody else's
  Allocator ahead_memory_;
  std::optional<Ahead> ahead_;
  std::map<std::vector<int64_t>, Pass> passes_;
};

}  // namespace mimo

#endif  // MIMO_MODELS_MIMO_MODEL_MIMO_STAGE_H_
