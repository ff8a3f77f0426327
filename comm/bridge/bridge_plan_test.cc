#include "comm/bridge/bridge_plan.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/bridge/bridge_testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// What the ranks of a lane hold in the simulation: the packed lane, with its
// shares in full.
using Line = std::vector<int64_t>;

// Moves the data of one direction as the plan says, between packed lanes in
// ordinary memory, and returns what each rank of `to` holds at the end. `value`
// is what rank `from` sends for an element of the line.
template <typename F>
std::map<int, Line> Simulate(const BridgePlan& plan, bool backward, F&& value) {
  const auto& from = backward ? plan.destination : plan.source;
  const auto& to = backward ? plan.source : plan.destination;
  std::map<int, int> lane_of_sender, lane_of_receiver;
  for (size_t i = 0; i < from.size(); ++i) {
    for (int rank : from[i].ranks) lane_of_sender[rank] = i;
  }
  std::map<int, Line> held;
  for (size_t i = 0; i < to.size(); ++i) {
    for (int rank : to[i].ranks) {
      lane_of_receiver[rank] = i;
      held[rank].assign(
          std::max(to[i].count, to[i].share * int64_t(to[i].ranks.size())), -1);
    }
  }
  for (const BridgeMessage& m : backward ? plan.backward : plan.forward) {
    EXPECT_GT(m.count, 0);
    const BridgeLane& source = from[lane_of_sender.at(m.from)];
    const BridgeLane& destination = to[lane_of_receiver.at(m.to)];
    EXPECT_GE(m.begin, source.begin);
    EXPECT_LE(m.begin + m.count, source.begin + source.count);
    EXPECT_GE(m.begin, destination.begin);
    EXPECT_LE(m.begin + m.count, destination.begin + destination.count);
    const BridgePiece& piece = plan.pieces[m.piece];
    const int64_t row_elements = plan.outer * plan.inner;
    EXPECT_GE(m.begin, piece.first_row * row_elements);
    EXPECT_LE(m.begin + m.count, (piece.first_row + piece.rows) * row_elements);
    for (int64_t i = 0; i < m.count; ++i) {
      int64_t& cell = held[m.to][m.begin + i - destination.begin];
      EXPECT_EQ(cell, -1) << "received twice";
      cell = value(m.from, m.begin + i);
    }
  }
  for (const BridgeLane& lane : to) {
    if (lane.direct) continue;
    const int size = lane.ranks.size();
    Line whole(lane.count);
    for (int64_t i = 0; i < lane.count; ++i) {
      const int owner = plan.routing == BridgeRouting::kShared ? i / lane.share
                        : backward                             ? size - 1
                                                               : 0;
      whole[i] = held[lane.ranks[owner]][i];
    }
    for (int rank : lane.ranks) held[rank] = whole;
  }
  return held;
}

void ExpectDelivers(const BridgePlan& plan) {
  for (bool backward : {false, true}) {
    const auto held =
        Simulate(plan, backward, [](int, int64_t element) { return element; });
    for (const BridgeLane& lane : backward ? plan.source : plan.destination) {
      for (int rank : lane.ranks) {
        for (int64_t i = 0; i < lane.count; ++i) {
          ASSERT_EQ(held.at(rank)[i], lane.begin + i) << "rank " << rank << "\n"
                                                      << plan.ToString();
        }
      }
    }
  }
}

std::vector<std::pair<int, int>> Pairs(
    const std::vector<BridgeMessage>& messages) {
  std::vector<std::pair<int, int>> pairs;
  for (const BridgeMessage& m : messages) pairs.push_back({m.from, m.to});
  return pairs;
}

TEST(BridgePlan, SharesMeetOneToOneWhenBothSidesAreAlike) {
  // tp2 -> tp2: each pair of ranks carries half, over its own link.
  const auto plan =
      PlanBridge(Stage(0, 1, 1, 2), Stage(2, 1, 1, 2),
                 {.inner = 64, .source_rows = {8}, .destination_rows = {8}},
                 BridgeRouting::kShared);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(plan->forward, ElementsAre(BridgeMessage{0, 2, 0, 0, 256},
                                         BridgeMessage{1, 3, 0, 256, 256}));
  EXPECT_THAT(plan->backward, ElementsAre(BridgeMessage{2, 0, 0, 0, 256},
                                          BridgeMessage{3, 1, 0, 256, 256}));
}

