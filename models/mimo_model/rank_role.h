// RankRole: which modules of a model a rank has, and of which pipeline stages.
// Source: Megatron-Core, models/mimo/config/role.py. There a rank of a
// non-colocated layout runs either encoders or the language model; here spans
// may overlap in part, and a rank runs all modules that it is in.
#ifndef MIMO_MODELS_MIMO_MODEL_RANK_ROLE_H_
#define MIMO_MODELS_MIMO_MODEL_RANK_ROLE_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "comm/grid/rank_grid.h"

namespace mimo {

enum class ModuleLayout {
  kColocated,     // every module has the same ranks
  kNonColocated,  // any other spans
};

// A rank's place in the pipeline of one module.
struct StageInfo {
  bool is_first_stage = true, is_last_stage = true;
  bool operator==(const StageInfo&) const = default;
};

struct RankRole {
  ModuleLayout layout = ModuleLayout::kColocated;
  std::string language_module_name = "language";
  std::map<std::string, StageInfo> modules;  // of this rank; none: it is idle

  bool HasLanguageModule() const;
  bool HasModalityModules() const;
  std::vector<std::string> ModalityModuleNames() const;
  // False too for a module that is not on this rank.
  bool IsFirstStage(absl::string_view module) const;
  bool IsLastStage(absl::string_view module) const;
};

// The role of `rank` where module `name` has the ranks of `grid`; a grid
// without a dimension "pp" is one stage. Error: the rank is in no grid.
absl::StatusOr<RankRole> RankRoleOf(
    absl::Span<const std::pair<std::string, const RankGrid*>> grids,
    std::string language_module_name, int rank);

}  // namespace mimo

#endif  // MIMO_MODELS_MIMO_MODEL_RANK_ROLE_H_
