// The worked examples and pinned numbers of the layouts users of Megatron know,
// and every refusal.
#include "comm/grid/rank_grid.h"

#include <string>
#include <vector>

#include "absl/log/check.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Names = std::vector<std::string>;

RankGrid Grid(std::vector<int> shape, Names names, int offset = 0,
              int world_size = 0) {
  int size = 1;
  for (const int s : shape) size *= s;
  auto grid = RankGrid::Create(shape, names, offset,
                               world_size > 0 ? world_size : offset + size);
  CHECK_OK(grid.status());
  return *grid;
}

std::string Public(const RankGrid& grid, const Names& dims,
                   absl::string_view view = RankGrid::kBase) {
  const auto groups = grid.Groups(dims, view);
  return groups.ok() ? groups->ToString() : groups.status().ToString();
}

void ExpectError(const absl::Status& status, absl::StatusCode code,
                 const Names& fragments) {
  EXPECT_EQ(status.code(), code) << status;
  for (const std::string& fragment : fragments)
    EXPECT_THAT(status.message(), HasSubstr(fragment));
}

TEST(RankGrid, FirstExample) {
  const RankGrid grid = Grid({2, 2, 2}, {"tp", "cp", "dp"});
  EXPECT_EQ(grid.RawGroups({"tp", "cp"})->ToString(), "[0,2,1,3] [4,6,5,7]");
  EXPECT_EQ(Public(grid, {"tp", "cp"}), "[0,1,2,3] [4,5,6,7]");
  EXPECT_EQ(Public(grid, {"tp", "dp"}), "[0,1,4,5] [2,3,6,7]");
  EXPECT_EQ(Public(grid, {"cp", "dp"}), "[0,2,4,6] [1,3,5,7]");
  EXPECT_EQ(Public(grid, {"tp"}), "[0,1] [2,3] [4,5] [6,7]");
  EXPECT_EQ(Public(grid, {"cp"}), "[0,2] [1,3] [4,6] [5,7]");
  EXPECT_EQ(Public(grid, {"dp"}), "[0,4] [1,5] [2,6] [3,7]");
  EXPECT_EQ(*grid.Key({"tp", "cp"}), "cp-tp");
  EXPECT_EQ(*grid.Key({"tp", "dp"}), "dp-tp");
  EXPECT_EQ(*grid.Key({"dp", "tp"}), "dp-tp");
  EXPECT_EQ(*grid.Key({"cp", "dp"}), "dp-cp");
  EXPECT_EQ(*grid.Key({"tp"}), "tp");
  EXPECT_EQ(*grid.Key({"tp", "dp", "cp"}), "dp-cp-tp");
}

TEST(RankGrid, DenseLayoutAtAnOffset) {
  const RankGrid grid = Grid({2, 1, 2, 2}, {"tp", "cp", "dp", "pp"}, 4);
  EXPECT_EQ(Public(grid, {"tp"}), "[4,5] [6,7] [8,9] [10,11]");
  EXPECT_EQ(Public(grid, {"cp"}), "[4] [5] [6] [7] [8] [9] [10] [11]");
  EXPECT_EQ(Public(grid, {"pp"}), "[4,8] [5,9] [6,10] [7,11]");
  EXPECT_EQ(Public(grid, {"dp"}), "[4,6] [5,7] [8,10] [9,11]");
  EXPECT_EQ(Public(grid, {"dp", "cp"}), "[4,6] [5,7] [8,10] [9,11]");
  EXPECT_EQ(Public(grid, {"tp", "cp"}), "[4,5] [6,7] [8,9] [10,11]");
  EXPECT_EQ(Public(grid, {"tp", "pp"}), "[4,5,8,9] [6,7,10,11]");
  EXPECT_EQ(Public(grid, {"tp", "dp", "cp"}), "[4,5,6,7] [8,9,10,11]");
  EXPECT_EQ(Public(grid, {"tp", "cp", "dp", "pp"}), "[4,5,6,7,8,9,10,11]");
  EXPECT_EQ(*grid.Key({"tp", "cp"}), "cp-tp");
  EXPECT_EQ(*grid.Key({"tp", "pp"}), "pp-tp");
  EXPECT_EQ(*grid.Key({"tp", "dp", "cp"}), "dp-cp-tp");
  EXPECT_EQ(*grid.Key({"tp", "cp", "dp", "pp"}), "pp-dp-cp-tp");
}

