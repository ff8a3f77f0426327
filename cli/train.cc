// mimo train: trains the model of a config.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "cli/answers.h"
#include "cli/args.h"
#include "cli/build_model.h"
#include "cli/commands.h"
#include "cli/compute.h"
#include "cli/config.h"
#include "cli/open_model.h"
#include "cli/ranks.h"
#include "cli/run_data.h"
#include "comm/rendezvous/job.h"
#include "kernels/base/status_macros.h"
#include "kernels/gemm/gemm.h"
#include "mimo/checkpoint/checkpoint.h"
#include "mimo/checkpoint/sharded_tensors.h"
#include "mimo/config/fields.h"
#include "mimo/data/file.h"
#include "mimo/parallel/distributed_data_parallel.h"
#include "mimo/train/stop_signal.h"
#include "mimo/train/trainer.h"
#include "models/hf/checkpoint.h"
#include "models/infra/data_share.h"
#include "models/llava/model_section.h"
#include "models/mimo_model/mimo_stage.h"
#include "models/mimo_model/model_links.h"
#include "models/provider/mimo_model_provider.h"

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

// What the ranks of a process share.
struct Shared {
  std::chrono::steady_clock::time_point began;
  std::string path;
  ConfigNode root;
  RunSections run;
  ModelSection section;
  MimoParallelismConfig parallelism;
  RunData data;
};

// Whether passes are captured: those of one rank alone, so far.
bool Captures(const TrainConfig& train, const Compute& compute,
              const Communicator* world) {
  return train.cuda_graph && world == nullptr &&
         compute.stream.device != Device::kCpu;
}

// What this rank trains, if it fits, with its first weights.
absl::StatusOr<DistributedModel> Provide(const Shared& shared,
                                         const ModuleRegistry& registry,
                                         const Compute& compute,
                                         Communicator* world,
                                         Allocator& allocator) {
  const TrainConfig& train = shared.run.train;
  MimoModelProvider provider(registry, shared.section.model);
  if (world != nullptr) provider.parallelism = shared.parallelism;
  provider.dtype = compute.dtype;
  provider.seed = static_cast<uint64_t>(train.seed);
  provider.initialize = shared.section.pretrained.empty();
  const bool captured = Captures(train, compute, world);
  DistributedModelOptions options{
      .ddp_config = DataParallelOptions{.overlap_grad_reduce = !captured}};
  options.init_model_with_meta_device = true;
  MIMO_ASSIGN_OR_RETURN(
      const DistributedModel counted,
      provider.ProvideDistributedModel(world, allocator, options));
  MIMO_RETURN_IF_ERROR(
      CheckFits(*counted.model, shared.run.optimizer, compute.stream.device));
  options.init_model_with_meta_device = false;
  MIMO_ASSIGN_OR_RETURN(
      DistributedModel provided,
      provider.ProvideDistributedModel(world, allocator, options));
  if (!shared.section.pretrained.empty()) {
    MIMO_RETURN_IF_ERROR(LoadHfParameters(shared.section.pretrained,
                                          provided.model->Parameters()));
  }
  return provided;
}

// What a rank with `model` reads.
DataShare ShareOf(const MimoModel& model, int64_t micro_batch_size) {
  const MimoModelConfig& config = model.config();
  if (model.placement().infra != nullptr) {
    return DataShareOf(*model.placement().infra, micro_batch_size);
  }
  DataShare share{.samples = micro_batch_size, .text = DataSlice()};
  for (const auto& [name, spec] : config.modality_submodules_spec)
    share.modalities[name] = {};
  return share;
}

