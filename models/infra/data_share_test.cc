#include "models/infra/data_share.h"

#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <string>

#include "comm/bridge/grid_bridge.h"
#include "gtest/gtest.h"
#include "models/infra/recording_world.h"
#include "models/parallelism/random_config.h"

namespace mimo {
namespace {

const std::map<std::string, int64_t> kSpecial = {{"audios", 5}, {"images", 4}};

// Which of `side` a rank is; none if it is not there.
std::optional<int64_t> IndexIn(const BridgeSide& side, int rank) {
  const auto found = std::find(side.ranks.begin(), side.ranks.end(), rank);
  if (found == side.ranks.end()) return std::nullopt;
  return found - side.ranks.begin();
}

void ExpectSlice(const std::optional<DataSlice>& slice, int64_t rank,
                 int64_t size) {
  ASSERT_TRUE(slice.has_value());
  EXPECT_EQ(slice->rank, rank);
  EXPECT_EQ(slice->size, size);
}

// What a rank reads is what bridges take from it and bring to it.
void ExpectAsBridged(const MimoInfra& infra, int rank, const DataShare& share) {
  for (const auto& [name, grid] : infra.module_to_grid_map) {
    const BridgeSide first = *DestinationSide(grid->ranks());
    const BridgeSide last = *SourceSide(grid->ranks());
    const auto index = IndexIn(first, rank), at_end = IndexIn(last, rank);
    if (name == "language") {
      const int copies = last.tp * last.cp;
      if (index) ExpectSlice(share.text, *index / copies, first.dp);
      if (at_end) ExpectSlice(share.text, *at_end / copies, last.dp);
      EXPECT_EQ(share.text.has_value(),
                infra.pg_collections.at(name) != nullptr);
      continue;
    }
    const auto slice = share.modalities.find(name);
    ASSERT_EQ(slice != share.modalities.end(), index.has_value());
    if (index)
      ExpectSlice(slice->second, *index / first.tp, first.dp * first.cp);
  }
}

TEST(DataShareOf, IsTheLaneOfTheBridge) {
  Draw draw{std::mt19937(20260301)};
  for (int valid = 0; valid < 300;) {
    int world_size;
    MimoParallelismConfig config = RandomConfig(draw, world_size);
    if (world_size < 1 || world_size > 48) continue;
    if (!config.Finalize(world_size).ok()) continue;
    ++valid;
    SCOPED_TRACE(ToYaml(config));
    int64_t lanes = 1;
    for (const auto& [name, module] : config.module_parallelisms)
      lanes *= *module.data_parallel_size * module.context_parallel_size;
    for (int rank = 0; rank < world_size; ++rank) {
      RecordingWorld world(rank, world_size);
      const auto infra = BuildInfra(config, world);
      ASSERT_TRUE(infra.ok()) << infra.status();
      const DataShare share = DataShareOf(*infra, lanes, kSpecial);
      EXPECT_EQ(share.samples,
                lanes * *config.Find("language")->data_parallel_size);
      share.Check();
      ExpectAsBridged(*infra, rank, share);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(DataShareOf, CountsTokensUnlessModulesAreAlike) {
  const auto counts = [](MimoParallelismConfig config) {
    RecordingWorld world(0, 4);
    const auto infra = BuildInfra(config, world);
    EXPECT_TRUE(infra.ok()) << infra.status();
    const DataShare share = DataShareOf(*infra, 4, kSpecial);
    EXPECT_TRUE(share.special_token_ids.empty() ||
                share.special_token_ids == kSpecial);
    return !share.special_token_ids.empty();
  };
  using Module = ModuleParallelismConfig;
  const auto alike = [](Module module) {
    return MimoParallelismConfig{
        .module_parallelisms = {{"images", module}, {"language", module}}};
  };
  const Module tp{.tensor_model_parallel_size = 2};
  EXPECT_FALSE(counts(alike({})));
  EXPECT_FALSE(counts(alike(tp)));
  EXPECT_TRUE(counts(alike({.pipeline_model_parallel_size = 2})));
  EXPECT_TRUE(counts(alike({.context_parallel_size = 2})));
  EXPECT_TRUE(
      counts({.deployment_mode = DeploymentMode::kColocated,
              .module_parallelisms = {{"images", {}}, {"language", tp}}}));
  EXPECT_TRUE(
      counts({.deployment_mode = DeploymentMode::kHeterogeneous,
              .module_parallelisms = {
                  {"images", {.data_parallel_size = 2}},
                  {"language", {.data_parallel_size = 2, .rank_offset = 2}}}}));
}

}  // namespace
}  // namespace mimo
