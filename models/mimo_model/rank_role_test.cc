#include "models/mimo_model/rank_role.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/log/check.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Grids = std::vector<std::pair<std::string, const RankGrid*>>;

RankGrid Grid(std::vector<int> shape, std::vector<std::string> dims,
              int offset) {
  const auto grid = RankGrid::Create(shape, dims, offset, 64);
  CHECK_OK(grid.status());
  return *grid;
}

TEST(RankRole, QueriesOfOneKindOfModule) {
  RankRole encoder{.modules = {{"vision", {true, false}}}};
  EXPECT_TRUE(encoder.HasModalityModules());
  EXPECT_FALSE(encoder.HasLanguageModule());
  EXPECT_THAT(encoder.ModalityModuleNames(), ElementsAre("vision"));
  EXPECT_TRUE(encoder.IsFirstStage("vision"));
  EXPECT_FALSE(encoder.IsLastStage("vision"));
  RankRole language{.modules = {{"language", {}}}};
  EXPECT_FALSE(language.HasModalityModules());
  EXPECT_TRUE(language.HasLanguageModule());
  EXPECT_THAT(language.ModalityModuleNames(), IsEmpty());
}

TEST(RankRole, QueriesOfBothKindsAnswerByModule) {
  const RankRole role{
      .layout = ModuleLayout::kNonColocated,
      .language_module_name = "llm",
      .modules = {{"vision", {true, false}}, {"llm", {false, true}}}};
  EXPECT_TRUE(role.HasModalityModules());
  EXPECT_TRUE(role.HasLanguageModule());
  EXPECT_THAT(role.ModalityModuleNames(), ElementsAre("vision"));
  EXPECT_TRUE(role.IsFirstStage("vision"));
  EXPECT_FALSE(role.IsLastStage("vision"));
  EXPECT_FALSE(role.IsFirstStage("llm"));
  EXPECT_TRUE(role.IsLastStage("llm"));
  EXPECT_FALSE(role.IsFirstStage("language"));  // an unknown name
  EXPECT_FALSE(role.IsLastStage("language"));
}

TEST(RankRole, StagesOfDisjointSpans) {
  const RankGrid encoder = Grid({2, 1, 2, 1}, {"tp", "cp", "dp", "pp"}, 0);
  const RankGrid language = Grid({1, 1, 2, 2}, {"tp", "cp", "dp", "pp"}, 4);
  const Grids grids = {{"images", &encoder}, {"language", &language}};
  for (int rank = 0; rank < 8; ++rank) {
    const auto role = RankRoleOf(grids, "language", rank);
    ASSERT_TRUE(role.ok()) << role.status();
    EXPECT_EQ(role->layout, ModuleLayout::kNonColocated);
    EXPECT_EQ(role->IsFirstStage("images"), rank < 4);
    EXPECT_EQ(role->IsLastStage("images"), rank < 4);
    EXPECT_EQ(role->HasLanguageModule(), rank >= 4);
    EXPECT_EQ(role->IsFirstStage("language"), rank == 4 || rank == 5);
    EXPECT_EQ(role->IsLastStage("language"), rank >= 6);
  }
  EXPECT_EQ(RankRoleOf(grids, "language", 10).status().message(),
            "Rank 10 is not in any module grid");
}

TEST(RankRole, ColocatedWhenAllSpansAreOne) {
  const RankGrid encoder = Grid({1, 4}, {"tp", "dp"}, 0);
  const RankGrid language = Grid({2, 1, 2}, {"tp", "dp", "pp"}, 0);
  const Grids grids = {{"images", &encoder}, {"language", &language}};
  for (int rank = 0; rank < 4; ++rank) {
    const auto role = RankRoleOf(grids, "language", rank);
    ASSERT_TRUE(role.ok()) << role.status();
    EXPECT_EQ(role->layout, ModuleLayout::kColocated);
    EXPECT_TRUE(role->HasModalityModules() && role->HasLanguageModule());
    // A grid without pp is first and last stage.
    EXPECT_EQ(role->modules.at("images"), StageInfo());
    EXPECT_EQ(role->modules.at("language"), (StageInfo{rank < 2, rank >= 2}));
  }
}

TEST(RankRole, SpansThatOverlapInPartAreNotColocated) {
  const RankGrid encoder = Grid({1, 2}, {"tp", "dp"}, 0);
  const RankGrid language = Grid({1, 2}, {"tp", "dp"}, 1);
  const Grids grids = {{"images", &encoder}, {"language", &language}};
  const auto both = RankRoleOf(grids, "language", 1);
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_EQ(both->layout, ModuleLayout::kNonColocated);
  EXPECT_TRUE(both->HasModalityModules() && both->HasLanguageModule());
  EXPECT_FALSE(RankRoleOf(grids, "language", 0)->HasLanguageModule());
  EXPECT_FALSE(RankRoleOf(grids, "language", 2)->HasModalityModules());
}

}  // namespace
}  // namespace mimo