absl::Status Read(const Args& args, int size, int threads,
                  const ModuleRegistry& registry, Shared& shared,
                  RankOptions& ranks) {
  MIMO_ASSIGN_OR_RETURN(shared.path, args.Required("config"));
  Words overrides = args.positional();
  for (const std::string flag : {"profile", "trace"}) {
    if (args.Has(flag))
      overrides.push_back("logging." + flag + "=" + args.String(flag));
  }
  MIMO_ASSIGN_OR_RETURN(shared.root, ReadRunConfig(shared.path, overrides));
  MIMO_ASSIGN_OR_RETURN(shared.run, ReadSections(shared.root));
  MIMO_ASSIGN_OR_RETURN(shared.section,
                        ReadModelSection(shared.root["model"], registry));
  TrainConfig& train = shared.run.train;
  MIMO_ASSIGN_OR_RETURN(
      shared.parallelism,
      ReadRunParallelism(shared.root, shared.section.model, train, size));
  if (const absl::Status runs = CheckRuns(shared.parallelism); !runs.ok())
    return config_internal::PlaceError(shared.root["parallelism"], runs);
  std::vector<std::string> modules = shared.parallelism.ModuleNames();
  for (const auto& [name, spec] :
       shared.section.model.modality_submodules_spec) {
    for (const absl::string_view part : {"encoders", "input_projections"})
      modules.push_back(absl::StrCat(name, ".", part));
  }
  for (const auto& [name, config] : shared.run.optimizer.modules) {
    if (std::ranges::find(modules, name) != modules.end()) continue;
    return config_internal::PlaceError(
        shared.root["optimizer"],
        absl::InvalidArgumentError(
            absl::StrCat("modules.", name, ": no such module, wanted one of ",
                         absl::StrJoin(modules, ", "))));
  }
  if (threads > 1 && train.device == "auto") train.device = "cpu";
  if (threads > 1 && train.device != "cpu") {
    return config_internal::PlaceError(
        shared.root["train"],
        absl::InvalidArgumentError(absl::StrCat(
            "device: ", train.device,
            ", wanted cpu (ranks that are threads train on the CPU; mimo "
            "launch starts a process for each GPU)")));
  }
  const auto device = ChooseDevice("", train.device);
  if (!device.ok())
    return config_internal::PlaceError(shared.root["train"], device.status());
  ranks.device = *device;
  ranks.timeout = absl::Minutes(train.distributed_timeout_minutes);
  return absl::OkStatus();
}

// What the run reads.
absl::Status Prepare(Shared& shared) {
  const DataConfig& data = shared.run.data;
  shared.data.config = data;
  if (data.type != DataType::kCaptions && data.type != DataType::kLlavaJson)
    return absl::OkStatus();
  MIMO_ASSIGN_OR_RETURN(
      shared.data,
      OpenData(data, shared.section.model,
               TokenizerOfWeights(shared.run.checkpoint, shared.section)));
  return absl::OkStatus();
}

// Of what the config asks for and will not have.
void Warn(const Shared& shared) {
  for (const std::string& warning : shared.parallelism.Warnings()) {
    std::cerr << "mimo: warning: " << shared.path << ": parallelism." << warning
              << "\n";
  }
}

// What a rank trains with.
struct Training {
  std::optional<Allocator> allocator;
  DistributedModel provided;
  std::optional<MimoStage> stage;
  Sources sources;
  std::unique_ptr<Trainer> trainer;
};

absl::Status TrainRank(const Shared& shared, const ModuleRegistry& registry,
                       const StopSignal& stop, Communicator* world,
                       Training& training) {
  const RunSections& run = shared.run;
  const ModelSection& section = shared.section;
  const RunData& data = shared.data;
  MIMO_ASSIGN_OR_RETURN(
      const Compute compute,
      ChooseCompute("train.", run.train.device, run.train.dtype));
  if (run.train.gemm_plans) {
    kernels::AutotuneGemm(*run.train.gemm_plans, compute.stream.device);
  }
  Allocator& allocator = training.allocator.emplace(compute.stream);
  const auto of_model = [&](const absl::Status& status) {
    return absl::Status(status.code(),
                        absl::StrCat("model: ", status.message()));
  };
  auto provided = Provide(shared, registry, compute, world, allocator);
  if (!provided.ok()) return of_model(provided.status());
  training.provided = *std::move(provided);
  MimoModel& model = *training.provided.model;
  const MimoParallelismConfig& parallelism = shared.parallelism;
  const int64_t replicas =
      *parallelism.Find(parallelism.llm_module_name)->data_parallel_size;
  TrainerOptions options{.train = run.train,
                         .optimizer = run.optimizer,
                         .checkpoint = run.checkpoint,
                         .logging = run.logging,
                         .run_ahead = compute.stream.device == Device::kCuda,
                         .began = shared.began,
                         .world = world,
                         .data_parallel_size = replicas};
  if (!section.pretrained.empty()) {
    MIMO_ASSIGN_OR_RETURN(const HfLayout layout,
                          ReadHfLayout(section.pretrained));
    options.checkpoint_metadata[kHfLayoutKey] = layout.ToText();
  }
  if (run.checkpoint.load && options.checkpoint_metadata.empty()) {
    // Where the weights came from stays known when they are trained on.
    if (auto folder = FindCheckpoint(*run.checkpoint.load); folder.ok()) {
      MIMO_ASSIGN_OR_RETURN(const ShardedTensors weights,
                            ShardedTensors::Open(*folder, "model"));
      options.checkpoint_metadata = weights.metadata();
    }
  }
  std::optional<ModelLinks> links;
  const int run_ahead = run.train.encoder_run_ahead;
  if (world == nullptr) {
    links.emplace(model, run_ahead);
  } else {
    auto connected = ModelLinks::Connect(model, *world, allocator, run_ahead);
    if (absl::IsInvalidArgument(connected.status()))
      return of_model(connected.status());
    MIMO_ASSIGN_OR_RETURN(links, std::move(connected));
  }
  MimoStage& stage = training.stage.emplace(
      model, allocator,
      MimoStageOptions{.capture = Captures(run.train, compute, world),
                       .pack = run.train.pack_sequences},
      *std::move(links));
  const DataShare share = ShareOf(model, run.train.micro_batch_size);
  Sources& sources = training.sources;
  MIMO_ASSIGN_OR_RETURN(
      sources, MakeSources(data, section.model, run.train.seed, share));
  options.validation = sources.validation.get();
  options.checkpoint_files["config.yaml"] = KeptConfig(shared.root, section);
  if (data.format) {
    options.checkpoint_files["tokenizer.model"] =
        data.format->tokenizer.bytes();
  }
  if (sources.questions != nullptr) {
    options.task_metrics = [&] {
      return ExactMatches(stage, *sources.questions, data.corpus.validation[0],
                          share, run.train.MicroBatches(replicas), world,
                          allocator);
    };
  }
  options.stop_requested = [&] { return stop.requested(); };
  MIMO_ASSIGN_OR_RETURN(training.trainer,
                        Trainer::Create(std::move(options), stage,
                                        *training.provided.data_parallel,
                                        *sources.train, allocator));
  return training.trainer->Run().status();
}