TEST(RankGrid, DenseLayoutOfSixteen) {
  const RankGrid grid = Grid({2, 2, 2, 2}, {"tp", "cp", "dp", "pp"});
  EXPECT_EQ(Public(grid, {"tp"}),
            "[0,1] [2,3] [4,5] [6,7] [8,9] [10,11] [12,13] [14,15]");
  EXPECT_EQ(Public(grid, {"cp"}),
            "[0,2] [1,3] [4,6] [5,7] [8,10] [9,11] [12,14] [13,15]");
  EXPECT_EQ(Public(grid, {"dp"}),
            "[0,4] [1,5] [2,6] [3,7] [8,12] [9,13] [10,14] [11,15]");
  EXPECT_EQ(Public(grid, {"pp"}),
            "[0,8] [1,9] [2,10] [3,11] [4,12] [5,13] [6,14] [7,15]");
  EXPECT_EQ(Public(grid, {"dp", "cp"}),
            "[0,2,4,6] [1,3,5,7] [8,10,12,14] [9,11,13,15]");
  EXPECT_EQ(Public(grid, {"tp", "cp"}),
            "[0,1,2,3] [4,5,6,7] [8,9,10,11] [12,13,14,15]");
  EXPECT_EQ(Public(grid, {"tp", "pp"}),
            "[0,1,8,9] [2,3,10,11] [4,5,12,13] [6,7,14,15]");
  EXPECT_EQ(Public(grid, {"tp", "dp", "cp"}),
            "[0,1,2,3,4,5,6,7] [8,9,10,11,12,13,14,15]");
}

TEST(RankGrid, OtherPinnedLayouts) {
  EXPECT_EQ(Public(Grid({2, 4}, {"tp", "dp"}), {"tp"}),
            "[0,1] [2,3] [4,5] [6,7]");
  EXPECT_EQ(Public(Grid({2, 2}, {"tp", "dp"}, 4), {"tp"}), "[4,5] [6,7]");
  EXPECT_EQ(Public(Grid({1, 2, 4}, {"tp", "cp", "dp"}), {"tp", "cp"}),
            "[0,1] [2,3] [4,5] [6,7]");
  EXPECT_EQ(Public(Grid({2, 2, 2}, {"a", "b", "c"}), {"c"}),
            "[0,4] [1,5] [2,6] [3,7]");

  // dp is the slowest of the four, as in Megatron's order tp-cp-pp-dp: a group
  // is every 24th rank.
  const auto dp =
      *Grid({2, 3, 4, 5}, {"tp", "cp", "pp", "dp"}, 0, 120).Groups({"dp"});
  ASSERT_EQ(dp.size(), 24);
  for (int g = 0; g < 24; ++g)
    EXPECT_THAT(dp[g], ElementsAre(g, g + 24, g + 48, g + 72, g + 96));

  // The names and order of the first MIMO layout: dp slowest, not pp.
  const RankGrid first = Grid({2, 1, 1, 2, 2}, {"tp", "cp", "ep", "pp", "dp"});
  EXPECT_EQ(Public(first, {"pp"}), "[0,2] [1,3] [4,6] [5,7]");
  EXPECT_EQ(Public(first, {"dp"}), "[0,4] [1,5] [2,6] [3,7]");
  EXPECT_EQ(
      Public(Grid({2, 1, 1, 1, 2}, {"tp", "cp", "ep", "pp", "dp"}, 16), {"dp"}),
      "[16,18] [17,19]");
}

