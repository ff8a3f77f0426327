// mimo plan: what a config would take, without running it.
#include <cstdint>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "cli/config.h"
#include "kernels/base/status_macros.h"
#include "mimo/train/train_config.h"
#include "models/llava/model_section.h"
#include "models/mimo_model/mimo_model.h"

namespace mimo {
namespace {

// Parameters of one module, and the bytes of training them in float32: weights,
// and for what is trained also gradients and the two moments of AdamW.
struct Count {
  int64_t parameters = 0, trainable = 0;
  int64_t bytes() const { return 4 * parameters + 12 * trainable; }
};

// "language_model", "modality_submodules.images.encoders.clip_encoder", ...
std::string ModuleOf(const std::string& name) {
  const std::vector<std::string> parts = absl::StrSplit(name, '.');
  const size_t depth = parts[0] == "modality_submodules" ? 4 : 1;
  std::string module = parts[0];
  for (size_t i = 1; i < depth && i < parts.size(); ++i) {
    absl::StrAppend(&module, ".", parts[i]);
  }
  return module;
}

std::string Json(const std::vector<std::pair<std::string, Count>>& modules,
                 const Count& total, const TrainConfig& train) {
  std::string out = R"({"world_size": 1, "deployment_mode": "homogeneous", )";
  absl::StrAppendFormat(&out,
                        R"("micro_batch_size": %d, "global_batch_size": %d, )"
                        R"("micro_batches": %d, "modules": {)",
                        train.micro_batch_size, train.global_batch_size,
                        train.MicroBatches());
  auto one = [&](const Count& count) {
    absl::StrAppendFormat(&out,
                          R"({"parameters": %d, "trainable": %d, "bytes": %d})",
                          count.parameters, count.trainable, count.bytes());
  };
  for (size_t i = 0; i < modules.size(); ++i) {
    absl::StrAppendFormat(&out, "%s\"%s\": ", i ? ", " : "", modules[i].first);
    one(modules[i].second);
  }
  absl::StrAppend(&out, R"(}, "total": )");
  one(total);
  return out + "}\n";
}

}  // namespace

absl::Status RunPlan(const Words& words, const ModuleRegistry& registry) {
  Args args("plan", "parameters and memory of a config, without running it");
  args.Flag("config", "F.yaml", "the run's configuration");
  args.Flag("world", "N", "ranks (1)");
  args.Flag("json", "", "one JSON object instead of a table");
  args.Positional("a.b=c", "values that win over the file's");
  MIMO_RETURN_IF_ERROR(args.Parse(words));
  if (args.help()) {
    std::cout << args.Usage();
    return absl::OkStatus();
  }
  MIMO_ASSIGN_OR_RETURN(const std::string path, args.Required("config"));
  MIMO_ASSIGN_OR_RETURN(const int64_t world, args.Int("world", 1));
  if (world != 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "plan: --world: ", world, ", wanted 1 (mimo runs one rank so far)"));
  }
  MIMO_ASSIGN_OR_RETURN(const ConfigNode root,
                        ReadRunConfig(path, args.positional()));
  MIMO_ASSIGN_OR_RETURN(const RunSections run, ReadSections(root));
  const TrainConfig& train = run.train;
  MIMO_ASSIGN_OR_RETURN(const ModelSection section,
                        ReadModelSection(root["model"], registry));
  Allocator allocator;
  MIMO_ASSIGN_OR_RETURN(
      const auto model,
      MimoModel::Build(section.model, registry,
                       {.allocator = &allocator, .meta = true}));
  std::vector<std::pair<std::string, Count>> modules;  // in the model's order
  Count total;
  for (const Parameter* p : model->Parameters()) {
    const std::string module = ModuleOf(p->name);
    if (modules.empty() || modules.back().first != module) {
      modules.emplace_back(module, Count());
    }
    for (Count* count : {&modules.back().second, &total}) {
      count->parameters += p->data.numel();
      if (!p->frozen) count->trainable += p->data.numel();
    }
  }
  if (args.Has("json")) {
    std::cout << Json(modules, total, train);
    return absl::OkStatus();
  }
  std::cout << absl::StrFormat(
      "1 rank, homogeneous; global batch %d = %d micro-batches of %d\n\n"
      "%-55s %14s %14s %10s\n",
      train.global_batch_size, train.MicroBatches(), train.micro_batch_size,
      "module", "parameters", "trainable", "MiB");
  modules.emplace_back("total", total);
  for (const auto& [name, count] : modules) {
    std::cout << absl::StrFormat("%-55s %14d %14d %10.1f\n", name,
                                 count.parameters, count.trainable,
                                 count.bytes() / 1048576.0);
  }
  std::cout << "\nMiB: weights, and for what is trained gradients and AdamW's "
               "moments, in float32; activations not counted\n";
  return absl::OkStatus();
}

}  // namespace mimo
