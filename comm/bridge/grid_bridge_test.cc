// Which ranks of two grids a bridge joins (the boundary stages and leaders that
// Megatron's bridge has for the same grids), and a tensor carried between
// grids.
#include "comm/bridge/grid_bridge.h"

#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "comm/inproc/inproc.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;
using Names = std::vector<std::string>;

RankGrid Grid(std::vector<int> shape, Names names, int offset,
              int world_size = 64) {
  auto grid = RankGrid::Create(shape, names, offset, world_size);
  CHECK_OK(grid.status());
  return *grid;
}

// TP, CP, DP, PP from fast to slow.
RankGrid Dense(int offset, int tp, int dp, int pp = 1, int cp = 1) {
  return Grid({tp, cp, dp, pp}, {"tp", "cp", "dp", "pp"}, offset);
}

// With pp faster than dp, and the axis whose ranks see other data.
RankGrid PipelineFirst(int tp, int gtp, int pp, int dp, int offset = 0) {
  return Grid({tp, gtp, 1, pp, dp}, {"tp", "gtp_remat", "cp", "pp", "dp"},
              offset);
}

// The ranks of each lane's tp x cp group: "[4,5] [6,7]".
std::string Lanes(const absl::StatusOr<BridgeSide>& side) {
  CHECK_OK(side.status());
  CHECK_EQ(side->ranks.size(), size_t(side->dp * side->cp * side->tp));
  return RankGroups{side->cp * side->tp, side->ranks}.ToString();
}

// Who sends to whom when leaders alone do: "5->0 7->2".
std::string Pairs(const RankGrid& from, const RankGrid& to) {
  const BridgeSide source = *SourceSide(from),
                   destination = *DestinationSide(to);
  const auto plan =
      PlanBridge(source, destination,
                 {.source_rows = NearEqualRows(24, source.dp),
                  .destination_rows = NearEqualRows(24, destination.dp)},
                 BridgeRouting::kLeader);
  CHECK_OK(plan.status());
  std::vector<std::string> pairs, back;
  for (const BridgeMessage& m : plan->forward)
    pairs.push_back(absl::StrCat(m.from, "->", m.to));
  for (const BridgeMessage& m : plan->backward)
    back.push_back(absl::StrCat(m.to, "->", m.from));
  EXPECT_EQ(pairs, back);
  return absl::StrJoin(pairs, " ");
}

TEST(BridgeSides, BoundaryStagesWithThePipelineFirst) {
  struct Case {
    RankGrid grid;
    std::string source, destination;
    std::string sends, receives;  // of its leaders, to and from rank 32
  };
  const std::vector<Case> cases = {
      {PipelineFirst(2, 1, 2, 2), "[2,3] [6,7]", "[0,1] [4,5]", "3->32 7->32",
       "32->0 32->4"},
      {PipelineFirst(4, 1, 2, 1), "[4,5,6,7]", "[0,1,2,3]", "7->32", "32->0"},
      {PipelineFirst(1, 1, 2, 4), "[1] [3] [5] [7]", "[0] [2] [4] [6]",
       "1->32 3->32 5->32 7->32", "32->0 32->2 32->4 32->6"},
      {PipelineFirst(2, 1, 4, 1), "[6,7]", "[0,1]", "7->32", "32->0"},
      // Each rank of the fourth axis is a lane of its own, within dp.
      {PipelineFirst(2, 2, 1, 1, 4), "[4,5] [6,7]", "[4,5] [6,7]",
       "5->32 7->32", "32->4 32->6"},
      {PipelineFirst(2, 2, 2, 2), "[4,5] [6,7] [12,13] [14,15]",
       "[0,1] [2,3] [8,9] [10,11]", "5->32 7->32 13->32 15->32",
       "32->0 32->2 32->8 32->10"},
  };
  const RankGrid one = Dense(32, 1, 1);
  for (const Case& c : cases) {
    EXPECT_EQ(Lanes(SourceSide(c.grid)), c.source);
    EXPECT_EQ(Lanes(DestinationSide(c.grid)), c.destination);
    EXPECT_EQ(Pairs(c.grid, one), c.sends);
    EXPECT_EQ(Pairs(one, c.grid), c.receives);
  }
}

TEST(BridgeSides, BoundaryStagesOfEncoderAndLanguageModel) {
  struct Case {
    RankGrid encoder, language;
    std::string source, destination;
    std::string pairs;  // of leaders
  };
  const std::vector<Case> cases = {
      {Dense(4, 4, 1), Dense(0, 4, 1), "[4,5,6,7]", "[0,1,2,3]", "7->0"},
      {Dense(4, 2, 2), Dense(0, 2, 2), "[4,5] [6,7]", "[0,1] [2,3]",
       "5->0 7->2"},
      {Dense(4, 1, 4), Dense(0, 4, 1), "[4] [5] [6] [7]", "[0,1,2,3]",
       "4->0 5->0 6->0 7->0"},
      {Dense(4, 1, 4), Dense(0, 2, 2), "[4] [5] [6] [7]", "[0,1] [2,3]",
       "4->0 5->0 6->2 7->2"},
      {Dense(4, 4, 1), Dense(0, 1, 4), "[4,5,6,7]", "[0] [1] [2] [3]",
       "7->0 7->1 7->2 7->3"},
      {Dense(4, 4, 1), Dense(0, 2, 1, 2), "[4,5,6,7]", "[0,1]", "7->0"},
      {Dense(4, 2, 2), Dense(0, 1, 2, 2), "[4,5] [6,7]", "[0] [1]",
       "5->0 7->1"},
      {Dense(0, 2, 1, 2), Dense(4, 1, 4), "[2,3]", "[4] [5] [6] [7]",
       "3->4 3->5 3->6 3->7"},
      {Dense(2, 2, 3), Dense(0, 1, 1, 2), "[2,3] [4,5] [6,7]", "[0]",
       "3->0 5->0 7->0"},
      {Dense(16, 1, 1), Dense(0, 4, 2, 2), "[16]", "[0,1,2,3] [4,5,6,7]",
       "16->0 16->4"},
      {Dense(0, 2, 2), PipelineFirst(2, 2, 1, 1, 4), "[0,1] [2,3]",
       "[4,5] [6,7]", "1->4 3->6"},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(Lanes(SourceSide(c.encoder)), c.source);
    EXPECT_EQ(Lanes(DestinationSide(c.language)), c.destination);
    EXPECT_EQ(Pairs(c.encoder, c.language), c.pairs);
  }
}

