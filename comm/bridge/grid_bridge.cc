#include "comm/bridge/grid_bridge.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

bool Has(const RankGrid& grid, const std::string& dim) {
  return std::count(grid.dim_names().begin(), grid.dim_names().end(), dim) > 0;
}

absl::StatusOr<BridgeSide> Side(const RankGrid& grid, bool last) {
  const std::vector<std::string> slow_to_fast = {"dp", "gtp_remat", "cp", "tp"};
  std::vector<std::string> dims;
  for (const std::string& dim : slow_to_fast)
    if (Has(grid, dim)) dims.push_back(dim);
  if (dims.size() + Has(grid, "pp") != grid.dim_names().size())
    return absl::InvalidArgumentError(
        absl::StrCat("a bridge joins dims tp, cp, dp, pp and gtp_remat, found ",
                     absl::StrJoin(grid.dim_names(), ", ")));
  if (dims.empty())
    return absl::InvalidArgumentError("a bridge joins grids with more than pp");
  // A group of all dims but pp is a stage; stages are listed in order.
  MIMO_ASSIGN_OR_RETURN(const RankGroups stages, grid.RawGroups(dims));
  const absl::Span<const int> ranks = stages[last ? stages.size() - 1 : 0];
  BridgeSide side{.ranks = {ranks.begin(), ranks.end()}};
  for (const std::string& dim : dims) {
    MIMO_ASSIGN_OR_RETURN(const int size, grid.GroupSize({dim}));
    (dim == "tp" ? side.tp : dim == "cp" ? side.cp : side.dp) *= size;
  }
  return side;
}

// This rank's group of `dim`, or null where a bridge does without.
absl::StatusOr<Communicator*> GroupOn(const BridgeSide& side,
                                      const HyperCommGrid& grid, int rank,
                                      const std::string& dim) {
  if (!Has(grid.ranks(), dim)) return nullptr;
  MIMO_ASSIGN_OR_RETURN(Communicator * group, grid.Get({dim}));
  const bool here = std::count(side.ranks.begin(), side.ranks.end(), rank) > 0;
  return here && group->size() > 1 ? group : nullptr;
}

}  // namespace

absl::StatusOr<BridgeSide> SourceSide(const RankGrid& grid) {
  return Side(grid, /*last=*/true);
}

absl::StatusOr<BridgeSide> DestinationSide(const RankGrid& grid) {
  return Side(grid, /*last=*/false);
}

absl::StatusOr<BridgeGroups> GridBridgeGroups(const HyperCommGrid& source,
                                              const HyperCommGrid& destination,
                                              Communicator* bridge) {
  BridgeGroups groups{.bridge = bridge};
  if (bridge == nullptr) return groups;  // this rank is on neither side
  const int rank = bridge->members()[bridge->rank()];
  MIMO_ASSIGN_OR_RETURN(const BridgeSide from, SourceSide(source.ranks()));
  MIMO_ASSIGN_OR_RETURN(const BridgeSide to,
                        DestinationSide(destination.ranks()));
  MIMO_ASSIGN_OR_RETURN(groups.source_tp, GroupOn(from, source, rank, "tp"));
  MIMO_ASSIGN_OR_RETURN(groups.destination_tp,
                        GroupOn(to, destination, rank, "tp"));
  MIMO_ASSIGN_OR_RETURN(groups.destination_cp,
                        GroupOn(to, destination, rank, "cp"));
  return groups;
}

}  // namespace mimo