TEST(BridgePlan, TwoLanesToThree) {
  const auto plan = PlanBridge(
      Stage(0, 2, 1, 1), Stage(2, 3, 1, 1),
      {.inner = 4, .source_rows = {3, 3}, .destination_rows = {2, 2, 2}},
      BridgeRouting::kShared);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(plan->forward, ElementsAre(BridgeMessage{0, 2, 0, 0, 8},
                                         BridgeMessage{0, 3, 1, 8, 4},
                                         BridgeMessage{1, 3, 2, 12, 4},
                                         BridgeMessage{1, 4, 3, 16, 8}));
  EXPECT_EQ(plan->ToString(),
            "bridge, shared routing: [1, 6, 4] from 2 lanes of 1 ranks to 3 of "
            "1\n"
            "forward\n"
            "  rank 0 (source lane 0, rows [0, 3)) sends [0, 8) to 2, [8, 12) "
            "to 3\n"
            "  rank 1 (source lane 1, rows [3, 6)) sends [0, 4) to 3, [4, 12) "
            "to 4\n"
            "  rank 2 (destination lane 0, rows [0, 2)) receives [0, 8) from "
            "0\n"
            "  rank 3 (destination lane 1, rows [2, 4)) receives [0, 4) from "
            "0, [4, 8) from 1\n"
            "  rank 4 (destination lane 2, rows [4, 6)) receives [0, 8) from "
            "1\n"
            "backward\n"
            "  rank 2 (destination lane 0, rows [0, 2)) sends [0, 8) to 0\n"
            "  rank 3 (destination lane 1, rows [2, 4)) sends [0, 4) to 0, [4, "
            "8) to 1\n"
            "  rank 4 (destination lane 2, rows [4, 6)) sends [0, 8) to 1\n"
            "  rank 0 (source lane 0, rows [0, 3)) receives [0, 8) from 2, [8, "
            "12) from 3\n"
            "  rank 1 (source lane 1, rows [3, 6)) receives [0, 4) from 3, [4, "
            "12) from 4\n");
}

TEST(BridgePlan, DirectRoutingSpreadsTheHolders) {
  // tp2dp4 -> tp4dp2 on eight ranks: the groups [0,2] [1,3] [4,6] [5,7].
  const auto plan = PlanBridge(
      Stage(0, 4, 1, 2), Stage(0, 2, 1, 4),
      {.inner = 4, .source_rows = {1, 1, 1, 1}, .destination_rows = {2, 2}},
      BridgeRouting::kDirect);
  ASSERT_TRUE(plan.ok()) << plan.status();
  std::set<std::pair<int, int>> apart;
  for (auto [from, to] : Pairs(plan->forward)) {
    if (from != to) apart.insert(std::minmax(from, to));
  }
  EXPECT_THAT(apart, ElementsAre(std::pair(0, 2), std::pair(1, 3),
                                 std::pair(4, 6), std::pair(5, 7)));
  ExpectDelivers(*plan);
  // The gradient of each rank's lane lies whole on that rank.
  for (const BridgeMessage& m : plan->backward) EXPECT_EQ(m.from, m.to);
}

