#include "models/mimo_model/model_placement.h"

#include <utility>
#include <vector>

#include "kernels/base/status_macros.h"
#include "models/infra/data_share.h"

namespace mimo {
namespace {

// A layer does without a group of one.
Communicator* Several(Communicator* group) {
  return group->size() > 1 ? group : nullptr;
}

}  // namespace

ParallelGroups ModelPlacement::GroupsOf(const std::string& module) const {
  const auto found = parallel.find(module);
  return found == parallel.end() ? ParallelGroups() : found->second;
}

DataSlice ModelPlacement::SliceOf(const std::string& module) const {
  return infra == nullptr || !role.modules.contains(module)
             ? DataSlice()
             : SliceOfModule(*infra, module);
}

absl::StatusOr<ModelPlacement> PlaceModel(
    std::shared_ptr<const MimoInfra> infra, int rank) {
  const MimoParallelismConfig& parallelism = infra->parallelism;
  ModelPlacement placement{.infra = infra};
  RankRole& role = placement.role;
  if (infra->participating_modules.empty()) {
    role.language_module_name = parallelism.llm_module_name;
  } else {
    std::vector<std::pair<std::string, const RankGrid*>> grids;
    for (const auto& [name, grid] : infra->module_to_grid_map)
      grids.emplace_back(name, &grid->ranks());
    MIMO_ASSIGN_OR_RETURN(role,
                          RankRoleOf(grids, parallelism.llm_module_name, rank));
  }
  // By the mode, though the spans of a heterogeneous one may happen to agree.
  role.layout = parallelism.deployment_mode == DeploymentMode::kHeterogeneous
                    ? ModuleLayout::kNonColocated
                    : ModuleLayout::kColocated;
  for (const std::string& name : infra->participating_modules) {
    const ProcessGroupCollection& groups = *infra->pg_collections.at(name);
    placement.parallel[name] = {
        .tp = Several(groups.tp),
        // An encoder's have items of their own, as its replicas do.
        .cp =
            name == parallelism.llm_module_name ? Several(groups.cp) : nullptr,
        .pp = Several(groups.pp),
        .sequence_parallel = parallelism.Find(name)->sequence_parallel};
  }
  return placement;
}

}  // namespace mimo
