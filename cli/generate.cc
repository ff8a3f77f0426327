// mimo generate: text about pictures.
#include "models/generate/generate.h"

#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "cli/compute.h"
#include "cli/open_model.h"
#include "cli/run_data.h"
#include "kernels/base/status_macros.h"
#include "mimo/data/conversation_dataset.h"
#include "models/llava/llava.h"

namespace mimo {
namespace {

absl::StatusOr<GenerateOptions> ReadOptions(const Args& args) {
  GenerateOptions options;
  MIMO_ASSIGN_OR_RETURN(options.max_new_tokens,
                        args.Int("max-new-tokens", options.max_new_tokens));
  MIMO_ASSIGN_OR_RETURN(options.temperature, args.Double("temperature", 0));
  MIMO_ASSIGN_OR_RETURN(options.top_k, args.Int("top-k", 0));
  MIMO_ASSIGN_OR_RETURN(options.top_p, args.Double("top-p", 1));
  MIMO_ASSIGN_OR_RETURN(const int64_t seed, args.Int("seed", 0));
  options.seed = seed;
  return options;
}

}  // namespace

absl::Status RunGenerate(const Words& words, const ModuleRegistry& registry) {
  Args args("generate", "writes text about pictures");
  args.Flag("checkpoint", "DIR", "a Hugging Face folder or a checkpoint");
  args.Flag("image", "P", "a PNG or JPEG; may be given several times");
  args.Flag("prompt", "T", "the question; <image> places a picture in it");
  args.Flag("tokenizer", "F.model", "instead of the folder's tokenizer.model");
  args.Flag("max-new-tokens", "N", "at most so many (64)");
  args.Flag("temperature", "X", "0 is greedy (0)");
  args.Flag("top-k", "N", "sample among the N likeliest; 0: all (0)");
  args.Flag("top-p", "X", "and among those that reach X together (1)");
  args.Flag("seed", "N", "of sampling (0)");
  AddComputeFlags(args, "auto");
  MIMO_RETURN_IF_ERROR(args.Parse(words));
  if (args.PrintsHelp()) return absl::OkStatus();
  MIMO_ASSIGN_OR_RETURN(const std::string checkpoint,
                        args.Required("checkpoint"));
  MIMO_ASSIGN_OR_RETURN(const std::string prompt, args.Required("prompt"));
  MIMO_ASSIGN_OR_RETURN(GenerateOptions options, ReadOptions(args));
  MIMO_ASSIGN_OR_RETURN(const Compute compute, ReadCompute(args, "auto"));
  MIMO_ASSIGN_OR_RETURN(const OpenedModel opened,
                        OpenModel(checkpoint, compute, registry));
  MIMO_ASSIGN_OR_RETURN(Tokenizer tokenizer,
                        Tokenizer::Load(args.String(
                            "tokenizer", opened.folder + "/tokenizer.model")));
  MIMO_ASSIGN_OR_RETURN(const ConversationTemplate format,
                        MakeFormat(std::move(tokenizer), opened.section.model));
  MIMO_ASSIGN_OR_RETURN(const Pictures pictures,
                        PicturesOf(opened.section.model));
  DataConfig data;
  if (!opened.hugging_face && opened.config.Has("data")) {
    MIMO_RETURN_IF_ERROR(FromYaml(opened.config["data"], data));
  }

  Sample sample;
  for (const std::string& path : args.Strings("image")) {
    MIMO_ASSIGN_OR_RETURN(
        sample.modalities[kImages].emplace_back(),
        View({.path = path}, {.image_size = pictures.size, .fit = data.fit},
             PhiloxSequence(0, 0)));
  }
  const int64_t images = args.Strings("image").size();
  MIMO_ASSIGN_OR_RETURN(
      sample.input_ids,
      format.EncodePrompt({{.question = PlaceImages(prompt, images)}}, images));
  sample.labels.assign(sample.input_ids.size(), kIgnoreLabel);
  options.eos_id = format.tokenizer.eos_id();
  const Context ctx = opened.context();
  MIMO_ASSIGN_OR_RETURN(
      const std::vector<int32_t> tokens,
      Generate(ctx, *opened.model, sample.input_ids,
               opened.model->InputsOf(ctx, Collate({sample}, 0)), options));
  std::cout << format.tokenizer.Decode(tokens) << "\n";
  return absl::OkStatus();
}

}  // namespace mimo