TEST(BridgeSides, SizesAndOrderOfTheTable) {
  const BridgeSide side = *DestinationSide(Dense(8, 2, 3, 2, 2));
  EXPECT_EQ(side.tp, 2);
  EXPECT_EQ(side.cp, 2);
  EXPECT_EQ(side.dp, 3);
  std::vector<int> ranks(12);
  std::iota(ranks.begin(), ranks.end(), 8);
  EXPECT_EQ(side.ranks, ranks);
  // cp declared before tp: the table is [dp, cp, tp] all the same.
  EXPECT_EQ(Lanes(SourceSide(Grid({2, 2, 2}, {"cp", "tp", "dp"}, 0))),
            "[0,2,1,3] [4,6,5,7]");
  EXPECT_EQ(Lanes(SourceSide(Grid({3}, {"dp"}, 5))), "[5] [6] [7]");
}

TEST(BridgeSides, Refusals) {
  EXPECT_THAT(SourceSide(Grid({2, 2}, {"tp", "ep"}, 0)).status().message(),
              HasSubstr("found tp, ep"));
  EXPECT_THAT(SourceSide(Grid({2}, {"pp"}, 0)).status().message(),
              HasSubstr("more than pp"));
}

// An encoder of two stages, TP2, on ranks 0 to 3; a language model of two
// stages, TP2 CP2, on ranks 4 to 11; rank 12 in neither. Each rank of a lane
// holds the same rows.
TEST(GridBridge, CarriesATensorBetweenGrids) {
  constexpr int64_t kRows = 6, kWidth = 5;
  std::vector<float> rows(kRows * kWidth);
  std::iota(rows.begin(), rows.end(), 1.f);
  const auto body = [&](Communicator& world) -> absl::Status {
    HyperCommGrid encoder(
        "encoder",
        *RankGrid::Create({2, 1, 1, 2}, {"tp", "cp", "dp", "pp"}, 0,
                          world.size()),
        world);
    HyperCommGrid language(
        "language",
        *RankGrid::Create({2, 2, 1, 2}, {"tp", "cp", "dp", "pp"}, 4,
                          world.size()),
        world);
    MIMO_ASSIGN_OR_RETURN(const BridgeSide from, SourceSide(encoder.ranks()));
    MIMO_ASSIGN_OR_RETURN(const BridgeSide to,
                          DestinationSide(language.ranks()));
    MIMO_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> joined,
                          world.Split("bridge", {BridgeRanks(from, to)}));
    EXPECT_EQ(GridBridgeGroups(encoder, language, joined.get()).ok(),
              joined == nullptr);  // the grids have made no groups
    for (HyperCommGrid* grid : {&encoder, &language})
      for (const Names& dims : {Names{"tp"}, Names{"cp"}})
        MIMO_RETURN_IF_ERROR(grid->Create(dims).status());
    MIMO_ASSIGN_OR_RETURN(const BridgeGroups groups,
                          GridBridgeGroups(encoder, language, joined.get()));
    const int rank = world.rank();
    const bool sends = rank == 2 || rank == 3;
    const bool receives = 4 <= rank && rank < 8;
    EXPECT_EQ(joined != nullptr, sends || receives);
    EXPECT_EQ(groups.source_tp != nullptr, sends);
    EXPECT_EQ(groups.destination_tp != nullptr, receives);
    EXPECT_EQ(groups.destination_cp != nullptr, receives);
    if (joined == nullptr) return absl::OkStatus();

    MIMO_ASSIGN_OR_RETURN(
        const std::unique_ptr<Bridge> bridge,
        Bridge::Create(from, to, DefaultBridgeRouting(from, to), groups));
    const BridgePayload payload{
        .inner = kWidth, .source_rows = {kRows}, .destination_rows = {kRows}};
    std::vector<float> arrived(rows.size()), gradient(rows.size());
    MIMO_RETURN_IF_ERROR(
        bridge->Forward({payload, sends ? rows.data() : nullptr,
                         receives ? arrived.data() : nullptr},
                        Stream()));
    EXPECT_EQ(arrived == rows, receives);
    // Gradients of the two cp ranks are summed.
    MIMO_RETURN_IF_ERROR(
        bridge->Backward({payload, receives ? arrived.data() : nullptr,
                          sends ? gradient.data() : nullptr},
                         Stream()));
    for (size_t i = 0; i < rows.size() && sends; ++i)
      EXPECT_EQ(gradient[i], 2 * rows[i]);
    return absl::OkStatus();
  };
  for (const absl::Status& status : RunRanks(13, body))
    EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace mimo
