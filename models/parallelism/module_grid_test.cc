// The worked tables of a module's groups, by the fields they are known under.
#include "models/parallelism/module_grid.h"

#include <map>
#include <string>
#include <vector>

#include "absl/log/check.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;
using Groups = std::map<std::string, std::string>;  // field -> its groups

RankGrid Grid(const ModuleParallelismConfig& module) {
  const auto grid =
      ModuleGrid(module, module.rank_offset + *module.TotalRanks());
  CHECK_OK(grid.status());
  return *grid;
}

Groups AllGroups(const ModuleParallelismConfig& module) {
  Groups groups;
  const RankGrid grid = Grid(module);
  for (const ModuleGroup& group : ModuleGroups()) {
    groups[std::string(group.field)] = group.Ranks(grid).ToString();
  }
  return groups;
}

void ExpectGroups(const ModuleParallelismConfig& module, const Groups& wanted) {
  const Groups found = AllGroups(module);
  for (const auto& [field, ranks] : wanted) {
    EXPECT_EQ(found.at(field), ranks) << field;
  }
}

TEST(ModuleGrid, FieldsAndNamesInTheOrderOfTheirMaking) {
  const RankGrid grid = Grid({.data_parallel_size = 1});
  std::vector<std::string> found;
  for (const ModuleGroup& group : ModuleGroups()) {
    found.push_back(std::string(group.field) + " " + group.Name(grid));
  }
  EXPECT_EQ(found,
            (std::vector<std::string>{
                "tp tp", "cp cp", "pp pp", "dp dp", "dp_cp dp-cp",
                "tp_cp cp-tp", "mp pp-tp", "tp_dp dp-tp", "tp_dp_cp dp-cp-tp",
                "intra_dist_opt pp-dp-cp-tp", "ep expert.ep",
                "expt_tp expert.expt_tp", "expt_dp expert.expt_dp",
                "tp_ep expert.ep-expt_tp", "tp_ep_pp expert.pp-ep-expt_tp",
                "pos_embd pos_embd", "embd embd"}));
}

TEST(ModuleGrid, LayoutAtAnOffset) {
  ExpectGroups({.tensor_model_parallel_size = 2,
                .pipeline_model_parallel_size = 2,
                .data_parallel_size = 2,
                .rank_offset = 4},
               {{"tp", "[4,5] [6,7] [8,9] [10,11]"},
                {"cp", "[4] [5] [6] [7] [8] [9] [10] [11]"},
                {"pp", "[4,8] [5,9] [6,10] [7,11]"},
                {"dp", "[4,6] [5,7] [8,10] [9,11]"},
                {"dp_cp", "[4,6] [5,7] [8,10] [9,11]"},
                {"tp_cp", "[4,5] [6,7] [8,9] [10,11]"},
                {"mp", "[4,5,8,9] [6,7,10,11]"},
                {"tp_dp_cp", "[4,5,6,7] [8,9,10,11]"},
                {"intra_dist_opt", "[4,5,6,7,8,9,10,11]"},
                {"pos_embd", "[4] [5] [6] [7]"},
                {"embd", "[4,8] [5,9] [6,10] [7,11]"}});
}

TEST(ModuleGrid, LayoutOfSixteen) {
  ExpectGroups({.tensor_model_parallel_size = 2,
                .pipeline_model_parallel_size = 2,
                .context_parallel_size = 2,
                .data_parallel_size = 2},
               {{"cp", "[0,2] [1,3] [4,6] [5,7] [8,10] [9,11] [12,14] [13,15]"},
                {"dp", "[0,4] [1,5] [2,6] [3,7] [8,12] [9,13] [10,14] [11,15]"},
                {"pp", "[0,8] [1,9] [2,10] [3,11] [4,12] [5,13] [6,14] [7,15]"},
                {"dp_cp", "[0,2,4,6] [1,3,5,7] [8,10,12,14] [9,11,13,15]"},
                {"tp_cp", "[0,1,2,3] [4,5,6,7] [8,9,10,11] [12,13,14,15]"},
                {"tp_dp", "[0,1,4,5] [2,3,6,7] [8,9,12,13] [10,11,14,15]"},
                {"mp", "[0,1,8,9] [2,3,10,11] [4,5,12,13] [6,7,14,15]"},
                {"tp_dp_cp", "[0,1,2,3,4,5,6,7] [8,9,10,11,12,13,14,15]"}});
}

TEST(ModuleGrid, Experts) {
  ExpectGroups({.tensor_model_parallel_size = 4,
                .pipeline_model_parallel_size = 2,
                .expert_model_parallel_size = 2,
                .data_parallel_size = 1},
               {{"ep", "[0,1] [2,3] [4,5] [6,7]"},
                {"expt_dp", "[0,2] [1,3] [4,6] [5,7]"},
                {"tp_ep", "[0,1] [2,3] [4,5] [6,7]"},
                {"tp_ep_pp", "[0,1,4,5] [2,3,6,7]"},
                {"pp", "[0,4] [1,5] [2,6] [3,7]"}});
  // Megatron-Core's: 4 ranks of TP2, and of TP2 EP2 ETP2.
  ModuleParallelismConfig m{.tensor_model_parallel_size = 2,
                            .data_parallel_size = 2};
  ExpectGroups(m, {{"expt_dp", "[0,1,2,3]"}, {"ep", "[0] [1] [2] [3]"}});
  m.expert_model_parallel_size = m.expert_tensor_parallel_size = 2;
  ExpectGroups(m, {{"expt_dp", "[0] [1] [2] [3]"},
                   {"expt_tp", "[0,1] [2,3]"},
                   {"ep", "[0,2] [1,3]"},
                   {"tp_ep", "[0,1,2,3]"}});
}

TEST(ModuleGrid, EmbeddingsAreOnTheFirstAndLastStage) {
  ExpectGroups({.pipeline_model_parallel_size = 3, .data_parallel_size = 2},
               {{"pos_embd", "[0] [1]"}, {"embd", "[0,4] [1,5]"}});
  ExpectGroups({.data_parallel_size = 2},
               {{"pos_embd", "[0] [1]"}, {"embd", "[0] [1]"}});
}

TEST(ModuleGrid, Refuses) {
  EXPECT_THAT(ModuleGrid({.data_parallel_size = 4, .rank_offset = 1}, 4)
                  .status()
                  .message(),
              HasSubstr("is over sized for world size 4 and rank_offset 1"));
  EXPECT_THAT(ModuleGrid({}, 4).status().message(),
              HasSubstr("data_parallel_size must be set"));
}

}  // namespace
}  // namespace mimo
