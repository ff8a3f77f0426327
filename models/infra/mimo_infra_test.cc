// The infra of each deployment mode, on threads with real groups where groups
// matter, and on a recorded world where the calls do.
#include "models/infra/mimo_infra.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/log/check.h"
#include "comm/inproc/inproc.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"
#include "models/infra/recording_world.h"
#include "models/parallelism/module_grid.h"

namespace mimo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Module = ModuleParallelismConfig;
using Modules = std::vector<std::pair<std::string, Module>>;

MimoParallelismConfig Heterogeneous(Modules modules) {
  return {.deployment_mode = DeploymentMode::kHeterogeneous,
          .module_parallelisms = std::move(modules)};
}

// Megatron-Core's: an encoder of TP2 DP2, a language model of TP2 PP2 behind.
MimoParallelismConfig EncoderAndPipeline() {
  return Heterogeneous(
      {{"images", {.tensor_model_parallel_size = 2, .data_parallel_size = 2}},
       {"language",
        {.tensor_model_parallel_size = 2,
         .pipeline_model_parallel_size = 2,
         .data_parallel_size = 1,
         .rank_offset = 4}}});
}

void RunOnAll(int size,
              absl::FunctionRef<absl::Status(Communicator& world)> body) {
  const auto results = RunRanks(size, body);
  for (size_t rank = 0; rank < results.size(); ++rank) {
    EXPECT_TRUE(results[rank].ok()) << "rank " << rank << ": " << results[rank];
  }
}

std::vector<int> Members(const Communicator* group) {
  return {group->members().begin(), group->members().end()};
}

// Every group that the table says is there, is, and sums over its ranks.
void ExpectGroupsWork(const ProcessGroupCollection& collection,
                      const HyperCommGrid& grid, int rank) {
  for (const ModuleGroup& group : ModuleGroups()) {
    SCOPED_TRACE(group.field);
    std::vector<int> wanted;  // this rank's group
    const RankGroups all = group.Ranks(grid.ranks());
    for (int g = 0; g < all.size(); ++g) {
      if (std::count(all[g].begin(), all[g].end(), rank) > 0) {
        wanted.assign(all[g].begin(), all[g].end());
      }
    }
    const auto found = collection.Get(group.field);
    if (wanted.empty()) {
      EXPECT_THAT(found.status().message(),
                  HasSubstr("this rank has no group"));
      continue;
    }
    ASSERT_TRUE(found.ok()) << found.status();
    ASSERT_EQ(Members(*found), wanted);
    int64_t sum = rank, expected = 0;
    for (int member : wanted) expected += member;
    (*found)->AllReduce(&sum, &sum, 1, DType::kInt64, ReduceOp::kSum, Stream());
    EXPECT_EQ(sum, expected);
  }
  EXPECT_EQ(collection.intra_dp_cp, collection.dp_cp);
  EXPECT_EQ(collection.intra_expt_dp, collection.expt_dp);
  EXPECT_EQ(*collection.Get("dp_cp_gtp_remat"), collection.dp_cp);
  EXPECT_EQ(*collection.Get("expt_dp_gtp_remat"), collection.expt_dp);
  EXPECT_EQ(*collection.Get("tp_ep_pp_with_egtp_remat"), collection.tp_ep_pp);
  for (const char* of_gtp_alone : {"gtp_remat", "expt_gtp_remat"}) {
    EXPECT_EQ(collection.Get(of_gtp_alone).status().code(),
              absl::StatusCode::kFailedPrecondition);
  }
  EXPECT_EQ(collection.Get("gtp").status().message(),
            "Unknown attribute 'gtp'");
}

