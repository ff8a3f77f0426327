// Random configs, rank by rank: what one rank makes is what the plan says and
// what its neighbours make.
#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"
#include "models/infra/mimo_infra.h"
#include "models/infra/recording_world.h"
#include "models/parallelism/module_grid.h"
#include "models/parallelism/random_config.h"

namespace mimo {
namespace {

// The groups of `group` by member: [world], empty where a rank is in none; and
// they are disjoint.
std::vector<std::vector<int>> ByRank(const RankGroups& groups, int world) {
  std::vector<std::vector<int>> by_rank(world);
  for (int g = 0; g < groups.size(); ++g) {
    for (int rank : groups[g]) {
      EXPECT_TRUE(by_rank[rank].empty()) << rank << " is in two groups";
      by_rank[rank].assign(groups[g].begin(), groups[g].end());
    }
  }
  return by_rank;
}

// [module][row of ModuleGroups()][world]: the plan of a finalized config.
using Plan = std::vector<std::vector<std::vector<std::vector<int>>>>;

Plan MakePlan(const MimoParallelismConfig& config, int world) {
  Plan plan;
  for (const auto& [name, module] : config.module_parallelisms) {
    const RankGrid grid = *ModuleGrid(module, world);
    const RankSpan span = *config.Span(name);
    auto& groups = plan.emplace_back();
    for (const ModuleGroup& group : ModuleGroups()) {
      groups.push_back(ByRank(group.Ranks(grid), world));
      if (group.members != ModuleGroup::kAll) continue;
      for (int rank = 0; rank < world; ++rank) {  // they partition the span
        EXPECT_EQ(groups.back()[rank].empty(),
                  rank < span.begin || rank >= span.end)
            << name << " " << group.field << " " << rank;
      }
    }
  }
  return plan;
}

// What `rank` holds is what the plan has for it, in its place.
void ExpectAsPlanned(const MimoInfra& infra, const Plan& plan, int rank) {
  const auto& modules = infra.parallelism.module_parallelisms;
  for (size_t m = 0; m < modules.size(); ++m) {
    const auto& collection = infra.pg_collections.at(modules[m].first);
    for (size_t g = 0; g < ModuleGroups().size(); ++g) {
      const std::vector<int>& wanted = plan[m][g][rank];
      if (collection == nullptr) {
        ASSERT_TRUE(wanted.empty());
        continue;
      }
      const auto found = collection->Get(ModuleGroups()[g].field);
      ASSERT_EQ(found.ok(), !wanted.empty());
      if (!found.ok()) continue;
      ASSERT_EQ((*found)->members(), absl::MakeConstSpan(wanted));
      ASSERT_EQ(wanted[(*found)->rank()], rank);
    }
  }
}

// A valid config and its world, of `most` ranks at most.
MimoParallelismConfig ValidConfig(Draw& draw, int most, int& world) {
  for (;;) {
    MimoParallelismConfig config = RandomConfig(draw, world);
    if (world <= most && config.Finalize(world).ok()) return config;
  }
}

TEST(InfraProperty, AllRanksMakeThePlan) {
  Draw draw{std::mt19937(20260102)};
  for (int i = 0; i < 2000; ++i) {
    int world_size;
    const auto config = ValidConfig(draw, 24, world_size);
    SCOPED_TRACE(ToYaml(config));
    const Plan plan = MakePlan(config, world_size);
    std::vector<RecordingWorld::Split> splits;  // of rank 0, and so of all
    for (int rank = 0; rank < world_size; ++rank) {
      RecordingWorld world(rank, world_size);
      const auto infra = BuildInfra(config, world);
      ASSERT_TRUE(infra.ok()) << infra.status();
      if (rank == 0) splits = world.splits();
      ASSERT_TRUE(world.splits() == splits) << "rank " << rank;
      ExpectAsPlanned(*infra, plan, rank);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(InfraProperty, ARefusedConfigMakesNoGroup) {
  Draw draw{std::mt19937(20260103)};
  for (int refused = 0; refused < 2000;) {
    int world_size;
    const MimoParallelismConfig config = RandomConfig(draw, world_size);
    if (world_size < 1) continue;
    MimoParallelismConfig finalized = config;
    const absl::Status valid = finalized.Finalize(world_size);
    if (valid.ok()) continue;
    ++refused;
    RecordingWorld world(0, world_size);
    // The rule is the one of mimo_parallelism_property_test.
    EXPECT_EQ(BuildInfra(config, world).status(), valid);
    EXPECT_TRUE(world.splits().empty());
  }
}

TEST(InfraProperty, RealGroupsMeetTheirNeighbours) {
  Draw draw{std::mt19937(20260104)};
  for (int i = 0; i < 60; ++i) {
    int world_size;
    const auto config = ValidConfig(draw, 8, world_size);
    SCOPED_TRACE(ToYaml(config));
    const Plan plan = MakePlan(config, world_size);
    const auto results = RunRanks(world_size, [&](Communicator& world) {
      MIMO_ASSIGN_OR_RETURN(const MimoInfra infra, BuildInfra(config, world));
      ExpectAsPlanned(infra, plan, world.rank());
      for (const std::string& module : infra.participating_modules) {
        for (const ModuleGroup& group : ModuleGroups()) {
          const auto found = infra.pg_collections.at(module)->Get(group.field);
          if (!found.ok()) continue;
          const int64_t mine = world.rank();
          std::vector<int64_t> all((*found)->size());
          (*found)->AllGather(&mine, all.data(), 1, DType::kInt64, Stream());
          EXPECT_TRUE(
              std::equal(all.begin(), all.end(), (*found)->members().begin()));
        }
      }
      return absl::OkStatus();
    });
    for (const absl::Status& status : results) EXPECT_TRUE(status.ok());
  }
}

}  // namespace
}  // namespace mimo
