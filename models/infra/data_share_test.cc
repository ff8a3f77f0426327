#include "models/infra/data_share.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "comm/bridge/grid_bridge.h"
#include "gtest/gtest.h"
#include "mimo/data/data_loader.h"
#include "models/infra/recording_world.h"
#include "models/parallelism/random_config.h"

namespace mimo {
namespace {

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
      const DataShare share = DataShareOf(*infra, lanes);
      EXPECT_EQ(share.samples,
                lanes * *config.Find("language")->data_parallel_size);
      share.Check();
      ExpectAsBridged(*infra, rank, share);
      if (HasFatalFailure()) return;
    }
  }
}

// Counts what is read of it.
class Counted : public Dataset {
 public:
  int64_t size() const override { return 64; }
  absl::StatusOr<Sample> Text(int64_t index, int64_t visit) const override {
    ++texts;
    return Sample{{1}, {1}, {}};
  }
  absl::StatusOr<std::vector<ModalityItem>> Items(
      int64_t index, int64_t visit,
      const std::string& modality) const override {
    ++items;
    return std::vector<ModalityItem>{{{1}, {1}}};
  }
  int64_t ItemTokens(int64_t index, int64_t visit,
                     const std::string& modality) const override {
    return index;
  }

  mutable int texts = 0, items = 0;
};

// Of the 8 samples of a global micro-batch, each rank's texts and images.
TEST(DataShareOf, NoRankReadsWhatAnotherUses) {
  using Reads = std::pair<int, int>;
  using Module = ModuleParallelismConfig;
  struct Case {
    DeploymentMode mode;
    Module images, language;
    std::vector<Reads> ranks;
  };
  const auto homogeneous = DeploymentMode::kHomogeneous,
             colocated = DeploymentMode::kColocated,
             heterogeneous = DeploymentMode::kHeterogeneous;
  const Module dp2{.data_parallel_size = 2};
  const Module cp2{.context_parallel_size = 2, .data_parallel_size = 1};
  const Case cases[] = {
      {homogeneous, dp2, dp2, {{4, 4}, {4, 4}}},
      {homogeneous, cp2, cp2, {{8, 4}, {8, 4}}},
      {colocated,
       {.data_parallel_size = 4},
       {.tensor_model_parallel_size = 2, .data_parallel_size = 2},
       {{4, 2}, {4, 2}, {4, 2}, {4, 2}}},
      {colocated,
       {.data_parallel_size = 3},
       {.pipeline_model_parallel_size = 3, .data_parallel_size = 1},
       {{3, 1}, {3, 1}, {3, 1}}},
      {heterogeneous,
       dp2,
       {.tensor_model_parallel_size = 2,
        .data_parallel_size = 1,
        .rank_offset = 2},
       {{0, 4}, {0, 4}, {8, 0}, {8, 0}}},
      {heterogeneous,
       {.pipeline_model_parallel_size = 2, .data_parallel_size = 1},
       {.pipeline_model_parallel_size = 3,
        .data_parallel_size = 1,
        .rank_offset = 2},
       {{0, 8}, {0, 0}, {8, 0}, {8, 0}, {8, 0}, {0, 0}}},  // one is idle
  };
  for (const Case& at : cases) {
    MimoParallelismConfig config{
        .deployment_mode = at.mode,
        .module_parallelisms = {{"images", at.images},
                                {"language", at.language}},
        .allow_idle_ranks = true};
    const int ranks = at.ranks.size();
    for (int rank = 0; rank < ranks; ++rank) {
      SCOPED_TRACE(testing::Message()
                   << "case " << &at - cases << ", rank " << rank);
      RecordingWorld world(rank, ranks);
      const auto infra = BuildInfra(config, world);
      ASSERT_TRUE(infra.ok()) << infra.status();
      const int64_t samples = ranks == 3 ? 3 : 8;
      const DataShare share =
          DataShareOf(*infra, samples / *at.language.data_parallel_size);
      const auto data = std::make_shared<Counted>();
      auto loader = *DataLoader::Create(
          data, {.share = share, .num_workers = 0, .shuffle = false});
      const auto batch = loader->Next();
      ASSERT_TRUE(batch.ok()) << batch.status();
      EXPECT_EQ(Reads(data->texts, data->items), at.ranks[rank]);
      if (infra->participating_modules.empty()) {
        EXPECT_TRUE(batch->sample_rows.empty());
        continue;
      }
      std::vector<int64_t> all(samples);
      std::iota(all.begin(), all.end(), 0);
      EXPECT_EQ(batch->sample_rows.at("images"), all);
    }
  }
}

}  // namespace
}  // namespace mimo
