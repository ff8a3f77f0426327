// The ranks of one module, and which of them form its groups.
//
//   base    tp, cp, dp, pp              from fast to slow
//   expert  expt_tp, ep, expt_dp, pp    the same ranks anew; pp is shared
//
// ModuleGroups() is the one table of a module's groups: communicators are made
// of it (models/infra) and `mimo plan` prints it.
// Source: Megatron-Bridge, megatron_mimo_builder.py; tp_dp is Megatron-Core's.
#ifndef MIMO_MODELS_PARALLELISM_MODULE_GRID_H_
#define MIMO_MODELS_PARALLELISM_MODULE_GRID_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "comm/grid/rank_grid.h"
#include "models/parallelism/module_parallelism.h"

namespace mimo {

inline constexpr char kExpertView[] = "expert";

// Of a module whose DP is set. Errors: a span past the world.
absl::StatusOr<RankGrid> ModuleGrid(const ModuleParallelismConfig& module,
                                    int world_size);

struct ModuleGroup {
  absl::string_view field;  // of ProcessGroupCollection
  std::vector<std::string> dims;
  absl::string_view view = RankGrid::kBase;
  // Which ranks of each group of `dims`.
  enum Members { kAll, kFirst, kEnds } members = kAll;

  // "dp-cp", "expert.ep"; of kFirst and kEnds the field's own name.
  std::string Name(const RankGrid& grid) const;
  RankGroups Ranks(const RankGrid& grid) const;
};

// In the order in which they are made.
const std::vector<ModuleGroup>& ModuleGroups();

}  // namespace mimo

#endif  // MIMO_MODELS_PARALLELISM_MODULE_GRID_H_
