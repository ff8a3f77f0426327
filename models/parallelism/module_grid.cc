#include "models/parallelism/module_grid.h"

#include <cstdint>

#include "absl/log/log.h"
#include "kernels/base/status_macros.h"

namespace mimo {

absl::StatusOr<RankGrid> ModuleGrid(const ModuleParallelismConfig& module,
                                    int world_size) {
  MIMO_ASSIGN_OR_RETURN(const int64_t expert_dp,
                        module.ExpertDataParallelSize());
  MIMO_ASSIGN_OR_RETURN(
      RankGrid grid,
      RankGrid::Create(
          {module.tensor_model_parallel_size, module.context_parallel_size,
           *module.data_parallel_size, module.pipeline_model_parallel_size},
          {"tp", "cp", "dp", "pp"}, module.rank_offset, world_size));
  MIMO_RETURN_IF_ERROR(grid.RegisterView(
      kExpertView,
      {module.expert_tensor_parallel_size, module.expert_model_parallel_size,
       static_cast<int>(expert_dp), module.pipeline_model_parallel_size},
      {"expt_tp", "ep", "expt_dp", "pp"}, {"pp"}));
  return grid;
}

std::string ModuleGroup::Name(const RankGrid& grid) const {
  return members == kAll ? *grid.Key(dims, view) : std::string(field);
}

RankGroups ModuleGroup::Ranks(const RankGrid& grid) const {
  RankGroups groups = *grid.Groups(dims, view);
  switch (members) {
    case kAll:
      return groups;
    case kFirst:
      return FirstOfEach(groups);
    case kEnds:
      return EndsOfEach(groups);
  }
  LOG(FATAL) << "members " << members;
}

const std::vector<ModuleGroup>& ModuleGroups() {
  static const auto& groups = *new std::vector<ModuleGroup>{
      {"tp", {"tp"}},
      {"cp", {"cp"}},
      {"pp", {"pp"}},
      {"dp", {"dp"}},
      {"dp_cp", {"dp", "cp"}},
      {"tp_cp", {"tp", "cp"}},
      {"mp", {"tp", "pp"}},
      {"tp_dp", {"tp", "dp"}},
      {"tp_dp_cp", {"tp", "dp", "cp"}},
      {"intra_dist_opt", {"tp", "cp", "dp", "pp"}},
      {"ep", {"ep"}, kExpertView},
      {"expt_tp", {"expt_tp"}, kExpertView},
      {"expt_dp", {"expt_dp"}, kExpertView},
      {"tp_ep", {"expt_tp", "ep"}, kExpertView},
      {"tp_ep_pp", {"expt_tp", "ep", "pp"}, kExpertView},
      {"pos_embd", {"pp"}, RankGrid::kBase, ModuleGroup::kFirst},
      {"embd", {"pp"}, RankGrid::kBase, ModuleGroup::kEnds},
  };
  return groups;
}

}  // namespace mimo