TEST(MimoInfra, Heterogeneous) {
  RunOnAll(8, [](Communicator& world) {
    MIMO_ASSIGN_OR_RETURN(const MimoInfra infra,
                          BuildInfra(EncoderAndPipeline(), world));
    const int rank = world.rank();
    const std::string own = rank < 4 ? "images" : "language";
    const std::string other = rank < 4 ? "language" : "images";
    EXPECT_THAT(infra.participating_modules, ElementsAre(own));
    EXPECT_EQ(infra.pg_collections.at(other), nullptr);
    EXPECT_EQ(infra.module_to_grid_map.size(), 2);
    EXPECT_EQ(infra.topology,
              (ModuleTopology{{"images", {"language"}}, {"language", {}}}));
    EXPECT_EQ(infra.module_output_ndim,
              (std::map<std::string, int>{{"images", 2}, {"language", 3}}));
    EXPECT_FALSE(infra.ColocatedComm().has_value());
    const std::vector<BridgeConfig> bridges = infra.Bridges();
    EXPECT_EQ(bridges.size(), 1);
    EXPECT_EQ(bridges[0].source, "images");
    EXPECT_EQ(bridges[0].destination, "language");
    EXPECT_EQ(bridges[0].source_grid,
              infra.module_to_grid_map.at("images").get());
    EXPECT_EQ(bridges[0].destination_grid,
              infra.module_to_grid_map.at("language").get());
    EXPECT_EQ(bridges[0].tensor_ndim, 2);

    const ProcessGroupCollection& groups = *infra.pg_collections.at(own);
    ExpectGroupsWork(groups, *infra.module_to_grid_map.at(own), rank);
    EXPECT_EQ(groups.IsFirstStage(), rank < 6);
    EXPECT_EQ(groups.IsLastStage(), rank < 4 || rank >= 6);
    if (rank >= 4) {
      const int first = 4 + rank % 2;
      EXPECT_EQ(Members(groups.embd), (std::vector<int>{first, first + 2}));
      EXPECT_EQ(groups.pos_embd != nullptr, rank < 6);
    }
    MIMO_ASSIGN_OR_RETURN(const MultiModuleProcessGroupCollection all,
                          infra.OwnCollections());
    EXPECT_EQ(*all.Get(own), &groups);
    EXPECT_EQ(all.Language().ok(), rank >= 4);
    return absl::OkStatus();
  });
}

TEST(MimoInfra, HomogeneousSharesOneGridAndOneCollection) {
  RunOnAll(4, [](Communicator& world) {
    const Module module = {.tensor_model_parallel_size = 2};
    MIMO_ASSIGN_OR_RETURN(
        const MimoInfra infra,
        BuildInfra(
            {.module_parallelisms = {{"images", module}, {"language", module}}},
            world));
    EXPECT_EQ(infra.module_to_grid_map.at("images"),
              infra.module_to_grid_map.at("language"));
    EXPECT_EQ(infra.module_to_grid_map.at("images")->name(), "images+language");
    EXPECT_EQ(infra.pg_collections.at("images"),
              infra.pg_collections.at("language"));
    EXPECT_THAT(infra.participating_modules, ElementsAre("images", "language"));
    ExpectGroupsWork(*infra.pg_collections.at("language"),
                     *infra.module_to_grid_map.at("language"), world.rank());
    EXPECT_TRUE(infra.ColocatedComm().has_value());
    return absl::OkStatus();
  });
}

TEST(MimoInfra, Colocated) {
  RunOnAll(8, [](Communicator& world) {
    MIMO_ASSIGN_OR_RETURN(
        const MimoInfra infra,
        BuildInfra(
            {.deployment_mode = DeploymentMode::kColocated,
             .module_parallelisms = {{"images", {.context_parallel_size = 2}},
                                     {"language",
                                      {.tensor_model_parallel_size = 2,
                                       .pipeline_model_parallel_size = 2,
                                       .expert_model_parallel_size = 2}}}},
            world));
    for (const char* module : {"images", "language"}) {
      ExpectGroupsWork(*infra.pg_collections.at(module),
                       *infra.module_to_grid_map.at(module), world.rank());
    }
    EXPECT_EQ(infra.pg_collections.at("images")->dp->size(), 4);
    EXPECT_EQ(infra.pg_collections.at("language")->dp->size(), 2);
    EXPECT_EQ(infra.pg_collections.at("language")->ep->size(), 2);
    MIMO_ASSIGN_OR_RETURN(const auto own, infra.OwnCollections());
    EXPECT_EQ(own.modules().size(), 2);
    EXPECT_EQ(*own.LanguageContextParallelSize(), 1);
    const auto colocated = infra.ColocatedComm();
    if (!colocated) return absl::InternalError("no colocated config");
    EXPECT_EQ(&colocated->module_to_grid_map, &infra.module_to_grid_map);
    EXPECT_EQ(&colocated->topology, &infra.topology);
    EXPECT_EQ(colocated->dim_mapping, (DimMapping{.b = 0, .s = 1, .h = 2}));
    const std::vector<BridgeConfig> bridges = infra.Bridges();
    EXPECT_EQ(bridges.size(), 1);
    EXPECT_EQ(bridges[0].dim_mapping, colocated->dim_mapping);
    return absl::OkStatus();
  });
}

