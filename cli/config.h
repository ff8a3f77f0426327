// A run's configuration: the file, its overrides, and the sections that every
// command checks.
#ifndef MIMO_CLI_CONFIG_H_
#define MIMO_CLI_CONFIG_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "mimo/config/config_node.h"
#include "mimo/data/config.h"
#include "mimo/optim/optimizer_config.h"
#include "mimo/train/train_config.h"
#include "models/parallelism/mimo_parallelism.h"
#include "models/spec/module_spec.h"

namespace mimo {

// The file with `overrides` ("a.b=c") laid over it. An unknown section is an
// error.
absl::StatusOr<ConfigNode> ReadRunConfig(
    const std::string& path, const std::vector<std::string>& overrides);

// The sections beside the model's and the parallelism's.
struct RunSections {
  DataConfig data;
  TrainConfig train;
  OptimizerConfig optimizer;
  CheckpointConfig checkpoint;
  LoggingConfig logging;
};
absl::StatusOr<RunSections> ReadSections(const ConfigNode& root);

// `error` with the config's file before it if it begins with a key of it
// ("train.seed: 7, wanted 1234"); one that names another file as it is.
absl::Status PlaceMistake(const ConfigNode& root, const absl::Status& error);

// The section of parallelism of a run of `model`, finalized. Where it names no
// modules, all are alike and replicated over the world. Errors too: other
// modules than the model's, batches that do not come out whole.
absl::StatusOr<MimoParallelismConfig> ReadRunParallelism(
    const ConfigNode& root, const MimoModelConfig& model,
    const TrainConfig& train, int world_size);

}  // namespace mimo

#endif  // MIMO_CLI_CONFIG_H_