TEST(RankGrid, CoordinatesAndMembers) {
  const RankGrid grid = Grid({2, 1, 2, 2}, {"tp", "cp", "dp", "pp"}, 4, 16);
  EXPECT_EQ(grid.size(), 8);
  EXPECT_FALSE(grid.Contains(3));
  EXPECT_TRUE(grid.Contains(4));
  EXPECT_TRUE(grid.Contains(11));
  EXPECT_FALSE(grid.Contains(12));
  EXPECT_THAT(*grid.Coordinates(9), ElementsAre(1, 0, 0, 1));
  EXPECT_THAT(*grid.GroupOf(9, {"pp", "tp"}), ElementsAre(4, 5, 8, 9));
  EXPECT_EQ(*grid.GroupSize({"pp", "tp"}), 4);
  EXPECT_DEATH(grid.GroupOf(3, {"tp"}).IgnoreError(), "3 is not in");
}

TEST(RankGrid, ManyGroupsPrintShort) {
  EXPECT_EQ(Public(Grid({20}, {"dp"}), {"dp"}),
            "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19]");
  EXPECT_THAT(Public(Grid({1, 20}, {"tp", "dp"}), {"tp"}),
              HasSubstr("[14] [15] ... (20 groups)"));
  EXPECT_THAT(Public(Grid({100}, {"dp"}), {"dp"}),
              HasSubstr(",62,63,... (100 ranks)]"));
}

TEST(RankGrid, Refusals) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  ExpectError(RankGrid::Create({2, 2}, {"tp"}, 0, 4).status(), kInvalid,
              {"len(shape) 2 != len(dim_names) 1"});
  ExpectError(RankGrid::Create({2, 2}, {"tp", "tp"}, 0, 4).status(), kInvalid,
              {"has duplicate dim_names [tp, tp]"});
  ExpectError(RankGrid::Create({2, 0}, {"tp", "dp"}, 0, 4).status(), kInvalid,
              {"shape must be positive ints, got [2, 0]"});
  ExpectError(RankGrid::Create({2}, {"t-p"}, 0, 4).status(), kInvalid,
              {"dim name 't-p'"});
  ExpectError(RankGrid::Create({2}, {""}, 0, 4).status(), kInvalid,
              {"dim name ''"});
  ExpectError(RankGrid::Create({2}, {"tp"}, 0, 0).status(), kInvalid,
              {"Cannot determine world size"});
  ExpectError(RankGrid::Create({2}, {"tp"}, -1, 4).status(), kInvalid,
              {"rank_offset must be non-negative, got -1"});
  ExpectError(RankGrid::Create({2, 2}, {"tp", "dp"}, 5, 8).status(),
              absl::StatusCode::kOutOfRange,
              {"is over sized", "world size 8", "rank_offset 5"});
  // 2^62 ranks, and 2^64, which is 0 in 64 bits.
  ExpectError(
      RankGrid::Create({1 << 30, 1 << 30, 4}, {"a", "b", "c"}, 0, 8).status(),
      absl::StatusCode::kOutOfRange, {"is over sized"});
  ExpectError(
      RankGrid::Create({1 << 30, 1 << 30, 16}, {"a", "b", "c"}, 0, 8).status(),
      absl::StatusCode::kOutOfRange, {"is over sized"});

  const RankGrid grid = Grid({2, 2}, {"tp", "dp"});
  ExpectError(grid.Groups({"tp", "ep"}).status(), kInvalid,
              {"'ep' is not in view 'base' with dim_names [tp, dp]"});
  ExpectError(grid.Groups({"tp"}, "expert").status(),
              absl::StatusCode::kNotFound,
              {"View 'expert' is not registered", "'base'"});
  ExpectError(grid.Groups({}).status(), kInvalid, {"each once, got []"});
  ExpectError(grid.Key({"tp", "tp"}).status(), kInvalid,
              {"each once, got [tp, tp]"});
}

// TP2 DP2 PP2 with experts ETP1 EP2 EDP2 PP2 on the same eight ranks.
RankGrid ExpertGrid() {
  RankGrid grid = Grid({2, 1, 2, 2}, {"tp", "cp", "dp", "pp"});
  CHECK_OK(grid.RegisterView("expert", {1, 2, 2, 2},
                             {"expt_tp", "ep", "expt_dp", "pp"}, {"pp"}));
  return grid;
}

