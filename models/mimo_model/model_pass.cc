#include "models/mimo_model/model_pass.h"

#include <cstdint>
#include <utility>

#include "absl/log/check.h"
#include "comm/bridge/bridge_plan.h"
#include "kernels/base/status_macros.h"
#include "mimo/autograd/ops/collectives.h"
#include "models/mimo_model/mimo_stage.h"

namespace mimo {
namespace {

// [n, hidden] rows of `dtype` where the samples of the global micro-batch, with
// these row counts, are dealt to the lanes of either side in order.
absl::StatusOr<BridgePayload> RowsPayload(const StageLink& link,
                                          absl::Span<const int64_t> sample_rows,
                                          int64_t hidden, DType dtype) {
  const BridgeSide &from = link.bridge->source(),
                   &to = link.bridge->destination();
  BridgePayload payload = link.config->Payload({-1, hidden}, dtype);
  MIMO_ASSIGN_OR_RETURN(payload.source_rows,
                        RowsOfLanes(sample_rows, from.dp * from.cp));
  MIMO_ASSIGN_OR_RETURN(payload.destination_rows,
                        RowsOfLanes(sample_rows, to.dp));
  return payload;
}

void* DataOrNull(const Tensor& tensor) {
  return tensor.defined() ? tensor.data() : nullptr;
}

}  // namespace

absl::StatusOr<std::vector<Tensor>> ModelPass::Run(const Tensor& dloss,
                                                   Hook before, Hook after) {
  CHECK_EQ(static_cast<int>(inputs_.size()), schedule_.options.micro_batches);
  for (const PipelineStep& step : steps_) {
    MIMO_RETURN_IF_ERROR(before(step));
    if (step.kind == PipelineStep::kForward) {
      MIMO_RETURN_IF_ERROR(Forward(step.at, step.forward, dloss));
    } else if (step.kind == PipelineStep::kTransfer) {
      MIMO_RETURN_IF_ERROR(Transfer(step));
    } else {
      Backward(step.at, step.backward, dloss);
    }
    MIMO_RETURN_IF_ERROR(after(step));
  }
  return std::move(results_);
}

absl::StatusOr<std::vector<Tensor>> ModelPass::Predict() {
  CHECK(schedule_.options.forward_only);
  predict_ = true;
  return Run(Tensor());
}

bool ModelPass::Holds(int stage) const {
  const std::string& module = ModuleOf(stage);
  return model_.role().modules.contains(module) &&
         model_.placement().GroupsOf(module).pp_rank() ==
             schedule_.stages[stage].stage;
}

void ModelPass::Describe(ProfileRange& range, int stage, int m) const {
  range.Set("module", ModuleOf(stage));
  range.Set("stage", schedule_.stages[stage].stage);
  range.Set("micro_batch", first_ + m);
}

void ModelPass::Describe(ProfileRange& range, const PipelineStep& step) const {
  const auto [from, to] = schedule_.edges[step.at];
  range.Set("from", ModuleOf(from));
  range.Set("from_stage", schedule_.stages[from].stage);
  range.Set("to", ModuleOf(to));
  range.Set("to_stage", schedule_.stages[to].stage);
  if (step.forward >= 0) range.Set("forward", first_ + step.forward);
  if (step.backward >= 0) range.Set("backward", first_ + step.backward);
}

absl::Status ModelPass::Forward(int stage, int m, const Tensor& dloss) {
  ProfileRange range(ctx_, "forward");
  Describe(range, stage, m);
  Call& call = calls_[{stage, m}];
  Context ctx = ctx_;
  ctx.tape = HasBackward(stage) ? &call.tape : nullptr;
  const std::string& module = ModuleOf(stage);
  const ModelInputs& inputs = *inputs_[m];
  if (module != model_.role().language_module_name) {
    const Var* received =
        call.received.empty() ? nullptr : &call.received.begin()->second;
    MIMO_ASSIGN_OR_RETURN(
        call.output, model_.ForwardModality(ctx, module, inputs, received));
    return absl::OkStatus();
  }
  ModuleVars received;
  for (const auto& [edge, var] : call.received)
    received[ModuleOf(schedule_.edges[edge].from)] = var;
  MIMO_ASSIGN_OR_RETURN(call.output,
                        model_.ForwardLanguage(ctx, inputs, received));
  if (!LastOfAll(stage)) return absl::OkStatus();
  const LanguageModel& language = model_.language_model();
  if (predict_) {
    call.output = {
        language.Predict(ctx, call.output.value, inputs.targets.numel())};
  } else {
    call.output = language.Loss(ctx, call.output, inputs.targets, dloss);
  }
  results_.push_back(call.output.value);
  if (!HasBackward(stage)) calls_.erase({stage, m});
  return absl::OkStatus();
}

void ModelPass::Backward(int stage, int m, const Tensor& dloss) {
  ProfileRange range(ctx_, "backward");
  Describe(range, stage, m);
  const auto node = calls_.extract({stage, m});
  Call& call = node.mapped();
  std::vector<Tape::Seed> seeds;
  if (LastOfAll(stage)) {
    seeds.push_back({call.output.slot, dloss});
  } else {
    for (int e = 0; e < static_cast<int>(schedule_.edges.size()); ++e) {
      if (schedule_.edges[e].from != stage) continue;
      if (auto came = output_grads_.extract({e, m}); !came.empty())
        seeds.push_back({call.output.slot, std::move(came.mapped())});
    }
  }
  call.tape.Backward(ctx_, std::move(seeds));
  for (const auto& [edge, var] : call.received) {
    if (!var.needs_grad()) continue;
    Tensor& gradient = input_grads_[{edge, m}];
    gradient = call.tape.TakeGrad(var.slot);
    if (!gradient.defined()) {
      gradient = ctx_.Empty(var.value.shape(), var.value.dtype());
      gradient.Zero();
    }
  }
}

absl::Status ModelPass::Transfer(const PipelineStep& step) {
  const StageLink& link = links_.link(step.at);
  const int from = schedule_.edges[step.at].from;
  if (step.forward >= 0 && inputs_[step.forward]->moved.contains(step.at)) {
    // Ahead of the pass, which moves nothing back.
  } else if (link.pipeline != nullptr || link.bridge != nullptr) {
    ProfileRange range(ctx_, "transfer", RanksOf(step.at));
    Describe(range, step);
    MIMO_RETURN_IF_ERROR(link.bridge != nullptr
                             ? Cross(step, link)
                             : Exchange(step, *link.pipeline));
  } else {
    Hand(step);
  }
  // What has gone on, or back, is needed no more.
  if (step.forward >= 0 && !HasBackward(from))
    calls_.erase({from, step.forward});
  if (step.backward >= 0) input_grads_.erase({step.at, step.backward});
  return absl::OkStatus();
}

absl::Span<const int> ModelPass::RanksOf(int edge) const {
  const StageLink& link = links_.link(edge);
  if (link.bridge != nullptr) return link.group->members();
  const int upper = schedule_.stages[schedule_.edges[edge].from].stage;
  return link.pipeline->members().subspan(upper, 2);
}

void ModelPass::Hand(const PipelineStep& step) {
  const auto [from, to] = schedule_.edges[step.at];
  if (step.forward >= 0) {
    const Var& output = calls_.at({from, step.forward}).output;
    Call& call = calls_[{to, step.forward}];
    call.received[step.at] =
        output.needs_grad() ? call.tape.Input(output.value) : Var{output.value};
  }
  if (step.backward < 0) return;
  const At at(step.at, step.backward);
  if (auto gradient = input_grads_.extract(at); !gradient.empty())
    output_grads_[at] = std::move(gradient.mapped());
}

Tensor ModelPass::Receive(int edge, int m, Shape shape) {
  const auto [from, to] = schedule_.edges[edge];
  const Tensor rows = ctx_.Empty(std::move(shape), model_.dtype());
  Call& call = calls_[{to, m}];
  call.received[edge] = HasBackward(from) ? call.tape.Input(rows) : Var{rows};
  return rows;
}

absl::StatusOr<Shape> ModelPass::BetweenStages(const std::string& module,
                                               int m) const {
  if (m < 0) return Shape();
  const ModelInputs& inputs = *inputs_[m];
  if (module != model_.role().language_module_name)
    return model_.modality(module).PassedShape(inputs.rows.at(module));
  const int64_t tokens = inputs.layout.text_ids.numel();
  return Shape{
      TokensOfRank(tokens, model_.placement().GroupsOf(module).tokens()),
      model_.language_model().hidden_size()};
}

absl::Status ModelPass::Exchange(const PipelineStep& step,
                                 Communicator& pipeline) {
  const int e = step.at, f = step.forward, b = step.backward;
  const auto [from, to] = schedule_.edges[e];
  const std::string& module = ModuleOf(from);
  const int upper = schedule_.stages[from].stage;
  MIMO_ASSIGN_OR_RETURN(Shape forward, BetweenStages(module, f));
  MIMO_ASSIGN_OR_RETURN(Shape backward, BetweenStages(module, b));
  std::vector<mimo::Transfer> transfers;
  const auto add = [&](mimo::Transfer::Kind kind, const Tensor& x, int peer) {
    transfers.push_back({kind, x.data(), x.numel(), x.dtype(), peer});
  };
  if (Holds(from)) {
    if (f >= 0) {
      add(mimo::Transfer::kSend, calls_.at({from, f}).output.value, upper + 1);
    }
    if (b >= 0) {
      Tensor& gradient = output_grads_[{e, b}];
      gradient = ctx_.Empty(std::move(backward), model_.dtype());
      add(mimo::Transfer::kRecv, gradient, upper + 1);
    }
  } else {
    if (f >= 0) {
      add(mimo::Transfer::kRecv, Receive(e, f, std::move(forward)), upper);
    }
    if (b >= 0) add(mimo::Transfer::kSend, input_grads_.at({e, b}), upper);
  }
  pipeline.Exchange(transfers, ctx_.compute);
  return absl::OkStatus();
}

absl::Status ModelPass::Cross(const PipelineStep& step, const StageLink& link) {
  Bridge& bridge = *link.bridge;
  const int e = step.at, f = step.forward, b = step.backward;
  const auto [from, to] = schedule_.edges[e];
  const std::string& sender = ModuleOf(from);
  const bool sends = Holds(from), receives = Holds(to);
  const int64_t width = receives ? model_.language_model().hidden_size()
                                 : model_.modality(sender).output_size();
  const auto payload_of = [&](int m) -> absl::StatusOr<BridgePayload> {
    if (m < 0) return BridgePayload();
    return RowsPayload(link, inputs_[m]->sample_rows.at(sender), width,
                       model_.dtype());
  };
  MIMO_ASSIGN_OR_RETURN(const BridgePayload forward, payload_of(f));
  MIMO_ASSIGN_OR_RETURN(const BridgePayload backward, payload_of(b));
  Tensor sent, received, gradient_sent, gradient_received;
  if (f >= 0 && sends) sent = calls_.at({from, f}).output.value;
  if (f >= 0 && receives) {
    received = Receive(
        e, f, {forward.destination_rows[bridge.destination_lane()], width});
  }
  if (b >= 0 && receives) gradient_sent = input_grads_.at({e, b});
  if (b >= 0 && sends) {
    gradient_received = ctx_.Empty(
        {backward.source_rows[bridge.source_lane()], width}, model_.dtype());
    output_grads_[{e, b}] = gradient_received;
  }
  const Bridge::Pass forwards = {forward, DataOrNull(sent),
                                 DataOrNull(received)};
  const Bridge::Pass backwards = {backward, DataOrNull(gradient_sent),
                                  DataOrNull(gradient_received)};
  if (b < 0) return bridge.Forward(forwards, ctx_.compute);
  if (f < 0) return bridge.Backward(backwards, ctx_.compute);
  return bridge.ForwardAndBackward(forwards, backwards, ctx_.compute);
}

}  // namespace mimo
