// ModuleTopology: which modules each module sends its output to.
#ifndef MIMO_MODELS_PARALLELISM_TOPOLOGY_H_
#define MIMO_MODELS_PARALLELISM_TOPOLOGY_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "models/parallelism/mimo_parallelism.h"

namespace mimo {

// (module, its receivers), in the modules' order.
using ModuleTopology =
    std::vector<std::pair<std::string, std::vector<std::string>>>;

// Every other module sends to the language module, which sends to none.
ModuleTopology DefaultTopology(const MimoParallelismConfig& config);

// Each module stands once, receivers are modules and stand once, and no module
// comes to receive from itself; else InvalidArgument, with the cycle.
absl::Status CheckTopology(const MimoParallelismConfig& config,
                           const ModuleTopology& topology);

}  // namespace mimo

#endif  // MIMO_MODELS_PARALLELISM_TOPOLOGY_H_