TEST(BridgePlan, RanksThatHoldTheirLaneGatherNothing) {
  const BridgePayload payload{
      .inner = 64, .source_rows = {8}, .destination_rows = {8}};
  // tp2 to one of them: it keeps its copy, and gives the other the gradient.
  auto plan = PlanBridge(Stage(0, 1, 1, 2), Stage(1, 1, 1, 1), payload,
                         BridgeRouting::kShared);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->ToString(),
            "bridge, shared routing: [1, 8, 64] from 1 lanes of 2 ranks to 1 "
            "of 1\n"
            "forward\n"
            "  rank 0 (source lane 0, rows [0, 8)) sends nothing\n"
            "  rank 1 (source lane 0, rows [0, 8)) sends [0, 512) to itself\n"
            "  rank 1 (destination lane 0, rows [0, 8)) receives [0, 512) from "
            "itself\n"
            "backward\n"
            "  rank 1 (destination lane 0, rows [0, 8)) sends [0, 512) to "
            "itself, [0, 512) to 0\n"
            "  rank 0 (source lane 0, rows [0, 8)) receives [0, 512) from 1\n"
            "  rank 1 (source lane 0, rows [0, 8)) receives [0, 512) from "
            "itself\n");
  // To two of four, shifted: both holders give the third a half.
  plan = PlanBridge(Stage(0, 1, 1, 2), Stage(1, 1, 1, 2), payload,
                    BridgeRouting::kShared);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(plan->forward, ElementsAre(BridgeMessage{1, 1, 0, 0, 512},
                                         BridgeMessage{0, 2, 0, 0, 256},
                                         BridgeMessage{1, 2, 0, 256, 256}));
  // One rank to itself and three others: it would send all of it thrice, so
  // shares it is.
  plan = PlanBridge(Stage(0, 1, 1, 1), Stage(0, 1, 1, 4), payload,
                    BridgeRouting::kShared);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(plan->forward, ElementsAre(BridgeMessage{0, 0, 0, 0, 128},
                                         BridgeMessage{0, 1, 0, 128, 128},
                                         BridgeMessage{0, 2, 0, 256, 128},
                                         BridgeMessage{0, 3, 0, 384, 128}));
  // Parts of a sum over cp are held by nobody.
  plan = PlanBridge(Stage(0, 1, 1, 2), Stage(0, 1, 2, 1), payload,
                    BridgeRouting::kShared);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(plan->destination[0].direct);
  EXPECT_FALSE(plan->source[0].direct);
}

// What goes over links to the lanes that gather, or to the others.
struct Load {
  int64_t total = 0;
  std::map<int, int64_t> sent, received;  // by rank; copies too
};
Load LoadOf(const BridgePlan& plan, bool backward, bool direct) {
  Load load;
  for (const BridgeMessage& m : backward ? plan.backward : plan.forward) {
    const BridgePiece& piece = plan.pieces[m.piece];
    const BridgeLane& to = backward ? plan.source[piece.source]
                                    : plan.destination[piece.destination];
    if (to.direct != direct) continue;
    load.total += m.count;
    if (m.from != m.to || !direct) load.sent[m.from] += m.count;
    load.received[m.to] += m.count;
  }
  return load;
}

TEST(BridgePlan, RandomLayoutsDeliverEachElementOnce) {
  std::mt19937 random(1);
  for (int round = 0; round < 4000; ++round) {
    const BridgeCase c = RandomBridgeCase(random);
    SCOPED_TRACE(absl::StrCat("round ", round));
    const auto plan = PlanBridge(c.source, c.destination, c.payload, c.routing);
    ASSERT_TRUE(plan.ok()) << plan.status();
    ExpectDelivers(*plan);
    const int64_t unit = 16 / SizeOf(c.payload.dtype);
    for (const bool backward : {false, true}) {
      const auto& from = backward ? plan->destination : plan->source;
      const auto& to = backward ? plan->source : plan->destination;
      // Each rank of a direct lane receives what it lacks, once, and what it
      // has, by a copy.
      Load direct = LoadOf(*plan, backward, true);
      int64_t most = 0;
      for (const BridgeLane& lane : to) {
        if (!lane.direct) continue;
        most += lane.count;
        for (int rank : lane.ranks) {
          EXPECT_EQ(direct.received[rank], lane.count);
        }
      }
      if (c.routing == BridgeRouting::kDirect) continue;
      for (const auto& [rank, count] : direct.sent) {
        EXPECT_LE(count, most + unit * to.size()) << plan->ToString();
      }
      // To the others goes each element once.
      Load shared = LoadOf(*plan, backward, false);
      for (const BridgeLane& lane : to) {
        if (!lane.direct) shared.total -= lane.count;
      }
      EXPECT_EQ(shared.total, 0) << plan->ToString();
      if (c.routing == BridgeRouting::kLeader) continue;
      // No rank carries more than its share: an equal part, rounded up to whole
      // units of 16 bytes.
      for (const auto* lanes : {&from, &to}) {
        auto& carried = lanes == &from ? shared.sent : shared.received;
        for (const BridgeLane& lane : *lanes) {
          const int64_t size = lane.ranks.size();
          for (int rank : lane.ranks) {
            EXPECT_LE(carried[rank], (lane.count + size - 1) / size + unit - 1);
          }
        }
      }
    }
  }
}