Args TrainFlags() {
  Args args("train", "trains a model from a config");
  args.Flag("config", "F.yaml", "the run's configuration (docs/config.md)");
  args.Flag("ranks", "N", "ranks as threads of this process (1)");
  args.Flag("profile", "FILE", "a trace of some iterations: logging.profile");
  args.Flag("trace", "FILE", "what all ranks do in them: logging.trace");
  args.Positional("a.b=c", "values that win over the file's");
  return args;
}

// What --ranks says in a job of `world_size` processes.
absl::StatusOr<int> ThreadRanks(const Args& args, int world_size) {
  constexpr int64_t kMaxRanks = 1024;
  MIMO_ASSIGN_OR_RETURN(const int64_t threads, args.Int("ranks", 1));
  if (threads < 1 || threads > kMaxRanks) {
    return absl::InvalidArgumentError(
        absl::StrCat("train: --ranks: ", threads, ", wanted 1 to ", kMaxRanks));
  }
  if (world_size > 1 && threads > 1) {
    return absl::InvalidArgumentError(absl::StrCat("train: --ranks: ", threads,
                                                   ", wanted 1 in a job of ",
                                                   world_size, " processes"));
  }
  return static_cast<int>(threads);
}

}  // namespace

absl::Status CheckTrainFlags(const Words& words, int world_size) {
  Args args = TrainFlags();
  MIMO_RETURN_IF_ERROR(args.Parse(words));
  return ThreadRanks(args, world_size).status();
}

absl::Status RunTrain(const Words& words, const ModuleRegistry& registry) {
  const auto began = std::chrono::steady_clock::now();
  Args args = TrainFlags();
  MIMO_RETURN_IF_ERROR(args.Parse(words));
  if (args.PrintsHelp()) return absl::OkStatus();
  MIMO_ASSIGN_OR_RETURN(const Job job, JobFromEnvironment());
  MIMO_ASSIGN_OR_RETURN(const int threads, ThreadRanks(args, job.world_size));
  const int size = job.world_size > 1 ? job.world_size : threads;
  Shared shared;
  shared.began = began;
  RankOptions options;
  std::optional<StopSignal> stop;
  return RunOnRanks(
      job, threads, options,
      [&] { return Read(args, size, threads, registry, shared, options); },
      [&] {
        MIMO_RETURN_IF_ERROR(PlaceMistake(shared.root, Prepare(shared)));
        stop.emplace();
        if (job.rank == 0) Warn(shared);
        return absl::OkStatus();
      },
      [&](Communicator* world, Kept& kept) {
        const auto training = std::make_shared<Training>();
        kept = training;
        return PlaceMistake(
            shared.root, TrainRank(shared, registry, *stop, world, *training));
      });
}

}  // namespace mimo
