#include "models/mimo_model/mimo_stage.h"

#include <algorithm>
#include <utility>

#include "absl/log/check.h"
#include "absl/log/log.h"
#include "kernels/base/status_macros.h"
#include "kernels/loss/loss_mean.h"
#include "models/mimo_model/model_pass.h"

namespace mimo {
namespace {

// More shapes than these run without being captured: each keeps a graph.
constexpr size_t kMostPasses = 16;

// Of each micro-batch.
using AllInputs = absl::Span<const ModelInputs* const>;

std::vector<const ModelInputs*> PointersTo(
    const std::vector<ModelInputs>& all) {
  std::vector<const ModelInputs*> pointers;
  for (const ModelInputs& inputs : all) pointers.push_back(&inputs);
  return pointers;
}

int64_t Rows(AllInputs of_batches) {
  int64_t rows = 0;
  for (const ModelInputs* inputs : of_batches)
    rows += inputs->batch * inputs->seq;
  return rows;
}

// Every tensor of the inputs, in a fixed order; some may be undefined.
std::vector<const Tensor*> TensorsOf(const ModelInputs& inputs) {
  std::vector<const Tensor*> all = {&inputs.layout.text_ids, &inputs.loss_rows,
                                    &inputs.targets, &inputs.packing.cu_seqlens,
                                    &inputs.packing.positions};
  for (const auto& [modality, positions] : inputs.layout.positions)
    all.push_back(&positions);
  for (const auto& [modality, encoders] : inputs.modalities)
    for (const auto& [encoder, tensor] : encoders) all.push_back(&tensor);
  for (const auto& [modality, features] : inputs.features)
    for (const Var& encoder : features) all.push_back(&encoder.value);
  for (const auto& [modality, output] : inputs.outputs)
    all.push_back(&output.value);
  return all;
}

// What captured work depends on beside the values: shapes, what bridges carry,
// and which gradients are written and which added to.
std::vector<int64_t> KeyOf(AllInputs of_batches, const MimoModel& model) {
  std::vector<int64_t> key;
  for (const ModelInputs* at : of_batches) {
    const ModelInputs& inputs = *at;
    key.insert(key.end(), {inputs.batch, inputs.seq});
    for (const auto& [modality, encoders] : inputs.modalities)
      key.push_back(static_cast<int64_t>(encoders.size()));
    for (const Tensor* tensor : TensorsOf(inputs)) {
      key.push_back(-1);  // between shapes
      key.insert(key.end(), tensor->shape().begin(), tensor->shape().end());
    }
    if (model.placement().infra == nullptr) continue;  // no bridges
    for (const auto& [modality, rows] : inputs.sample_rows)
      key.insert(key.end(), rows.begin(), rows.end());
  }
  for (const Parameter* parameter : model.Parameters())
    if (!parameter->frozen) key.push_back(parameter->written ? 1 : 0);
  return key;
}

// Adds the rows whose label is not what was predicted.
void CountMistakes(const ModelInputs& inputs, const Tensor& predicted,
                   std::vector<double>& of_samples) {
  Allocator host;
  const Tensor tokens = predicted.Clone(host);
  const Tensor labels = inputs.targets.Clone(host);
  for (size_t i = 0; i < inputs.target_samples.size(); ++i) {
    const int32_t label = labels.span<int32_t>()[i];
    if (label >= 0 && label != tokens.span<int32_t>()[i])
      ++of_samples[inputs.target_samples[i]];
  }
}

}  // namespace

double HostValue(const Tensor& loss) {
  Allocator host;
  return loss.Clone(host).span<double>()[0];
}

absl::StatusOr<double> LossSum(const Context& ctx, const MimoModel& model,
                               const MicroBatch& batch) {
  MIMO_ASSIGN_OR_RETURN(const ModelInputs inputs, model.Prepare(ctx, batch));
  MIMO_ASSIGN_OR_RETURN(const Var hidden, model.Forward(ctx, inputs));
  return HostValue(
      model.language_model().Loss(ctx, hidden, inputs.targets, {}).value);
}

absl::StatusOr<std::vector<Tensor>> MimoStage::Capture(
    const RankProgram& program, Pass& pass, const Tensor& dloss) {
  const std::vector<Parameter*> parameters = model_.Parameters();
  std::vector<bool> before;
  for (const Parameter* p : parameters) before.push_back(p->written);
  pass.dloss = dloss.Clone(*ctx_.allocator);
  const std::vector<const ModelInputs*> inputs = PointersTo(pass.inputs);
  BeginCapture(ctx_.compute);
  auto losses = ModelPass({.allocator = &captured_memory_}, model_, links_,
                          program, inputs)
                    .Run(pass.dloss);
  pass.work = EndCapture(ctx_.compute);
  MIMO_RETURN_IF_ERROR(losses.status());
  for (size_t i = 0; i < parameters.size(); ++i)
    if (parameters[i]->written != before[i])
      pass.wrote.push_back(parameters[i]);
  return losses;
}

bool MimoStage::HasRoomFor(const Pass& pass) const {
  int64_t bytes = pass.bytes;
  for (const auto& [key, other] : passes_)
    if (pass.runs == 0 && other.rows > 0)
      bytes = std::max(bytes, other.bytes / other.rows * pass.rows);
  return free_bytes_(ctx_.compute.device) >= bytes + bytes / 8;
}

void MimoStage::StopCapturing() {
  LOG(WARNING)
      << "no memory for another shape of batches beside those that are "
         "captured: passes are not captured from here on";
  Synchronize(ctx_.compute);
  passes_.clear();
  captured_memory_.ReleaseKept();
  capture_ = false;
}

absl::StatusOr<std::vector<Tensor>> MimoStage::RunUncaptured(
    const RankProgram& program, const Upcoming& upcoming, const Tensor& dloss,
    int first) {
  const PipelineSchedule& schedule = program.schedule;
  const int count = schedule.options.micro_batches;
  const bool last = upcoming.batches.size() == static_cast<size_t>(count);
  const Stream beside = ahead_memory_.stream();
  std::vector<int> left(count);  // steps of each micro-batch
  for (const PipelineStep& step : program.steps)
    for (int m : {step.forward, step.backward})
      if (m >= 0) ++left[m];
  const std::string& language = model_.role().language_module_name;
  const auto encodes = [&](const PipelineStep& step) {
    return step.kind == PipelineStep::kForward &&
           schedule.ModuleOf(step.at) != language;
  };
  const auto passes_on = [&](const PipelineStep& step) {
    if (step.kind != PipelineStep::kTransfer || ctx_.profiler != nullptr)
      return false;
    const auto [from, to] = schedule.edges[step.at];
    return !schedule.stages[from].backward &&
           schedule.stages[from].module == schedule.stages[to].module &&
           schedule.ModuleOf(from) != language;
  };
  const auto last_of_stage = [&](const PipelineStep& step) {
    return last && step.kind == PipelineStep::kBackward &&
           step.backward + 1 == count;
  };
  const auto before = [&](const PipelineStep& step) -> absl::Status {
    if (step.forward >= 0) {
      if (encodes(step)) {
        if (RunAhead() == 0) WaitFor(beside, ctx_.compute);
        Encode(schedule.ModuleOf(step.at), upcoming, step.forward + 1);
      } else if (passes_on(step)) {
        MIMO_RETURN_IF_ERROR(PassOn(schedule, step, upcoming));
      }
      const Ahead& own = ahead_[step.forward];
      MIMO_RETURN_IF_ERROR(own.inputs.status());
      WaitFor(ctx_.compute, own.done);
    }
    if (last_of_stage(step))
      upcoming.around.before_last_backward(schedule.ModuleOf(step.at));
    return absl::OkStatus();
  };
  const auto after = [&](const PipelineStep& step) -> absl::Status {
    if (last_of_stage(step)) upcoming.around.after_last_backward();
    if (encodes(step)) {
      Encode(schedule.ModuleOf(step.at), upcoming,
             step.forward + 1 + RunAhead());
    }
    for (int m : {step.forward, step.backward}) {
      if (m < 0 || --left[m] > 0) continue;
      WaitFor(beside, ctx_.compute);
      ahead_[m].inputs = ModelInputs();
    }
    return absl::OkStatus();
  };
  std::vector<const ModelInputs*> inputs;
  for (int m = 0; m < count; ++m) inputs.push_back(&*ahead_[m].inputs);
  return ModelPass(ctx_, model_, links_, program, inputs, first)
      .Run(dloss, before, after);
}

absl::StatusOr<std::vector<Tensor>> MimoStage::Enqueue(
    const RankProgram& program, const Upcoming& upcoming, const Tensor& dloss,
    int first) {
  const Stream beside = ahead_memory_.stream();
  const int count = program.schedule.options.micro_batches;
  if (ahead_.size() < static_cast<size_t>(count))
    WaitFor(beside, ctx_.compute);  // weights may be coming
  const bool captures = capture_ && ctx_.profiler == nullptr;
  captures ? EncodeAll(upcoming, count) : Upload(upcoming, count);
  std::vector<const ModelInputs*> inputs;
  for (int m = 0; m < count; ++m) {
    MIMO_RETURN_IF_ERROR(ahead_[m].inputs.status());
    CHECK(ahead_[m].input_ids == upcoming.batches[m].input_ids)
        << "not the batch that was announced as the next";
    inputs.push_back(&*ahead_[m].inputs);
  }
  Pass* pass = nullptr;
  if (captures) {
    std::vector<int64_t> key = KeyOf(inputs, model_);
    const auto found = passes_.find(key);
    if (found != passes_.end()) {
      pass = &found->second;
    } else if (passes_.size() < kMostPasses) {
      pass = &passes_[std::move(key)];
      pass->rows = Rows(inputs);
    } else if (!std::exchange(said_most_, true)) {
      LOG(WARNING) << "train.cuda_graph: batches of more than " << kMostPasses
                   << " shapes: those of other shapes run uncaptured";
    }
  }
  int64_t before = 0;
  if (pass != nullptr && pass->work == nullptr) {
    ctx_.allocator->ReleaseKept();
    before = ctx_.allocator->stats().reserved_bytes;
    if (!HasRoomFor(*pass)) {
      StopCapturing();
      pass = nullptr;
    }
  }
  // The first run makes what a capture could not: plans, the libraries' own
  // memory.
  if (pass == nullptr || pass->runs++ == 0) {
    auto losses = RunUncaptured(program, upcoming, dloss, first);
    if (pass != nullptr)
      pass->bytes = ctx_.allocator->stats().reserved_bytes - before;
    return losses;
  }
  // A graph cannot wait for what is outside of it.
  for (Parameter* parameter : model_.Parameters()) parameter->Values();
  for (int m = 0; m < count; ++m) WaitFor(ctx_.compute, ahead_[m].done);
  if (pass->work == nullptr) {
    for (int m = 0; m < count; ++m)
      pass->inputs.push_back(*std::move(ahead_[m].inputs));
    MIMO_ASSIGN_OR_RETURN(pass->losses, Capture(program, *pass, dloss));
  } else {
    for (int m = 0; m < count; ++m) {
      const auto from = TensorsOf(*inputs[m]), to = TensorsOf(pass->inputs[m]);
      for (size_t i = 0; i < to.size(); ++i)
        if (to[i]->defined())
          CopyBytes(to[i]->data(), from[i]->data(), to[i]->bytes(),
                    ctx_.compute);
    }
    WaitFor(beside, ctx_.compute);  // before what was copied is freed
    pass->dloss.CopyFrom(dloss);
    for (Parameter* parameter : pass->wrote) parameter->written = true;
  }
  Replay(pass->work, ctx_.compute);
  return pass->losses;
}

bool MimoStage::CountsTokens() const {
  const std::string& language = model_.role().language_module_name;
  const ParallelGroups groups = model_.placement().GroupsOf(language);
  return model_.role().IsLastStage(language) && groups.tp_rank() == 0 &&
         groups.cp_rank() == 0;
}

bool MimoStage::Counts() const {
  const std::string& language = model_.role().language_module_name;
  return model_.placement().GroupsOf(language).tp_rank() == 0;
}

void MimoStage::AddPart(const std::vector<Tensor>& losses,
                        const Tensor& sum) const {
  if (!Counts()) return;
  for (const Tensor& loss : losses)
    kernels::AddLoss({loss.pointer<double>(), sum.pointer<double>()},
                     ctx_.compute);
}

absl::StatusOr<double> MimoStage::ForwardBackward(
    absl::Span<const MicroBatch> batches, double loss_scale,
    const AroundIteration& around) {
  MIMO_ASSIGN_OR_RETURN(
      const Tensor sum,
      ForwardBackward(batches,
                      Tensor::From<double>(*ctx_.allocator, {1}, {loss_scale}),
                      around));
  return HostValue(sum);
}

absl::StatusOr<Tensor> MimoStage::ForwardBackward(
    absl::Span<const MicroBatch> batches, const Tensor& loss_scale,
    const AroundIteration& around) {
  Tensor sum = Tensor::Zeros(*ctx_.allocator, {1}, DType::kFloat64);
  const int count = batches.size();
  const RankProgram& program = links_.Program(count, /*forward_only=*/false);
  const int turn = program.schedule.options.micro_batches;
  for (int first = 0; first < count; first += turn) {
    const Upcoming upcoming = {batches.subspan(first), around};
    auto losses = Enqueue(program, upcoming, loss_scale, first);
    if (losses.ok()) EncodeAll(upcoming, turn + RunAhead());
    ahead_.erase(ahead_.begin(), ahead_.begin() + turn);
    MIMO_RETURN_IF_ERROR(losses.status());
    AddPart(*losses, sum);
  }
  return sum;
}

absl::Status MimoStage::ForwardOnly(
    absl::Span<const MicroBatch> batches,
    absl::FunctionRef<absl::Status(ModelPass&, AllInputs)> run) {
  const RankProgram& program =
      links_.Program(batches.size(), /*forward_only=*/true);
  const size_t turn = program.schedule.options.micro_batches;
  for (size_t begin = 0; begin < batches.size(); begin += turn) {
    std::vector<ModelInputs> inputs;
    for (const MicroBatch& batch : batches.subspan(begin, turn)) {
      MIMO_ASSIGN_OR_RETURN(inputs.emplace_back(), model_.Prepare(ctx_, batch));
    }
    const std::vector<const ModelInputs*> all = PointersTo(inputs);
    ModelPass pass(ctx_, model_, links_, program, all);
    MIMO_RETURN_IF_ERROR(run(pass, all));
  }
  return absl::OkStatus();
}

absl::StatusOr<double> MimoStage::Loss(absl::Span<const MicroBatch> batches) {
  const Tensor sum = Tensor::Zeros(*ctx_.allocator, {1}, DType::kFloat64);
  MIMO_RETURN_IF_ERROR(
      ForwardOnly(batches, [&](ModelPass& pass, AllInputs) -> absl::Status {
        MIMO_ASSIGN_OR_RETURN(const std::vector<Tensor> losses,
                              pass.Run(Tensor()));
        AddPart(losses, sum);
        return absl::OkStatus();
      }));
  return HostValue(sum);
}

absl::StatusOr<std::vector<std::vector<double>>> MimoStage::Mistakes(
    absl::Span<const MicroBatch> batches) {
  std::vector<std::vector<double>> mistakes;
  MIMO_RETURN_IF_ERROR(ForwardOnly(
      batches, [&](ModelPass& pass, AllInputs inputs) -> absl::Status {
        MIMO_ASSIGN_OR_RETURN(std::vector<Tensor> predicted, pass.Predict());
        if (!Counts()) predicted.clear();
        for (size_t i = 0; i < inputs.size(); ++i) {
          std::vector<double>& of_samples =
              mistakes.emplace_back(batches[mistakes.size()].batch);
          if (!predicted.empty())
            CountMistakes(*inputs[i], predicted[i], of_samples);
        }
        return absl::OkStatus();
      }));
  return mistakes;
}

}  // namespace mimo