TEST(RankGridView, ExpertExample) {
  const RankGrid grid = ExpertGrid();
  EXPECT_EQ(Public(grid, {"ep"}, "expert"), "[0,1] [2,3] [4,5] [6,7]");
  EXPECT_EQ(Public(grid, {"expt_dp"}, "expert"), "[0,2] [1,3] [4,6] [5,7]");
  EXPECT_EQ(Public(grid, {"ep", "expt_tp", "pp"}, "expert"),
            "[0,1,4,5] [2,3,6,7]");
  EXPECT_EQ(Public(grid, {"pp"}, "expert"), "[0,4] [1,5] [2,6] [3,7]");
  EXPECT_EQ(Public(grid, {"pp"}), "[0,4] [1,5] [2,6] [3,7]");
  EXPECT_THAT(*grid.Coordinates(5, "expert"), ElementsAre(0, 1, 0, 1));
}

TEST(RankGridView, SharedDimsHaveTheBasesKey) {
  const RankGrid grid = ExpertGrid();
  EXPECT_EQ(*grid.Key({"pp"}, "expert"), "pp");
  EXPECT_EQ(*grid.Key({"pp", "ep"}, "expert"), "expert.pp-ep");
  EXPECT_EQ(*grid.Key({"expt_tp"}, "expert"), "expert.expt_tp");
  // A dimension of the same name and ranks that is not shared stays private.
  RankGrid private_pp = Grid({2, 2}, {"tp", "pp"});
  CHECK_OK(private_pp.RegisterView("expert", {2, 2}, {"ep", "pp"}, {}));
  EXPECT_EQ(*private_pp.Key({"pp"}, "expert"), "expert.pp");
  // Several shared ones together, and one of them with a private one.
  RankGrid two = Grid({2, 2, 2}, {"tp", "dp", "pp"});
  CHECK_OK(
      two.RegisterView("expert", {2, 2, 2}, {"ep", "dp", "pp"}, {"pp", "dp"}));
  EXPECT_EQ(*two.Key({"dp", "pp"}, "expert"), "pp-dp");
  EXPECT_EQ(*two.Key({"dp", "ep"}, "expert"), "expert.dp-ep");
}

TEST(RankGridView, AViewsDimsNeedTheView) {
  const RankGrid grid = ExpertGrid();
  ExpectError(grid.Groups({"ep"}).status(), absl::StatusCode::kInvalidArgument,
              {"'ep' is not in view 'base'"});
  ExpectError(grid.Groups({"tp"}, "expert").status(),
              absl::StatusCode::kInvalidArgument,
              {"'tp' is not in view 'expert' with dim_names "
               "[expt_tp, ep, expt_dp, pp]"});
  ExpectError(grid.Groups({"ep"}, "other").status(),
              absl::StatusCode::kNotFound,
              {"View 'other' is not registered", "'base', 'expert'"});
}

