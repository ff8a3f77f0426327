// A model that this machine can hold.
#ifndef MIMO_CLI_BUILD_MODEL_H_
#define MIMO_CLI_BUILD_MODEL_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/base/device.h"
#include "mimo/optim/optimizer_config.h"
#include "models/mimo_model/mimo_model.h"

namespace mimo {

// An error if weights, gradients and optimizer state of a model like `counted`
// would not fit into the device's memory.
absl::Status CheckFits(const MimoModel& counted,
                       const OptimizerConfig& optimizer, Device device);

// MimoModel::Build of a model that fits.
absl::StatusOr<std::unique_ptr<MimoModel>> BuildModel(
    const MimoModelConfig& config, const ModuleRegistry& registry,
    BuildContext build, const OptimizerConfig& optimizer = {});

}  // namespace mimo

#endif  // MIMO_CLI_BUILD_MODEL_H_
