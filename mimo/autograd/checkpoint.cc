#include "mimo/autograd/checkpoint.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <utility>

#include "mimo/autograd/profiler.h"

namespace mimo {
namespace {

struct CheckpointNode final : Node {
  std::vector<Saved> inputs;
  std::vector<Slot> input_slots, output_slots;
  std::vector<ParameterUse> parameters;  // that the second run will use
  CheckpointBody body;

  const char* name() const override { return "Checkpoint"; }
  void Backward(BackwardContext& ctx) override {
    Tape child;
    Context exec = ctx.exec();
    exec.tape = &child;
    std::vector<Var> again;
    for (size_t i = 0; i < inputs.size(); ++i) {
      again.push_back(input_slots[i] == kNoGrad ? Var{inputs[i].get()}
                                                : child.Input(inputs[i].get()));
    }
    std::vector<Tape::Seed> seeds;
    std::vector<Var> outputs;
    {
      const ProfileRange range(exec, "recompute", ProfileRange::kModule);
      outputs = body(exec, again);
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      seeds.push_back({outputs[i].slot, ctx.Take(output_slots[i])});
    }
    child.Backward(exec, std::move(seeds));
    for (size_t i = 0; i < again.size(); ++i) {
      if (again[i].needs_grad()) {
        ctx.PassGrad(input_slots[i], child.TakeGrad(again[i].slot));
      }
    }
  }
};

}  // namespace

std::vector<Var> Checkpoint(const Context& ctx, std::vector<Var> inputs,
                            const std::vector<Parameter*>& parameters,
                            CheckpointBody body) {
  std::vector<Parameter*> trained;
  std::ranges::copy_if(parameters, std::back_inserter(trained),
                       [](const Parameter* p) { return !p->frozen; });
  const bool record =
      ctx.tape != nullptr &&
      (!trained.empty() || std::ranges::any_of(inputs, &Var::needs_grad));
  Context untaped = ctx;
  untaped.tape = nullptr;
  std::vector<Var> outputs = body(untaped, inputs);
  if (!record) return outputs;
  auto node = std::make_unique<CheckpointNode>();
  for (Var& input : inputs) {
    node->input_slots.push_back(input.slot);
    node->inputs.emplace_back(std::move(input.value));
  }
  for (Var& output : outputs) {
    output.slot = ctx.tape->NewSlot();
    node->output_slots.push_back(output.slot);
  }
  node->parameters = std::vector<ParameterUse>(trained.size());
  for (size_t i = 0; i < trained.size(); ++i) node->parameters[i] = trained[i];
  node->body = std::move(body);
  ctx.tape->Append(std::move(node));
  return outputs;
}

}  // namespace mimo
