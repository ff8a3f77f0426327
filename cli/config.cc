#include "cli/config.h"

#include <optional>
#include <set>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"
#include "mimo/config/fields.h"

namespace mimo {
namespace {

// OK if the modules are the model's: the language model's and each modality's.
absl::Status CheckModules(const MimoParallelismConfig& config,
                          const MimoModelConfig& model) {
  std::set<std::string> missing = {config.llm_module_name};
  for (const auto& [name, spec] : model.modality_submodules_spec) {
    missing.insert(name);
  }
  std::vector<std::string> extra;
  for (const std::string& name : config.ModuleNames()) {
    if (missing.erase(name) == 0) extra.push_back(name);
  }
  if (missing.empty() && extra.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "modules: keys must match modality module names + '%s', missing [%s], "
      "extra [%s]",
      config.llm_module_name, absl::StrJoin(missing, ", "),
      absl::StrJoin(extra, ", ")));
}

}  // namespace

absl::StatusOr<ConfigNode> ReadRunConfig(
    const std::string& path, const std::vector<std::string>& overrides) {
  MIMO_ASSIGN_OR_RETURN(ConfigNode root, LoadYaml(path));
  for (const std::string& assignment : overrides) {
    MIMO_RETURN_IF_ERROR(ApplyOverride(root, assignment));
  }
  MIMO_RETURN_IF_ERROR(CheckKeys(root, {"model", "parallelism", "data", "train",
                                        "optimizer", "checkpoint", "logging"}));
  return root;
}

absl::StatusOr<RunSections> ReadSections(const ConfigNode& root) {
  RunSections run;
  MIMO_RETURN_IF_ERROR(FromYaml(root["data"], run.data));
  MIMO_RETURN_IF_ERROR(FromYaml(root["train"], run.train));
  MIMO_RETURN_IF_ERROR(FromYaml(root["optimizer"], run.optimizer));
  MIMO_RETURN_IF_ERROR(FromYaml(root["checkpoint"], run.checkpoint));
  MIMO_RETURN_IF_ERROR(FromYaml(root["logging"], run.logging));
  return run;
}

absl::StatusOr<MimoParallelismConfig> ReadRunParallelism(
    const ConfigNode& root, const MimoModelConfig& model,
    const TrainConfig& train, int world_size) {
  const ConfigNode node = root["parallelism"];
  MIMO_ASSIGN_OR_RETURN(MimoParallelismConfig config,
                        ReadParallelism(node, std::nullopt));
  if (config.module_parallelisms.empty() &&
      config.deployment_mode != DeploymentMode::kHeterogeneous) {
    config.module_parallelisms = {{config.llm_module_name, {}}};
    for (const auto& [name, spec] : model.modality_submodules_spec) {
      config.module_parallelisms.push_back({name, {}});
    }
  }
  absl::Status valid = config.Finalize(world_size);
  if (valid.ok()) valid = CheckModules(config, model);
  if (valid.ok()) {
    valid = config.MicroBatches(train.global_batch_size, train.micro_batch_size)
                .status();
  }
  if (!valid.ok()) return config_internal::PlaceError(node, valid);
  return config;
}

}  // namespace mimo
