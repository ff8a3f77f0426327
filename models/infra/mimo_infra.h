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
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/base/communicator.h"
#include "comm/grid/hyper_comm_grid.h"
#include "models/infra/process_groups.h"
#include "models/parallelism/mimo_parallelism.h"
#include "models/parallelism/topology.h"

namespace mimo {

// Of a homogeneous deployment, the same grid for all modules.
using ModuleGrids = std::map<std::string, std::shared_ptr<HyperCommGrid>>;

// All grids with all their groups, in the modules' order, on every rank of the
// world. `config` is finalized for it. Errors: of the communicator.
absl::StatusOr<ModuleGrids> BuildHyperCommGrids(
    const MimoParallelismConfig& config, Communicator& world);

// Which axis of a tensor is sequence, batch and hidden.
struct DimMapping {
  int s, b, h;
  bool operator==(const DimMapping&) const = default;
};

// Modules that share their ranks.
struct ColocatedCommConfig {
  const ModuleGrids& module_to_grid_map;
  const ModuleTopology& topology;
  DimMapping dim_mapping = {.s = 1, .b = 0, .h = 2};
};

// One edge of the topology between modules with ranks of their own.
struct BridgeCommConfig {
  std::string source, destination;  // modules
  const HyperCommGrid &source_grid, &destination_grid;
  int tensor_ndim;  // 2: [tokens, H]; 3: dim_mapping
  DimMapping dim_mapping = {.s = 0, .b = 1, .h = 2};

  // The axis along which replicas divide the tensor.
  int batch_axis() const { return tensor_ndim == 2 ? 0 : dim_mapping.b; }
};

struct MimoInfra {
  MimoParallelismConfig parallelism;  // finalized
  ModuleGrids module_to_grid_map;
  ModuleTopology topology;
  // An entry for each module: null for those that this rank is no part of.
  MultiModuleProcessGroupCollection::Collections pg_collections;
  std::vector<std::string> participating_modules;  // in the config's order
  std::map<std::string, int> module_output_ndim;

  // Of the participating modules. InvalidArgument on an idle rank.
  absl::StatusOr<MultiModuleProcessGroupCollection> OwnCollections() const;
  // None for a heterogeneous deployment; refers to this infra.
  std::optional<ColocatedCommConfig> ColocatedComm() const;
  // By sender and receiver in the topology's order, for a heterogeneous
  // deployment, and none else; refers to this infra.
  std::vector<BridgeCommConfig> BridgeComms() const;
};

// What is not to be the default.
struct InfraOptions {
  std::optional<ModuleTopology> topology;         // DefaultTopology
  std::map<std::string, int> module_output_ndim;  // language 3, others 2
};

// Called by all ranks of `world` alike. Errors, before any group is made: those
// of Finalize and CheckTopology, an output that is not 2- or 3-dimensional.
absl::StatusOr<MimoInfra> BuildInfra(const MimoParallelismConfig& config,
                                     Communicator& world,
                                     const InfraOptions& options = {});

}  // namespace mimo

#endif  // MIMO_MODELS_INFRA_MIMO_INFRA_H_
