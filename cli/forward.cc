// mimo forward: one forward, and backward, of a checkpoint on given tensors.
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "cli/compute.h"
#include "cli/open_model.h"
#include "kernels/base/status_macros.h"
#include "mimo/checkpoint/safetensors.h"
#include "mimo/train/tensors_source.h"
#include "models/hf/checkpoint.h"
#include "models/mimo_model/mimo_stage.h"

namespace mimo {

// Results are compared between machines, so the GPU is asked for.
constexpr char kDefaultDevice[] = "cpu";

absl::Status RunForward(const Words& words, const ModuleRegistry& registry) {
  Args args("forward", "one forward, and backward, of a checkpoint");
  args.Flag("checkpoint", "DIR", "a Hugging Face folder or a checkpoint");
  args.Flag("inputs", "I.safetensors", "input_ids, labels, pixel_values");
  args.Flag("outputs", "O.safetensors",
            "logits, loss, image_features, grad.<name>");
  args.Flag("grads", "", "the loss's gradient of every parameter too");
  AddComputeFlags(args, kDefaultDevice);
  MIMO_RETURN_IF_ERROR(args.Parse(words));
  if (args.PrintsHelp()) return absl::OkStatus();
  MIMO_ASSIGN_OR_RETURN(const std::string checkpoint,
                        args.Required("checkpoint"));
  MIMO_ASSIGN_OR_RETURN(const std::string inputs, args.Required("inputs"));
  MIMO_ASSIGN_OR_RETURN(const std::string outputs, args.Required("outputs"));
  MIMO_ASSIGN_OR_RETURN(const Compute compute,
                        ReadCompute(args, kDefaultDevice));
  MIMO_ASSIGN_OR_RETURN(
      const OpenedModel opened,
      OpenModel(checkpoint, compute, registry, args.Has("grads")));
  const MimoModel& model = *opened.model;
  const LanguageModel& lm = model.language_model();
  MIMO_ASSIGN_OR_RETURN(const MicroBatch batch, ReadTensorBatch(inputs));
  const int64_t labelled = batch.LabelledTokens();
  if (args.Has("grads") && labelled == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        inputs, ": labels: none, wanted at least one with --grads"));
  }

  std::map<std::string, Tensor> out;
  Tape tape;
  Context ctx = opened.context();
  if (args.Has("grads")) ctx.tape = &tape;
  MIMO_ASSIGN_OR_RETURN(const ModelInputs prepared,
                        model.Prepare(ctx, batch, {.all_rows = true}));
  MIMO_ASSIGN_OR_RETURN(const Var hidden, model.Forward(ctx, prepared));
  out["logits"] = lm.Logits(ctx, hidden.value)
                      .Reshape({batch.batch, batch.seq, lm.vocab_size()});
  if (prepared.modalities.contains("images")) {
    MIMO_ASSIGN_OR_RETURN(const ModuleVars rows,
                          model.ForwardModalities(opened.context(), prepared));
    out["image_features"] = rows.at("images").value;
  }
  if (labelled > 0) {
    const Var loss = lm.Loss(ctx, hidden, prepared.targets, {});
    const double mean = HostValue(loss.value) / labelled;
    out["loss"] =
        Tensor::From<float>(*opened.allocator, {1}, {static_cast<float>(mean)});
    if (args.Has("grads")) {
      std::vector<Tape::Seed> seeds;
      seeds.push_back({loss.slot, Tensor::From<double>(*opened.allocator, {1},
                                                       {1.0 / labelled})});
      tape.Backward(ctx, std::move(seeds));
    }
  }
  if (args.Has("grads")) {
    if (!opened.section.llava) {
      for (Parameter* p : model.Parameters()) {
        if (!p->frozen) out["grad." + p->name] = p->Grad();
      }
    } else {
      HfLayout layout;
      if (opened.hugging_face) {
        MIMO_ASSIGN_OR_RETURN(layout, ReadHfLayout(opened.folder));
      }
      MIMO_ASSIGN_OR_RETURN(
          const auto grads,
          HfGradients(model.Parameters(), *opened.section.llava,
                      *opened.allocator, layout));
      for (const auto& [name, grad] : grads) out["grad." + name] = grad;
    }
  }
  return WriteSafeTensors(outputs, out);
}

}  // namespace mimo
