// A bridge between the grids of two modules: which of their ranks it joins, and
// which of their groups it needs.
#ifndef MIMO_COMM_BRIDGE_GRID_BRIDGE_H_
#define MIMO_COMM_BRIDGE_GRID_BRIDGE_H_

#include "absl/status/statusor.h"
#include "comm/base/communicator.h"
#include "comm/bridge/bridge.h"
#include "comm/bridge/bridge_plan.h"
#include "comm/grid/hyper_comm_grid.h"
#include "comm/grid/rank_grid.h"

namespace mimo {

// The module as a source: its last pipeline stage. As a destination: its first.
// Dimensions: tp, cp, dp, pp and gtp_remat, of which each rank has data of its
// own and which so counts as a faster part of dp; any may be absent, and other
// names are an error.
absl::StatusOr<BridgeSide> SourceSide(const RankGrid& grid);
absl::StatusOr<BridgeSide> DestinationSide(const RankGrid& grid);

// The groups of this rank for Bridge::Create on these sides. `bridge` is a
// communicator of BridgeRanks. Errors: the grids have not yet made their groups
// of tp, and the destination that of cp.
absl::StatusOr<BridgeGroups> GridBridgeGroups(const HyperCommGrid& source,
                                              const HyperCommGrid& destination,
                                              Communicator* bridge);

}  // namespace mimo

#endif  // MIMO_COMM_BRIDGE_GRID_BRIDGE_H_
