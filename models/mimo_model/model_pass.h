// ModelPass: a rank's program, run once over the micro-batches of it.
#ifndef MIMO_MODELS_MIMO_MODEL_MODEL_PASS_H_
#define MIMO_MODELS_MIMO_MODEL_MODEL_PASS_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "mimo/autograd/profiler.h"
#include "mimo/autograd/tape.h"
#include "models/mimo_model/mimo_model.h"
#include "models/mimo_model/model_links.h"

namespace mimo {

class ModelPass {
 public:
  // `inputs`: of each micro-batch of the program; all outlive the pass. `first`
  // is the iteration's number of the first one, for a profiler.
  ModelPass(const Context& ctx, const MimoModel& model, const ModelLinks& links,
            const RankProgram& program,
            absl::Span<const ModelInputs* const> inputs, int first = 0)
      : ctx_(ctx),
        model_(model),
        links_(links),
        schedule_(program.schedule),
        steps_(program.steps),
        inputs_(inputs),
        first_(first) {}

  // The loss sums of the micro-batches, [1] float64 each, in order; none
  // without the language model's last stage. Backwards are seeded with `dloss`
  // [1]; `before` and `after` are called around each step. Errors: the
  // model's, the bridges', theirs.
  using Hook = absl::FunctionRef<absl::Status(const PipelineStep&)>;
  absl::StatusOr<std::vector<Tensor>> Run(const Tensor& dloss,
                                          Hook before = Nothing,
                                          Hook after = Nothing);
  // In place of the losses, without a backward: the likeliest token at each of
  // a micro-batch's wanted rows, [L] int32.
  absl::StatusOr<std::vector<Tensor>> Predict();

 private:
  // A stage on a micro-batch, from its forward to its backward; without one,
  // until its output has gone on.
  struct Call {
    Tape tape;
    std::map<int, Var> received;  // by edge
    Var output;  // of the last stage the loss, or the predictions
  };
  using At = std::pair<int, int>;  // a stage or an edge, a micro-batch

  static absl::Status Nothing(const PipelineStep&) { return absl::OkStatus(); }
  const std::string& ModuleOf(int stage) const {
    return schedule_.ModuleOf(stage);
  }
  bool LastOfAll(int stage) const {
    return ModuleOf(stage) == model_.role().language_module_name &&
           model_.role().IsLastStage(ModuleOf(stage));
  }
  // Whether this rank has it.
  bool Holds(int stage) const;
  bool HasBackward(int stage) const {
    return schedule_.stages[stage].backward && !schedule_.options.forward_only;
  }

  // What a range is of: a stage's micro-batch, a transfer.
  void Describe(ProfileRange& range, int stage, int micro_batch) const;
  void Describe(ProfileRange& range, const PipelineStep& transfer) const;

  absl::Status Forward(int stage, int micro_batch, const Tensor& dloss);
  void Backward(int stage, int micro_batch, const Tensor& dloss);
  // Each with the micro-batch that moves forward and that which moves back.
  absl::Status Transfer(const PipelineStep& step);
  // The ranks between which an edge that is not within this one moves.
  absl::Span<const int> RanksOf(int edge) const;
  void Hand(const PipelineStep& step);
  absl::Status Exchange(const PipelineStep& step, Communicator& pipeline);
  absl::Status Cross(const PipelineStep& step, const StageLink& link);
  // A stage's input: an empty one, along an edge.
  Tensor Receive(int edge, int micro_batch, Shape shape);
  // What a stage of a module gives to the next one; nothing of no micro-batch.
  absl::StatusOr<Shape> BetweenStages(const std::string& module,
                                      int micro_batch) const;

  const Context ctx_;
  const MimoModel& model_;
  const ModelLinks& links_;
  const PipelineSchedule& schedule_;
  const std::vector<PipelineStep>& steps_;
  const absl::Span<const ModelInputs* const> inputs_;
  const int first_;
  std::map<At, Call> calls_;  // of stages
  // Gradients of what went along an edge: come back to the sender, and to be
  // sent there.
  std::map<At, Tensor> output_grads_, input_grads_;
  bool predict_ = false;
  std::vector<Tensor> results_;  // losses or predictions
};

}  // namespace mimo

#endif  // MIMO_MODELS_MIMO_MODEL_MODEL_PASS_H_