TEST(MimoInfra, ARankOfTwoModulesAndOneOfNone) {
  RunOnAll(4, [](Communicator& world) {
    auto config = Heterogeneous(
        {{"images", {.data_parallel_size = 2}},
         {"language", {.data_parallel_size = 2, .rank_offset = 1}}});
    config.allow_idle_ranks = true;
    MIMO_ASSIGN_OR_RETURN(const MimoInfra infra, BuildInfra(config, world));
    const std::vector<std::vector<std::string>> modules = {
        {"images"}, {"images", "language"}, {"language"}, {}};
    EXPECT_EQ(infra.participating_modules, modules[world.rank()]);
    for (const std::string& module : modules[world.rank()]) {
      ExpectGroupsWork(*infra.pg_collections.at(module),
                       *infra.module_to_grid_map.at(module), world.rank());
    }
    EXPECT_EQ(infra.module_to_grid_map.size(), 2);
    EXPECT_EQ(infra.OwnCollections().ok(), world.rank() < 3);
    return absl::OkStatus();
  });
}

TEST(MimoInfra, TheConfigsTopology) {
  RecordingWorld world(0, 3);
  auto config = Heterogeneous(
      {{"images", {.data_parallel_size = 1}},
       {"sounds", {.data_parallel_size = 1, .rank_offset = 2}},
       {"language", {.data_parallel_size = 1, .rank_offset = 1}}});
  config.topology = {
      {"images", {"language"}}, {"language", {"sounds"}}, {"sounds", {}}};
  config.module_output_ndim = {{"sounds", 3}};
  const auto infra = BuildInfra(config, world);
  ASSERT_TRUE(infra.ok()) << infra.status();
  const std::vector<BridgeConfig> bridges = infra->Bridges();
  ASSERT_EQ(bridges.size(), 2);
  EXPECT_EQ(bridges[1].source, "language");
  EXPECT_EQ(bridges[1].destination, "sounds");
  EXPECT_EQ(bridges[1].tensor_ndim, 3);
  EXPECT_EQ(infra->module_output_ndim,
            (std::map<std::string, int>{
                {"images", 2}, {"language", 3}, {"sounds", 3}}));
  EXPECT_EQ(infra->topology, (ModuleTopology{{"images", {"language"}},
                                             {"sounds", {}},
                                             {"language", {"sounds"}}}));
}

// [outer, batch, inner], whichever axis replicas divide.
TEST(MimoInfra, PayloadsAsTheMappingSays) {
  BridgeConfig bridge = {.source = "images", .tensor_ndim = 2};
  const auto sizes = [&](std::vector<int64_t> shape) {
    const BridgePayload payload = bridge.Payload(shape, DType::kBFloat16);
    EXPECT_EQ(payload.dtype, DType::kBFloat16);
    return std::pair(payload.outer, payload.inner);
  };
  EXPECT_EQ(sizes({5, 7}), std::pair(1L, 7L));  // [tokens, H]
  bridge.tensor_ndim = 3;
  EXPECT_EQ(sizes({2, 3, 7}), std::pair(1L, 21L));  // [B, S, H]
  bridge.dim_mapping = {.b = 1, .s = 0, .h = 2};
  EXPECT_EQ(sizes({3, 2, 7}), std::pair(3L, 7L));  // [S, B, H]
}

