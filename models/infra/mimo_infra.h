// MimoInfra: who is where. The grids and groups of all modules of a model, as
// one rank sees them, and how the modules hang together. No model yet.
//
// Groups are made once, by BuildInfra, and end with the infra; who asks again
// is to be given the same infra. All ranks build, and end, theirs together, and
// the world outlives it.
// Source: Megatron-Bridge, megatron_mimo_provider.py and _builder.py.
#ifndef MIMO_MODELS_INFRA_MIMO_INFRA_H_
#define MIMO_MODELS_INFRA_MIMO_INFRA_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/base/communicator.h"
#include "models/infra/module_comm.h"
#include "models/infra/process_groups.h"
#include "models/parallelism/mimo_parallelism.h"
#include "models/parallelism/topology.h"

namespace mimo {

// All grids with all their groups, in the modules' order, on every rank of the
// world. `config` is finalized for it. Errors: of the communicator.
absl::StatusOr<ModuleGrids> BuildHyperCommGrids(
    const MimoParallelismConfig& config, Communicator& world);

struct MimoInfra {
  MimoParallelismConfig parallelism;  // finalized
  ModuleGrids module_to_grid_map;
  ModuleTopology topology;
  // An entry for each module: null for those that this rank is no part of.
  MultiModuleProcessGroupCollection::Collections pg_collections;
  std::vector<std::string> participating_modules;  // in the config's order
  std::map<std::string, int> module_output_ndim;

  // None for a heterogeneous deployment.
  std::optional<ColocatedCommConfig> ColocatedComm() const;
  // Of all edges, in the topology's order; as ColocatedComm() says, if it does.
  std::vector<BridgeConfig> Bridges() const;
  // Of the participating modules. InvalidArgument on an idle rank.
  absl::StatusOr<MultiModuleProcessGroupCollection> OwnCollections() const;
};

// Called by all ranks of `world` alike. Errors, before any group is made: those
// of Finalize.
absl::StatusOr<MimoInfra> BuildInfra(const MimoParallelismConfig& config,
                                     Communicator& world);

}  // namespace mimo

#endif  // MIMO_MODELS_INFRA_MIMO_INFRA_H_
