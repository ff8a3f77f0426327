#include "models/mimo_model/mimo_stage.h"

#include <utility>

#include "absl/log/check.h"
#include "kernels/base/status_macros.h"
#include "mimo/autograd/ops/embedding.h"
#include "mimo/autograd/profiler.h"

namespace mimo {
namespace {

// More shapes than these run without being captured: each keeps a graph.
constexpr size_t kMostPasses = 16;

// Every tensor of the inputs, in a fixed order; some may be undefined.
std::vector<const Tensor*> TensorsOf(const ModelInputs& inputs) {
  std::vector<const Tensor*> all = {&inputs.layout.text_ids, &inputs.loss_rows,
                                    &inputs.targets};
  for (const auto& [modality, positions] : inputs.layout.positions)
    all.push_back(&positions);
  for (const auto& [modality, encoders] : inputs.modalities)
    for (const auto& [encoder, tensor] : encoders) all.push_back(&tensor);
  for (const auto& [modality, features] : inputs.features)
    for (const Var& encoder : features) all.push_back(&encoder.value);
  return all;
}

// What captured work depends on beside the values: shapes, what bridges carry,
// and which gradients are written and which added to.
std::vector<int64_t> KeyOf(const ModelInputs& inputs,
                           const std::vector<Parameter*>& parameters) {
  std::vector<int64_t> key = {inputs.batch, inputs.seq};
  for (const auto& [modality, encoders] : inputs.modalities)
    key.push_back(static_cast<int64_t>(encoders.size()));
  for (const Tensor* tensor : TensorsOf(inputs)) {
    key.push_back(-1);  // between shapes
    key.insert(key.end(), tensor->shape().begin(), tensor->shape().end());
  }
  for (const auto& [modality, payload] : inputs.payloads) {
    for (const auto* rows : {&payload.source_rows, &payload.destination_rows})
      key.insert(key.end(), rows->begin(), rows->end());
  }
  for (const Parameter* parameter : parameters)
    if (!parameter->frozen) key.push_back(parameter->written ? 1 : 0);
  return key;
}

}  // namespace

Var LossSum(const Context& ctx, const MimoModel& model,
            const ModelInputs& inputs, const Var& hidden, const Tensor& dloss) {
  // Rows without a target do not enter the head.
  const bool ready = hidden.value.dim(0) == inputs.targets.numel();
  return model.language_model().Loss(
      ctx, ready ? hidden : SelectRows(ctx, hidden, inputs.loss_rows),
      inputs.targets, dloss);
}

double HostValue(const Tensor& loss) {
  Allocator host;
  return loss.Clone(host).span<double>()[0];
}

absl::StatusOr<double> LossSum(const Context& ctx, const MimoModel& model,
                               const MicroBatch& batch) {
  MIMO_ASSIGN_OR_RETURN(const ModelInputs inputs, model.Prepare(ctx, batch));
  MIMO_ASSIGN_OR_RETURN(
      const Var hidden,
      model.Forward(ctx, inputs, nullptr, /*labelled_only=*/true));
  return HostValue(LossSum(ctx, model, inputs, hidden).value);
}

absl::StatusOr<Tensor> MimoStage::Run(const Context& ctx,
                                      const ModelInputs& inputs,
                                      const Tensor& dloss) {
  Tape tape;
  Context taped = ctx;
  taped.tape = &tape;
  Var loss;
  {
    const ProfileRange range(ctx, "forward");
    MIMO_ASSIGN_OR_RETURN(
        const Var hidden,
        model_.Forward(taped, inputs, nullptr, /*labelled_only=*/true));
    loss = LossSum(taped, model_, inputs, hidden, dloss);
  }
  const ProfileRange range(ctx, "backward");
  tape.Backward(taped, {{loss.slot, dloss}});
  return std::move(loss.value);
}

absl::Status MimoStage::Capture(Pass& pass, ModelInputs inputs, Tensor dloss) {
  const std::vector<Parameter*> parameters = model_.Parameters();
  std::vector<bool> before;
  for (const Parameter* p : parameters) before.push_back(p->written);
  pass.inputs = std::move(inputs);
  pass.dloss = std::move(dloss);
  ctx_.allocator->ReleaseKept();
  BeginCapture(ctx_.compute);
  absl::StatusOr<Tensor> loss =
      Run({.allocator = &captured_memory_}, pass.inputs, pass.dloss);
  pass.work = EndCapture(ctx_.compute);
  MIMO_RETURN_IF_ERROR(loss.status());
  pass.loss = *std::move(loss);
  for (size_t i = 0; i < parameters.size(); ++i)
    if (parameters[i]->written != before[i])
      pass.wrote.push_back(parameters[i]);
  return absl::OkStatus();
}

absl::StatusOr<ModelInputs> MimoStage::Prepare(const MicroBatch& batch) {
  // A profiler's events are on the compute stream.
  if (ctx_.profiler != nullptr) return model_.Prepare(ctx_, batch);
  const Context ahead{.allocator = &ahead_memory_};
  MIMO_ASSIGN_OR_RETURN(ModelInputs inputs, model_.Prepare(ahead, batch));
  MIMO_RETURN_IF_ERROR(model_.EncodeFrozen(ahead, inputs));
  return inputs;
}

absl::StatusOr<Tensor> MimoStage::Enqueue(ModelInputs inputs,
                                          double loss_scale) {
  const Stream ahead = ahead_memory_.stream();
  Tensor dloss = Tensor::From<double>(*ctx_.allocator, {1}, {loss_scale});
  Pass* pass = nullptr;
  if (capture_ && ctx_.profiler == nullptr) {
    std::vector<int64_t> key = KeyOf(inputs, model_.Parameters());
    const auto found = passes_.find(key);
    if (found != passes_.end()) {
      pass = &found->second;
    } else if (passes_.size() < kMostPasses) {
      pass = &passes_[std::move(key)];
    }
  }
  // The first run makes what a capture could not: plans, the libraries' own
  // memory.
  if (pass == nullptr || pass->runs++ == 0) {
    WaitFor(ctx_.compute, ahead);
    absl::StatusOr<Tensor> loss = Run(ctx_, inputs, dloss);
    WaitFor(ahead, ctx_.compute);
    return loss;
  }
  if (pass->work == nullptr) {
    MIMO_RETURN_IF_ERROR(Capture(*pass, std::move(inputs), std::move(dloss)));
  } else {
    const auto from = TensorsOf(inputs), to = TensorsOf(pass->inputs);
    for (size_t i = 0; i < to.size(); ++i)
      if (to[i]->defined()) Tensor(*to[i]).CopyFrom(*from[i]);
    pass->dloss.CopyFrom(dloss);
    for (Parameter* parameter : pass->wrote) parameter->written = true;
  }
  WaitFor(ctx_.compute, ahead);
  Replay(pass->work, ctx_.compute);
  return pass->loss;
}

absl::StatusOr<double> MimoStage::ForwardBackward(const MicroBatch& batch,
                                                  double loss_scale,
                                                  const MicroBatch* next) {
  if (!ahead_) {
    WaitFor(ahead_memory_.stream(), ctx_.compute);  // weights may be coming
  } else {
    CHECK(ahead_->input_ids == batch.input_ids)
        << "not the batch that was announced as the next";
  }
  MIMO_ASSIGN_OR_RETURN(
      ModelInputs inputs,
      ahead_ ? std::exchange(ahead_, {})->inputs : Prepare(batch));
  MIMO_ASSIGN_OR_RETURN(const Tensor loss,
                        Enqueue(std::move(inputs), loss_scale));
  if (next != nullptr && ctx_.profiler == nullptr)
    ahead_.emplace(Ahead{next->input_ids, Prepare(*next)});
  return HostValue(loss);
}

absl::StatusOr<double> MimoStage::Loss(const MicroBatch& batch) {
  return LossSum(ctx_, model_, batch);
}

}  // namespace mimo
