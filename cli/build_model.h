// A model that this machine can hold.
#ifndef MIMO_CLI_BUILD_MODEL_H_
#define MIMO_CLI_BUILD_MODEL_H_

#include <memory>

#include "absl/status/statusor.h"
#include "models/mimo_model/mimo_model.h"

namespace mimo {

// MimoModel::Build, after an error in place of a model whose weights, gradients
// and optimizer state would not fit into the device's memory.
absl::StatusOr<std::unique_ptr<MimoModel>> BuildModel(
    const MimoModelConfig& config, const ModuleRegistry& registry,
    BuildContext build);

}  // namespace mimo

#endif  // MIMO_CLI_BUILD_MODEL_H_
