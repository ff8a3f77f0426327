// MimoStage: what a rank has of a MimoModel, as the trainer runs it.
#ifndef MIMO_MODELS_MIMO_MODEL_MIMO_STAGE_H_
#define MIMO_MODELS_MIMO_MODEL_MIMO_STAGE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/base/device.h"
#include "mimo/train/train_stage.h"
#include "models/mimo_model/mimo_model.h"
#include "models/mimo_model/model_links.h"

namespace mimo {

class ModelPass;

// The number in a loss.
double HostValue(const Tensor& loss);
// The sum of the labelled tokens' losses of a batch whose gradient nobody
// wants.
absl::StatusOr<double> LossSum(const Context& ctx, const MimoModel& model,
                               const MicroBatch& batch);

struct MimoStageOptions {
  bool capture = false;
  // Batches to train on are packed; others are padded.
  bool pack = false;
  // What the device has left, which captures are to leave room in.
  std::function<int64_t(Device)> free_bytes = [](Device device) {
    return DeviceMemory(device).free_bytes;
  };
};

// An iteration is one pass over its micro-batches where a module is a pipeline
// or has ranks of its own, else a pass for each (ModelPass).
//
// With `capture`, on a GPU, a pass is recorded once for each shape of batches
// and replayed from then on: one launch in place of thousands, the same kernels
// on the same values, so bitwise what it was. Recorded work keeps its memory;
// where another shape might not find enough, all of it is given back and
// nothing is captured any more.
//
// Micro-batches are uploaded, and what is frozen of their modalities is run, on
// a stream of its own: ModelLinks::run_ahead() of them before the work on those
// that come earlier, of this iteration or the one before. That stream's memory
// is written again only after the passes that read it. Ranks that encode
// together do so in one order: behind the same forward of that modality. In a
// pipeline the step of the schedule that moves micro-batch m between two stages
// moves those up to m + run_ahead(), as many on either side.
//
// Collectives of tp and cp ranks have a stream of their own, too: they go
// before the kernels that they run beside.
class MimoStage : public TrainStage {
 public:
  // Of a model that is whole on this rank.
  MimoStage(MimoModel& model, Allocator& allocator,
            const MimoStageOptions& options = {})
      : MimoStage(model, allocator, options, ModelLinks(model)) {}
  // Of what this rank has of a model, joined to the other ranks' (ModelLinks::
  // Connect gives the links).
  MimoStage(MimoModel& model, Allocator& allocator,
            const MimoStageOptions& options, ModelLinks links)
      : model_(model),
        ctx_{.allocator = &allocator,
             .comm =
                 NewStream(allocator.stream().device, StreamPriority::kUrgent)},
        capture_(options.capture && ctx_.compute.device != Device::kCpu),
        prepare_({.packed = options.pack}),
        free_bytes_(options.free_bytes),
        links_(std::move(links)),
        captured_memory_(ctx_.compute, /*keeps=*/true),
        ahead_memory_(NewStream(ctx_.compute.device)) {}

  std::vector<Parameter*> Parameters() override { return model_.Parameters(); }
  absl::StatusOr<Tensor> ForwardBackward(
      absl::Span<const MicroBatch> batches, const Tensor& loss_scale,
      const AroundIteration& around = {}) override;
  // The same, waited for.
  absl::StatusOr<double> ForwardBackward(absl::Span<const MicroBatch> batches,
                                         double loss_scale,
                                         const AroundIteration& around = {});
  absl::StatusOr<double> Loss(absl::Span<const MicroBatch> batches) override;
  // Of each sample of each micro-batch, the labels that are not the likeliest
  // token after the right ones before them; waited for. Of several ranks each
  // returns a part: their sum is the number.
  absl::StatusOr<std::vector<std::vector<double>>> Mistakes(
      absl::Span<const MicroBatch> batches);
  bool CountsTokens() const override;
  // Micro-batches that were uploaded, and encoded, and not yet run.
  int ahead() const { return ahead_.size(); }
  double IdealBubble(int micro_batches, const StageTimes& times) override {
    return links_.Ideal(micro_batches, times).bubble_share;
  }
  // What is measured runs uncaptured, and nothing ahead.
  void SetProfiler(Profiler* profiler) override {
    ctx_.profiler = profiler;
    ahead_.clear();
  }

