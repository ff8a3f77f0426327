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

absl::StatusOr<MimoInfra> BuildInfra(const MimoParallelismConfig& config,
                                     Communicator& world) {
  MimoInfra infra{.parallelism = config};
  MIMO_RETURN_IF_ERROR(infra.parallelism.Finalize(world.size()));
  infra.topology = infra.parallelism.Topology();
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
