// Which modules each module sends its output to.
#ifndef MIMO_MODELS_PARALLELISM_TOPOLOGY_H_
#define MIMO_MODELS_PARALLELISM_TOPOLOGY_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace mimo {

// By module: those that it sends to.
using Receivers = std::map<std::string, std::vector<std::string>>;
// The same in the modules' order.
using ModuleTopology =
    std::vector<std::pair<std::string, std::vector<std::string>>>;

// `receivers` has all `modules`, each sends to modules, to each once, and none
// comes to receive from itself; else InvalidArgument, with the cycle.
absl::Status CheckTopology(absl::Span<const std::string> modules,
                           const Receivers& receivers);

}  // namespace mimo

#endif  // MIMO_MODELS_PARALLELISM_TOPOLOGY_H_
