#include "models/infra/mimo_infra.h"

#include <utility>

#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"
#include "models/parallelism/module_grid.h"

namespace mimo {

absl::StatusOr<ModuleGrids> BuildHyperCommGrids(
    const MimoParallelismConfig& config, Communicator& world) {
  const bool shared = config.deployment_mode == DeploymentMode::kHomogeneous;
  ModuleGrids grids;
  for (const auto& [name, module] : config.module_parallelisms) {
    if (shared && !grids.empty()) {
      grids[name] = grids.begin()->second;
      continue;
    }
    MIMO_ASSIGN_OR_RETURN(RankGrid ranks, ModuleGrid(module, world.size()));
    auto grid = std::make_shared<HyperCommGrid>(
        shared ? absl::StrJoin(config.ModuleNames(), "+") : name,
        std::move(ranks), world);
    MIMO_RETURN_IF_ERROR(CreateProcessGroups(*grid));
    grids[name] = std::move(grid);
  }
  return grids;
}

absl::StatusOr<MultiModuleProcessGroupCollection> MimoInfra::OwnCollections()
    const {
  MultiModuleProcessGroupCollection::Collections own;
  for (const std::string& module : participating_modules) {
    own[module] = pg_collections.at(module);
  }
  const std::string& language = parallelism.llm_module_name;
  return MultiModuleProcessGroupCollection::Create(
      own, own.contains(language) ? std::optional(language) : std::nullopt);
}

std::optional<ColocatedCommConfig> MimoInfra::ColocatedComm() const {
  if (parallelism.deployment_mode == DeploymentMode::kHeterogeneous)
    return std::nullopt;
  return ColocatedCommConfig{module_to_grid_map, topology};
}

std::vector<BridgeConfig> MimoInfra::Bridges() const {
  const auto colocated = ColocatedComm();
  std::vector<BridgeConfig> bridges;
  for (const auto& [source, receivers] : topology) {
    for (const std::string& destination : receivers) {
      bridges.push_back(
          {.source = source,
           .destination = destination,
           .source_grid = module_to_grid_map.at(source).get(),
           .destination_grid = module_to_grid_map.at(destination).get(),
           .tensor_ndim = module_output_ndim.at(source)});
      if (colocated) bridges.back().dim_mapping = colocated->dim_mapping;
    }
  }
  return bridges;
}

absl::StatusOr<MimoInfra> BuildInfra(const MimoParallelismConfig& config,
                                     Communicator& world) {
  MimoInfra infra{.parallelism = config};
  MIMO_RETURN_IF_ERROR(infra.parallelism.Finalize(world.size()));
  infra.topology = infra.parallelism.Topology();
  infra.module_output_ndim = infra.parallelism.OutputNdims();
  MIMO_ASSIGN_OR_RETURN(infra.module_to_grid_map,
                        BuildHyperCommGrids(infra.parallelism, world));
  std::map<const HyperCommGrid*, std::shared_ptr<const ProcessGroupCollection>>
      of_grids;  // modules with one grid have one collection
  for (const std::string& name : config.ModuleNames()) {
    const HyperCommGrid& grid = *infra.module_to_grid_map.at(name);
    auto& collection = of_grids[&grid];
    if (grid.ContainsThisRank()) {
      infra.participating_modules.push_back(name);
      if (collection == nullptr) {
        collection = std::make_shared<const ProcessGroupCollection>(
            GetProcessGroups(grid));
      }
    }
    infra.pg_collections[name] = collection;
  }
  return infra;
}

}  // namespace mimo
