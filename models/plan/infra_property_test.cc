// Random configs, rank by rank: what one rank makes is what `mimo plan` says
// and what its neighbours make.
#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/log/check.h"
#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"
#include "models/infra/mimo_infra.h"
#include "models/infra/recording_world.h"
#include "models/llava/llava.h"
#include "models/parallelism/module_grid.h"
#include "models/parallelism/random_config.h"
#include "models/plan/plan.h"
#include "models/provider/mimo_model_provider.h"

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

// Modules that any tensor and pipeline parallelism of a random config divides.
MimoModelConfig ModelOf(const MimoParallelismConfig& parallelism) {
  LlavaConfig llava;
  llava.language = {.num_layers = 4,
                    .hidden_size = 24,
                    .ffn_hidden_size = 48,
                    .num_attention_heads = 12,
                    .num_query_groups = 12,
                    .vocab_size = 48,
                    .max_sequence_length = 64};
  llava.vision = {.num_layers = 5,
                  .hidden_size = 24,
                  .ffn_hidden_size = 48,
                  .num_attention_heads = 12,
                  .image_size = 4,
                  .patch_size = 2};
  llava.special_token_ids = {{kImages, 31}};
  MimoModelConfig model = LlavaModelConfig(llava);
  const ModalitySpec spec = model.modality_submodules_spec.at(kImages);
  model.modality_submodules_spec.clear();
  model.special_token_ids.clear();
  for (const std::string& name : parallelism.ModuleNames()) {
    if (name == parallelism.llm_module_name) continue;
    model.modality_submodules_spec[name] = spec;
    model.special_token_ids[name] = name == kImages ? 31 : 30;
    model.freeze_modality_encoders[name] = name == kImages;
  }
  return model;
}

// What `mimo plan` prints of a finalized config.
MimoPlan PlanOf(const MimoParallelismConfig& config, int world) {
  TrainConfig train;  // samples that any replicas share out evenly
  train.micro_batch_size = 2 * 27720;
  train.global_batch_size =
      train.micro_batch_size *
      *config.Find(config.llm_module_name)->data_parallel_size;
  auto plan = MakePlan(ModelOf(config), BuiltinModules(), config, world, train);
  CHECK_OK(plan.status());
  return *std::move(plan);
}

// [module][row of ModuleGroups()][world]: the plan's groups.
using Members = std::vector<std::vector<std::vector<std::vector<int>>>>;

Members MembersOf(const MimoPlan& plan) {
  Members members;
  for (const ModulePlan& module : plan.modules) {
    const int begin = module.ranks.rank_offset();
    const int end = begin + module.ranks.size();
    auto& groups = members.emplace_back();
    for (const auto& [name, ranks] : module.Groups()) {
      groups.push_back(ByRank(ranks, plan.world_size));
      if (name == "embd" || name == "pos_embd") continue;
      for (int rank = 0; rank < plan.world_size; ++rank) {  // they partition it
        EXPECT_EQ(groups.back()[rank].empty(), rank < begin || rank >= end)
            << module.name << " " << name << " " << rank;
      }
    }
  }
  return members;
}

// What `rank` holds is what the plan has for it, in its place.
void ExpectAsPlanned(const MimoInfra& infra, const MimoPlan& plan,
                     const Members& members, int rank) {
  EXPECT_TRUE(infra.parallelism == plan.parallelism);
  EXPECT_EQ(infra.topology, plan.parallelism.Topology());
  const bool idle = std::any_of(
      plan.idle_ranks.begin(), plan.idle_ranks.end(),
      [&](const RankSpan& s) { return s.begin <= rank && rank < s.end; });
  EXPECT_EQ(infra.participating_modules.empty(), idle);
  ASSERT_EQ(infra.module_to_grid_map.size(), plan.modules.size());
  for (size_t m = 0; m < plan.modules.size(); ++m) {
    const ModulePlan& module = plan.modules[m];
    const RankGrid& grid = infra.module_to_grid_map.at(module.name)->ranks();
    EXPECT_EQ(grid.size(), module.ranks.size());
    EXPECT_EQ(grid.rank_offset(), module.ranks.rank_offset());
    const auto& collection = infra.pg_collections.at(module.name);
    for (size_t g = 0; g < ModuleGroups().size(); ++g) {
      const std::vector<int>& wanted = members[m][g][rank];
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
    if (collection == nullptr) continue;
    const ModuleParallelismConfig& sizes = module.parallelism;
    EXPECT_EQ(collection->tp->size(), sizes.tensor_model_parallel_size);
    EXPECT_EQ(collection->cp->size(), sizes.context_parallel_size);
    EXPECT_EQ(collection->pp->size(), sizes.pipeline_model_parallel_size);
    EXPECT_EQ(collection->dp->size(), *sizes.data_parallel_size);
    EXPECT_EQ(collection->ep->size(), sizes.expert_model_parallel_size);
    EXPECT_EQ(collection->expt_tp->size(), sizes.expert_tensor_parallel_size);
    EXPECT_EQ(collection->expt_dp->size(), *sizes.ExpertDataParallelSize());
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
    const MimoPlan plan = PlanOf(config, world_size);
    const Members members = MembersOf(plan);
    std::vector<RecordingWorld::Split> splits;  // of rank 0, and so of all
    for (int rank = 0; rank < world_size; ++rank) {
      RecordingWorld world(rank, world_size);
      const auto infra = BuildInfra(config, world);
      ASSERT_TRUE(infra.ok()) << infra.status();
      if (rank == 0) splits = world.splits();
      ASSERT_TRUE(world.splits() == splits) << "rank " << rank;
      ExpectAsPlanned(*infra, plan, members, rank);
      if (HasFatalFailure()) return;
    }
  }
}

// What a rank's own model takes before it is built is the plan's memory of the
// rank, frozen parts and shards of the optimizer's state included.
TEST(InfraProperty, ModelsTakeTheMemoryOfThePlan) {
  Draw draw{std::mt19937(20260105)};
  Allocator allocator;
  for (int i = 0; i < 100; ++i) {
    int world_size;
    const auto config = ValidConfig(draw, 24, world_size);
    SCOPED_TRACE(ToYaml(config));
    std::vector<RankMemory> wanted = PlanOf(config, world_size).MemoryOfRanks();
    for (int rank = 0; rank < world_size; ++rank) {
      RecordingWorld world(rank, world_size);
      MimoModelProvider provider(BuiltinModules(), ModelOf(config), config);
      const auto provided = provider.ProvideDistributedModel(
          &world, allocator,
          {.wrap_with_ddp = false,
           .dtype = DType::kFloat32,
           .init_model_with_meta_device = true});
      ASSERT_TRUE(provided.ok()) << provided.status();
      wanted[rank].activations = 0;
      EXPECT_EQ(
          StateMemory(*provided->model, DType::kFloat32, Device::kCuda).Total(),
          wanted[rank].Total())
          << rank;
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
    const MimoPlan plan = PlanOf(config, world_size);
    const Members members = MembersOf(plan);
    const auto results = RunRanks(world_size, [&](Communicator& world) {
      MIMO_ASSIGN_OR_RETURN(const MimoInfra infra, BuildInfra(config, world));
      ExpectAsPlanned(infra, plan, members, world.rank());
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