TEST(MimoInfra, GroupsAreMadeOnceAndEndWithIt) {
  RecordingWorld world(5, 8);
  {
    const auto infra = BuildInfra(EncoderAndPipeline(), world);
    ASSERT_TRUE(infra.ok()) << infra.status();
    // Equal groups are one communicator: tp, singles, dp and all of images; tp,
    // singles, pp, all and the first stage of language.
    std::vector<std::string> names;
    for (const auto& split : world.splits()) names.push_back(split.name);
    EXPECT_THAT(names, ElementsAre("images/tp", "images/cp", "images/dp",
                                   "images/dp-tp", "language/tp", "language/cp",
                                   "language/pp", "language/pp-tp",
                                   "language/pos_embd"));
    EXPECT_EQ(world.alive(), 5);
    const size_t made = world.splits().size();
    (void)infra->OwnCollections();
    EXPECT_EQ(world.splits().size(), made);
  }
  EXPECT_EQ(world.alive(), 0);
}

TEST(MimoInfra, AFailureEndsWhatWasMade) {
  for (int split = 0; split < 9; ++split) {
    RecordingWorld world(5, 8);
    world.FailFrom(split);
    const auto infra = BuildInfra(EncoderAndPipeline(), world);
    EXPECT_EQ(infra.status().message(), "rank 1 has ended");
    EXPECT_EQ(world.splits().size(), split);
    EXPECT_EQ(world.alive(), 0);
  }
}

TEST(MimoInfra, RefusesBeforeAnyGroupIsMade) {
  RecordingWorld world(0, 8);
  const auto expect = [&](const MimoParallelismConfig& config,
                          const char* words) {
    const auto infra = BuildInfra(config, world);
    EXPECT_EQ(infra.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(infra.status().message(), HasSubstr(words));
    EXPECT_THAT(world.splits(), IsEmpty());
  };
  auto config = EncoderAndPipeline();
  config.module_parallelisms[1].second.rank_offset = 5;
  expect(config, "no gaps");
  config = EncoderAndPipeline();
  config.topology = {{"images", {"language"}}, {"language", {"images"}}};
  expect(config, "cycle images -> language -> images");
  config = EncoderAndPipeline();
  config.module_output_ndim = {{"images", 4}};
  expect(config, "module_output_ndim.images: 4, wanted 2 or 3");
  config.module_output_ndim = {{"audios", 2}};
  expect(config,
         "module_output_ndim.audios: 2, wanted 2 or 3 of one of [images, "
         "language]");
}

TEST(MultiModuleProcessGroupCollection, Refuses) {
  using Multi = MultiModuleProcessGroupCollection;
  EXPECT_EQ(Multi::Create({}, std::nullopt).status().message(),
            "module_pgs dict cannot be empty");
  const auto groups = std::make_shared<const ProcessGroupCollection>();
  EXPECT_THAT(
      Multi::Create({{"images", groups}}, "language").status().message(),
      HasSubstr("'language' not found in collections, found [images]"));
  const auto encoder = Multi::Create({{"images", groups}}, std::nullopt);
  ASSERT_TRUE(encoder.ok());
  EXPECT_EQ(*encoder->Get("images"), groups.get());
  EXPECT_THAT(encoder->Get("audios").status().message(),
              HasSubstr("'audios' not found in collections, found [images]"));
  for (const absl::Status& status :
       {encoder->Language().status(),
        encoder->LanguageContextParallelSize().status()}) {
    EXPECT_EQ(status.message(), "No language model specified");
  }
}

TEST(ProcessGroupCollection, WithoutAPipelineARankIsFirstAndLast) {
  const ProcessGroupCollection none;
  EXPECT_TRUE(none.IsFirstStage());
  EXPECT_TRUE(none.IsLastStage());
  EXPECT_EQ(none.Get("tp").status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace mimo
