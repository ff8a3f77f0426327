#include "models/mimo_model/model_placement.h"

#include <utility>
#include <vector>

#include "comm/bridge/grid_bridge.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

absl::Status AddBridges(const MimoInfra& infra, ModelPlacement& placement) {
  const std::string& language = infra.parallelism.llm_module_name;
  const HyperCommGrid& to = *infra.module_to_grid_map.at(language);
  MIMO_ASSIGN_OR_RETURN(const BridgeSide destination,
                        DestinationSide(to.ranks()));
  for (const std::string& modality : placement.role.ModalityModuleNames()) {
    const HyperCommGrid& from = *infra.module_to_grid_map.at(modality);
    MIMO_ASSIGN_OR_RETURN(const BridgeSide source, SourceSide(from.ranks()));
    if (source == destination && source.cp == 1) continue;
    // All ranks of both modules.
    Communicator* all = infra.pg_collections.at(modality)->intra_dist_opt;
    MIMO_ASSIGN_OR_RETURN(const BridgeGroups groups,
                          GridBridgeGroups(from, to, all));
    MIMO_ASSIGN_OR_RETURN(
        placement.bridges[modality],
        Bridge::Create(source, destination,
                       DefaultBridgeRouting(source, destination), groups));
  }
  return absl::OkStatus();
}

}  // namespace

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
    // An encoder's cp ranks have items of their own, as its replicas do.
    Communicator* cp =
        name == parallelism.llm_module_name ? groups.cp : nullptr;
    placement.parallel[name] = {.tp = groups.tp, .cp = cp, .pp = groups.pp};
  }
  if (parallelism.deployment_mode == DeploymentMode::kColocated) {
    MIMO_RETURN_IF_ERROR(AddBridges(*infra, placement));
  }
  return placement;
}

absl::StatusOr<BridgePayload> RowsPayload(const BridgeSide& source,
                                          const BridgeSide& destination,
                                          absl::Span<const int64_t> sample_rows,
                                          int64_t hidden, DType dtype) {
  BridgePayload payload{.inner = hidden, .dtype = dtype};
  MIMO_ASSIGN_OR_RETURN(payload.source_rows,
                        RowsOfLanes(sample_rows, source.dp * source.cp));
  MIMO_ASSIGN_OR_RETURN(payload.destination_rows,
                        RowsOfLanes(sample_rows, destination.dp));
  return payload;
}

}  // namespace mimo
