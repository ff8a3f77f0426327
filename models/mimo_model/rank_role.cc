#include "models/mimo_model/rank_role.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace mimo {

bool RankRole::HasLanguageModule() const {
  return modules.contains(language_module_name);
}

bool RankRole::HasModalityModules() const {
  return modules.size() > HasLanguageModule();
}

std::vector<std::string> RankRole::ModalityModuleNames() const {
  std::vector<std::string> names;
  for (const auto& [name, stage] : modules)
    if (name != language_module_name) names.push_back(name);
  return names;
}

bool RankRole::IsFirstStage(absl::string_view module) const {
  const auto found = modules.find(std::string(module));
  return found != modules.end() && found->second.is_first_stage;
}

bool RankRole::IsLastStage(absl::string_view module) const {
  const auto found = modules.find(std::string(module));
  return found != modules.end() && found->second.is_last_stage;
}

absl::StatusOr<RankRole> RankRoleOf(
    absl::Span<const std::pair<std::string, const RankGrid*>> grids,
    std::string language_module_name, int rank) {
  RankRole role{.language_module_name = std::move(language_module_name)};
  for (const auto& [name, grid] : grids) {
    const RankGrid& first = *grids.front().second;
    if (grid->rank_offset() != first.rank_offset() ||
        grid->size() != first.size()) {
      role.layout = ModuleLayout::kNonColocated;
    }
    if (!grid->Contains(rank)) continue;
    StageInfo& stage = role.modules[name];
    const auto& dims = grid->dim_names();
    const auto pp = std::find(dims.begin(), dims.end(), "pp");
    if (pp == dims.end()) continue;
    MIMO_ASSIGN_OR_RETURN(const std::vector<int> coordinates,
                          grid->Coordinates(rank));
    MIMO_ASSIGN_OR_RETURN(const int stages, grid->GroupSize({"pp"}));
    const int at = coordinates[pp - dims.begin()];
    stage = {at == 0, at == stages - 1};
  }
  if (role.modules.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Rank ", rank, " is not in any module grid"));
  }
  return role;
}

}  // namespace mimo
