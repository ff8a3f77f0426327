// mimo train: trains the model of a config.
#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/answers.h"
#include "cli/args.h"
#include "cli/build_model.h"
#include "cli/commands.h"
#include "cli/compute.h"
#include "cli/config.h"
#include "cli/open_model.h"
#include "cli/run_data.h"
#include "comm/rendezvous/job.h"
#include "kernels/base/status_macros.h"
#include "kernels/gemm/gemm.h"
#include "mimo/checkpoint/checkpoint.h"
#include "mimo/checkpoint/safetensors.h"
#include "mimo/train/stop_signal.h"
#include "mimo/train/trainer.h"
#include "models/hf/checkpoint.h"
#include "models/llava/model_section.h"
#include "models/mimo_model/mimo_stage.h"

namespace mimo {
namespace {

// The tokenizer that the weights which the run begins with were trained with:
// of the checkpoint that it goes on from, or of its pretrained model; "" if
// none.
std::string TokenizerOfWeights(const CheckpointConfig& checkpoint,
                               const ModelSection& section) {
  std::vector<std::string> folders;
  if (checkpoint.load) {
    if (auto folder = FindCheckpoint(*checkpoint.load); folder.ok()) {
      folders.push_back(*folder);
    }
  }
  if (!section.pretrained.empty()) folders.push_back(section.pretrained);
  for (const std::string& folder : folders) {
    const std::string file = folder + "/tokenizer.model";
    if (Exists(file)) return file;
  }
  return "";
}

// The whole configuration with the model's sizes spelt out.
std::string KeptConfig(ConfigNode root, const ModelSection& section) {
  ConfigNode model = section.ToNode();
  for (ConfigNode& child : root.children) {
    if (child.key == "model") child = model;
  }
  return ToYaml(root);
}

}  // namespace

absl::Status RunTrain(const Words& words, const ModuleRegistry& registry) {
  Args args("train", "trains a model from a config");
  args.Flag("config", "F.yaml", "the run's configuration (docs/config.md)");
  args.Flag("ranks", "N", "ranks as threads of this process (1)");
  args.Flag("profile", "FILE", "a trace of some iterations: logging.profile");
  args.Positional("a.b=c", "values that win over the file's");
  MIMO_RETURN_IF_ERROR(args.Parse(words));
  if (args.help()) {
    std::cout << args.Usage();
    return absl::OkStatus();
  }
  MIMO_ASSIGN_OR_RETURN(const std::string path, args.Required("config"));
  MIMO_ASSIGN_OR_RETURN(const int64_t ranks, args.Int("ranks", 1));
  if (ranks != 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "train: --ranks: ", ranks, ", wanted 1 (mimo runs one rank so far)"));
  }
  MIMO_ASSIGN_OR_RETURN(const Job job, JobFromEnvironment());
  if (job.world_size != 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "train: rank ", job.rank, " of ", job.world_size,
        " in the environment, wanted 1 rank (mimo runs one rank so far)"));
  }
  Words overrides = args.positional();
  if (args.Has("profile")) {
    overrides.push_back("logging.profile=" + args.String("profile"));
  }
  MIMO_ASSIGN_OR_RETURN(const ConfigNode root, ReadRunConfig(path, overrides));
  MIMO_ASSIGN_OR_RETURN(const RunSections run, ReadSections(root));
  MIMO_ASSIGN_OR_RETURN(const ModelSection section,
                        ReadModelSection(root["model"], registry));
  MIMO_RETURN_IF_ERROR(
      ReadRunParallelism(root, section.model, run.train, job.world_size)
          .status());

  RunData data{.config = run.data};
  if (run.data.type == DataType::kCaptions ||
      run.data.type == DataType::kLlavaJson) {
    MIMO_ASSIGN_OR_RETURN(
        data, OpenData(run.data, section.model,
                       TokenizerOfWeights(run.checkpoint, section)));
  }
  MIMO_ASSIGN_OR_RETURN(
      Sources sources, MakeSources(data, section.model,
                                   run.train.micro_batch_size, run.train.seed));

  MIMO_ASSIGN_OR_RETURN(
      const Compute compute,
      ChooseCompute("train.", run.train.device, run.train.dtype));
  if (run.train.gemm_plans) {
    kernels::AutotuneGemm(*run.train.gemm_plans, compute.stream.device);
  }
  Allocator allocator(compute.stream);
  auto model = BuildModel(section.model, registry,
                          {.allocator = &allocator,
                           .dtype = compute.dtype,
                           .seed = static_cast<uint64_t>(run.train.seed),
                           .initialize = section.pretrained.empty()});
  if (!model.ok()) {
    return absl::Status(
        model.status().code(),
        absl::StrCat(path, ": model: ", model.status().message()));
  }
  TrainerOptions options{.train = run.train,
                         .optimizer = run.optimizer,
                         .checkpoint = run.checkpoint,
                         .logging = run.logging};
  if (!section.pretrained.empty()) {
    MIMO_RETURN_IF_ERROR(
        LoadHfParameters(section.pretrained, (*model)->Parameters()));
    MIMO_ASSIGN_OR_RETURN(const HfLayout layout,
                          ReadHfLayout(section.pretrained));
    options.checkpoint_metadata[kHfLayoutKey] = layout.ToText();
  }
  if (run.checkpoint.load && options.checkpoint_metadata.empty()) {
    // Where the weights came from stays known when they are trained on.
    if (auto folder = FindCheckpoint(*run.checkpoint.load); folder.ok()) {
      MIMO_ASSIGN_OR_RETURN(const SafeTensors weights,
                            SafeTensors::Open(*folder + "/model.safetensors"));
      options.checkpoint_metadata = weights.metadata();
    }
  }
  MimoStage stage(**model, allocator, run.train.cuda_graph);
  StopSignal stop;
  options.validation = sources.validation.get();
  options.checkpoint_files["config.yaml"] = KeptConfig(root, section);
  if (data.format) {
    options.checkpoint_files["tokenizer.model"] =
        data.format->tokenizer.bytes();
  }
  if (data.format && !data.corpus.validation.empty()) {
    options.task_metrics = [&]() -> absl::StatusOr<MetricValues> {
      MIMO_ASSIGN_OR_RETURN(
          const SplitAnswers result,
          AskSplit({.allocator = &allocator}, **model, data,
                   data.corpus.validation[0], run.train.seed, /*limit=*/0));
      MetricValues values;
      for (const auto& [kind, share] : ExactByKind(result.answers)) {
        values.emplace_back(MetricName(kind), share);
      }
      return values;
    };
  }
  options.stop_requested = [&] { return stop.requested(); };
  MIMO_ASSIGN_OR_RETURN(
      const auto trainer,
      Trainer::Create(std::move(options), stage, *sources.train, allocator));
  return trainer->Run().status();
}

}  // namespace mimo