 private:
  // Forward and backward of a program's micro-batches, of one shape.
  struct Pass {
    int64_t runs = 0, rows = 0;
    std::vector<ModelInputs> inputs;  // of the captured work, as are these:
    Tensor dloss;
    std::vector<Tensor> losses;
    std::vector<Parameter*> wrote;
    std::shared_ptr<void> work;
    int64_t bytes = 0;  // that its first run took
  };

  // A micro-batch from its upload until its pass is enqueued.
  struct Ahead {
    std::vector<int32_t> input_ids;
    absl::StatusOr<ModelInputs> inputs;
    Event done;  // what was enqueued to make them
  };

  // What is left of an iteration, and what comes behind it.
  struct Upcoming {
    absl::Span<const MicroBatch> batches;
    const AroundIteration& around;
  };

  // Where batches are uploaded and encoded.
  Context Beside();
  int RunAhead() const {
    return ctx_.profiler == nullptr ? links_.run_ahead() : 0;
  }
  // The first `count` upcoming ones, if there are as many; Encode of these what
  // is frozen of a modality, too. Errors stay with the micro-batch.
  void Upload(const Upcoming& upcoming, int count);
  void Encode(const std::string& modality, const Upcoming& upcoming, int count);
  void EncodeAll(const Upcoming& upcoming, int count);
  // Moves along an edge of a frozen encoder's pipeline what the step does, and
  // that of the RunAhead() micro-batches behind it, unless it has moved.
  absl::Status PassOn(const PipelineSchedule& schedule,
                      const PipelineStep& step, const Upcoming& upcoming);
  // The pass of the upcoming ones, enqueued; its losses. `first` as
  // ModelPass's.
  absl::StatusOr<std::vector<Tensor>> Enqueue(const RankProgram& program,
                                              const Upcoming& upcoming,
                                              const Tensor& dloss, int first);
  absl::StatusOr<std::vector<Tensor>> RunUncaptured(const RankProgram& program,
                                                    const Upcoming& upcoming,
                                                    const Tensor& dloss,
                                                    int first);
  absl::StatusOr<std::vector<Tensor>> Capture(const RankProgram& program,
                                              Pass& pass, const Tensor& dloss);
  // For one more run of a pass that is not captured yet: as much as its first
  // one took, or before that as the others took a row.
  bool HasRoomFor(const Pass& pass) const;
  void StopCapturing();
  // Passes of batches whose gradient nobody wants; run(pass, its inputs).
  absl::Status ForwardOnly(
      absl::Span<const MicroBatch> batches,
      absl::FunctionRef<absl::Status(ModelPass&,
                                     absl::Span<const ModelInputs* const>)>
          run);
  // Whether what the last stage gives is this rank's to count: the tp ranks
  // have the same, the cp ranks their own tokens'.
  bool Counts() const;
  // Adds this rank's part of `losses` to `sum`, enqueued.
  void AddPart(const std::vector<Tensor>& losses, const Tensor& sum) const;

  MimoModel& model_;
  Context ctx_;
  bool capture_;
  PrepareOptions prepare_;  // of batches to train on
  decltype(MimoStageOptions::free_bytes) free_bytes_;
  ModelLinks links_;
  Allocator captured_memory_;  // what captured work writes is nobody else's
  Allocator ahead_memory_;
  std::deque<Ahead> ahead_;  // in their order, those of a pass under way first
  std::map<std::vector<int64_t>, Pass> passes_;
  bool said_most_ = false;  // that more shapes came than are captured
};

}  // namespace mimo

#endif  // MIMO_MODELS_MIMO_MODEL_MIMO_STAGE_H_