TEST(RankGridView, RefusalsInOrder) {
  struct Case {
    std::string name;
    std::vector<int> shape;
    Names names, shared;
    std::string fragment;
  };
  // Each case has every later mistake that fits beside its own.
  const std::vector<Case> cases = {
      {"base", {2}, {"a", "a"}, {}, "view 'base' is already registered"},
      {"expert", {2}, {"a", "a"}, {}, "view 'expert' is already registered"},
      {"v", {0}, {"a", "a"}, {}, "len(shape) 1 != len(dim_names) 2"},
      {"v", {0, 2}, {"a", "a"}, {}, "view 'v' has duplicate dim_names [a, a]"},
      {"v", {0, 2}, {"a", "b"}, {"b", "b"}, "shape must be positive ints"},
      {"v", {-2, -4}, {"a", "b"}, {}, "shape must be positive ints"},
      {"v",
       {2, 2},
       {"a", "b"},
       {"b", "b"},
       "has size 4, but the grid size is 8"},
      {"v", {2, 4}, {"a", "b"}, {"b", "b"}, "has duplicate shared_dims [b, b]"},
      {"v", {2, 4}, {"a", "b"}, {"b"}, "'b' is not in the base view"},
      {"v",
       {2, 4},
       {"a", "b"},
       {"pp", "b"},
       "'pp' is not in the view's dim_names [a, b]"},
      {"v",
       {4, 2},
       {"a", "dp"},
       {"dp"},
       "'dp' has different membership across views"},
      {"v",
       {4, 2},
       {"tp", "b"},
       {"tp"},
       "'tp' has different membership across views"},
      {"v",
       {2, 2, 2},
       {"tp", "pp", "dp"},
       {"tp", "dp", "pp"},
       "'dp' has different membership across views: base [0,2] [1,3] [4,6] "
       "[5,7], here [0,4] [1,5] [2,6] [3,7]"},
  };
  RankGrid grid = ExpertGrid();
  for (const Case& c : cases) {
    SCOPED_TRACE(c.fragment);
    const absl::Status status =
        grid.RegisterView(c.name, c.shape, c.names, c.shared);
    EXPECT_THAT(status.message(), HasSubstr(c.fragment));
    EXPECT_EQ(status.code(), c.fragment.find("already") != std::string::npos
                                 ? absl::StatusCode::kAlreadyExists
                                 : absl::StatusCode::kInvalidArgument);
  }
  EXPECT_FALSE(grid.Groups({"a"}, "v").ok());  // nothing was registered
}

// A fourth axis whose ranks see other data, in both factorisations.
TEST(RankGridView, AxisOfItsOwnInBothViews) {
  RankGrid grid = Grid({2, 2, 1, 1, 1}, {"tp", "gtp", "cp", "dp", "pp"}, 4);
  CHECK_OK(grid.RegisterView("expert", {1, 2, 2, 1, 1},
                             {"expt_tp", "ep", "expt_gtp", "expt_dp", "pp"},
                             {"pp"}));
  EXPECT_EQ(*grid.GroupSize({"dp"}), 1);
  EXPECT_EQ(*grid.GroupSize({"gtp", "dp", "cp"}), 2);
  EXPECT_EQ(*grid.GroupSize({"tp", "gtp", "pp"}), 4);
  EXPECT_EQ(*grid.GroupSize({"ep"}, "expert"), 2);
  EXPECT_EQ(*grid.GroupSize({"expt_dp"}, "expert"), 1);
  EXPECT_EQ(*grid.GroupSize({"expt_gtp", "expt_dp"}, "expert"), 2);
  EXPECT_EQ(*grid.GroupSize({"expt_tp", "ep", "expt_gtp", "pp"}, "expert"), 4);
}

TEST(RankGroups, EmbeddingGroupsOfPipelineLines) {
  // The language model of a test layout: TP2 PP2 on ranks 4 to 7.
  const auto two =
      *Grid({2, 1, 1, 2}, {"tp", "cp", "dp", "pp"}, 4).Groups({"pp"});
  EXPECT_EQ(FirstOfEach(two).ToString(), "[4] [5]");
  EXPECT_EQ(EndsOfEach(two).ToString(), "[4,6] [5,7]");
  // One stage: the first is the last.
  const auto one = *Grid({2, 1, 2, 1}, {"tp", "cp", "dp", "pp"}).Groups({"pp"});
  EXPECT_EQ(FirstOfEach(one).ToString(), "[0] [1] [2] [3]");
  EXPECT_EQ(EndsOfEach(one).ToString(), "[0] [1] [2] [3]");
  // Middle stages are in neither.
  const auto four =
      *Grid({1, 1, 2, 4}, {"tp", "cp", "dp", "pp"}).Groups({"pp"});
  EXPECT_EQ(FirstOfEach(four).ToString(), "[0] [1]");
  EXPECT_EQ(EndsOfEach(four).ToString(), "[0,6] [1,7]");
}

}  // namespace
}  // namespace mimo
