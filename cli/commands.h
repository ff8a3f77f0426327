// The subcommands. Each takes its words and does what docs/cli.md says.
#ifndef MIMO_CLI_COMMANDS_H_
#define MIMO_CLI_COMMANDS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "models/spec/module_spec.h"

namespace mimo {

using Words = std::vector<std::string>;

absl::Status RunTrain(const Words& words, const ModuleRegistry& registry);
// The mistakes in RunTrain's flags that each of a job's processes would tell.
absl::Status CheckTrainFlags(const Words& words, int world_size);
absl::Status RunLaunch(const Words& words, const ModuleRegistry& registry);
absl::Status RunEvaluate(const Words& words, const ModuleRegistry& registry);
absl::Status RunGenerate(const Words& words, const ModuleRegistry& registry);
absl::Status RunForward(const Words& words, const ModuleRegistry& registry);
absl::Status RunConvert(const Words& words, const ModuleRegistry& registry);
absl::Status RunPlan(const Words& words, const ModuleRegistry& registry);

}  // namespace mimo

#endif  // MIMO_CLI_COMMANDS_H_
