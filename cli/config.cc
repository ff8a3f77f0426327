#include "cli/config.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "kernels/base/status_macros.h"
#include "mimo/config/fields.h"
#include "mimo/data/file.h"
#include "mimo/train/tensors_source.h"
#include "models/provider/mimo_model_provider.h"

namespace mimo {
namespace {

constexpr absl::string_view kSections[] = {
    "model",     "parallelism", "data",   "train",
    "optimizer", "checkpoint",  "logging"};

}  // namespace

absl::StatusOr<ConfigNode> ReadRunConfig(
    const std::string& path, const std::vector<std::string>& overrides) {
  MIMO_ASSIGN_OR_RETURN(ConfigNode root, LoadYaml(path));
  for (const std::string& assignment : overrides) {
    MIMO_RETURN_IF_ERROR(ApplyOverride(root, assignment));
  }
  MIMO_RETURN_IF_ERROR(CheckKeys(root, kSections));
  return root;
}

absl::StatusOr<RunSections> ReadSections(const ConfigNode& root) {
  RunSections run;
  MIMO_RETURN_IF_ERROR(FromYaml(root["data"], run.data));
  if (run.data.type == DataType::kTensors) {
    // Who opens the file tells why it cannot be read.
    run.train.global_batch_size = CountRows(run.data.path).value_or(1);
  }
  MIMO_RETURN_IF_ERROR(FromYaml(root["train"], run.train));
  MIMO_RETURN_IF_ERROR(FromYaml(root["optimizer"], run.optimizer));
  MIMO_RETURN_IF_ERROR(FromYaml(root["checkpoint"], run.checkpoint));
  MIMO_RETURN_IF_ERROR(FromYaml(root["logging"], run.logging));
  return run;
}

absl::Status PlaceMistake(const ConfigNode& root, const absl::Status& error) {
  const absl::string_view message = error.message();
  const auto key = message.substr(0, message.find(':'));
  const auto section = key.substr(0, key.find('.'));
  // A file, there or not, may be called train.jsonl, data or checkpoint.
  const bool file =
      key != "model" && (absl::IsNotFound(error) || Exists(std::string(key)));
  if (file || std::ranges::find(kSections, section) == std::end(kSections))
    return error;
  return config_internal::PlaceError(root, error);
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
  MimoModelProvider provider(ModuleRegistry(), model, std::move(config));
  absl::Status valid = provider.Finalize(world_size);
  if (valid.ok()) {
    valid = provider.parallelism
                ->MicroBatches(train.global_batch_size, train.micro_batch_size)
                .status();
  }
  if (!valid.ok()) return config_internal::PlaceError(node, valid);
  return *provider.parallelism;
}

}  // namespace mimo
