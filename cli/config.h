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

namespace mimo {

// The file with `overrides` ("a.b=c") laid over it. An unknown section is an
// error, and so is a parallelism of more than one rank: mimo runs one so far.
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

}  // namespace mimo

#endif  // MIMO_CLI_CONFIG_H_
