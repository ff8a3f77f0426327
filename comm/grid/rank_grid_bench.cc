// All groups of a module on 131,072 ranks: TP8 CP4 DP256 PP16 with experts ETP1
// EP32 EDP256 PP16. Goal: 200 ms.
#include <string>
#include <vector>

#include "absl/log/check.h"
#include "benchmark/benchmark.h"
#include "comm/grid/rank_grid.h"

namespace mimo {
namespace {

RankGrid MakeGrid() {
  RankGrid grid =
      *RankGrid::Create({8, 4, 256, 16}, {"tp", "cp", "dp", "pp"}, 0, 131072);
  CHECK_OK(grid.RegisterView("expert", {1, 32, 256, 16},
                             {"expt_tp", "ep", "expt_dp", "pp"}, {"pp"}));
  return grid;
}

// The groups a module's process groups are made of, embeddings included.
void ModuleGroups(benchmark::State& state) {
  for (auto _ : state) {
    const RankGrid grid = MakeGrid();
    for (const std::vector<std::string>& dims :
         std::vector<std::vector<std::string>>{{"tp"},
                                               {"cp"},
                                               {"pp"},
                                               {"dp"},
                                               {"dp", "cp"},
                                               {"tp", "cp"},
                                               {"tp", "pp"},
                                               {"tp", "dp", "cp"},
                                               {"tp", "cp", "dp", "pp"}})
      benchmark::DoNotOptimize(grid.Groups(dims));
    for (const std::vector<std::string>& dims :
         std::vector<std::vector<std::string>>{{"ep"},
                                               {"expt_tp"},
                                               {"expt_dp"},
                                               {"expt_tp", "ep"},
                                               {"expt_tp", "ep", "pp"}})
      benchmark::DoNotOptimize(grid.Groups(dims, "expert"));
    const RankGroups lines = *grid.Groups({"pp"});
    benchmark::DoNotOptimize(FirstOfEach(lines));
    benchmark::DoNotOptimize(EndsOfEach(lines));
  }
}

// What one rank needs to know of its own groups.
void GroupOfOneRank(benchmark::State& state) {
  const RankGrid grid = MakeGrid();
  for (auto _ : state)
    benchmark::DoNotOptimize(grid.GroupOf(100000, {"dp", "cp"}));
}

BENCHMARK(ModuleGroups)->Unit(benchmark::kMillisecond);
BENCHMARK(GroupOfOneRank)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace mimo