TEST(BridgePlan, RoutingByDefault) {
  EXPECT_EQ(DefaultBridgeRouting(Stage(0, 4, 1, 2), Stage(0, 2, 2, 2)),
            BridgeRouting::kDirect);
  EXPECT_EQ(DefaultBridgeRouting(Stage(0, 4, 1, 2), Stage(4, 2, 2, 2)),
            BridgeRouting::kShared);
  EXPECT_THAT(BridgeRanks(Stage(2, 1, 1, 2), Stage(0, 1, 1, 3)),
              ElementsAre(0, 1, 2, 3));
}

TEST(BridgePlan, RowsOfSamples) {
  EXPECT_THAT(*RowsOfLanes({1, 3, 2}, 3), ElementsAre(1, 3, 2));
  EXPECT_THAT(*RowsOfLanes({0, 3, 1, 2}, 2), ElementsAre(3, 3));
  EXPECT_THAT(*RowsOfLanes({1, 5}, 1), ElementsAre(6));
  EXPECT_THAT(*RowsOfLanes({}, 2), ElementsAre(0, 0));
  EXPECT_THAT(RowsOfLanes({1, 2, 3}, 2).status().message(),
              HasSubstr("row counts of 3 samples, but 2 lanes"));
  EXPECT_FALSE(RowsOfLanes({1}, 0).ok());
  EXPECT_THAT(NearEqualRows(11, 4), ElementsAre(3, 3, 3, 2));
}

TEST(BridgePlan, Errors) {
  const auto message = [](const BridgeSide& source,
                          const BridgeSide& destination,
                          const BridgePayload& payload, BridgeRouting routing) {
    return std::string(
        PlanBridge(source, destination, payload, routing).status().message());
  };
  const BridgePayload good{.source_rows = {6}, .destination_rows = {6}};
  const BridgeSide one = Stage(0, 1, 1, 1), two = Stage(1, 1, 1, 1);
  using enum BridgeRouting;
  EXPECT_EQ(message(one, two, good, kShared), "");
  EXPECT_EQ(message({2, 1, 1, {0}}, two, good, kShared),
            "bridge source: 1 ranks, wanted dp 2 x cp 1 x tp 1");
  EXPECT_EQ(message(one, {1, 0, 1, {}}, good, kShared),
            "bridge destination: dp 1 x cp 0 x tp 1, wanted at least 1 of "
            "each");
  EXPECT_EQ(message({1, 1, 2, {3, 3}}, two, good, kShared),
            "bridge source: rank 3 stands twice, wanted once");
  EXPECT_EQ(message({1, 1, 1, {-2}}, two, good, kShared),
            "bridge source: rank -2, wanted >= 0");
  EXPECT_EQ(message(one, two, good, kDirect),
            "bridge: direct routing from ranks 0 to 1, wanted the same ranks "
            "on both sides");
  EXPECT_EQ(message(one, Stage(1, 1, 2, 1), good, kLeader),
            "bridge: leader routing with cp 1 at the source and 2 at the "
            "destination, wanted 1");
  EXPECT_EQ(message(Stage(0, 2, 1, 1), Stage(2, 3, 1, 1), good, kLeader),
            "bridge: leader routing from dp 2 to dp 3, which must be evenly "
            "divisible");
  EXPECT_EQ(message(one, two, {.source_rows = {2, 2}, .destination_rows = {4}},
                    kShared),
            "bridge source: 2 row counts, wanted one for each of 1 lanes");
  EXPECT_EQ(
      message(one, two, {.source_rows = {4}, .destination_rows = {6}}, kShared),
      "bridge: the source lanes hold 4 rows in all, the destination lanes "
      "want 6");
  EXPECT_EQ(message(one, two, {.source_rows = {-1}, .destination_rows = {-1}},
                    kShared),
            "bridge source: -1 rows in lane 0, wanted >= 0");
  EXPECT_EQ(message(one, two,
                    {.outer = 0, .source_rows = {1}, .destination_rows = {1}},
                    kShared),
            "bridge payload [0, rows, 1], wanted sizes of at least 1");
}

}  // namespace
}  // namespace mimo
