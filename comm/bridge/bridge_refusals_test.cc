// What a bridge refuses, and what becomes of ranks that disagree.
#include <string>

#include "comm/bridge/bridge.h"
#include "comm/bridge/bridge_testing.h"
#include "comm/inproc/inproc.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;

TEST(BridgeRefusals, Errors) {
  const BridgeSide source = Stage(0, 1, 1, 2), destination = Stage(2, 1, 1, 1);
  const auto results = RunRanks(3, [&](Communicator& world) -> absl::Status {
    MIMO_ASSIGN_OR_RETURN(auto made, MakeBridge(world, source, destination,
                                                BridgeRouting::kShared));
    // Totals that differ: an error on all ranks, and the bridge goes on.
    const BridgePayload wrong{.source_rows = {2}, .destination_rows = {3}};
    EXPECT_THAT(
        std::string(made.bridge->Forward({wrong, nullptr, nullptr}, Stream())
                        .message()),
        HasSubstr("hold 2 rows in all, the destination lanes want 3"));
    // Groups that are not those of the tables.
    BridgeGroups groups{.bridge = &world};
    const absl::Status no_tp =
        Bridge::Create(source, destination, BridgeRouting::kShared, groups)
            .status();
    EXPECT_EQ(no_tp.ok(), world.rank() == 2);
    if (world.rank() < 2) {
      EXPECT_THAT(std::string(no_tp.message()),
                  HasSubstr("tp group is of ranks (none), wanted 0,1"));
    }
    EXPECT_THAT(std::string(Bridge::Create(Stage(0, 1, 1, 1), destination,
                                           BridgeRouting::kShared, groups)
                                .status()
                                .message()),
                HasSubstr("its group is of ranks 0,1,2, wanted 0,2"));
    return absl::OkStatus();
  });
  for (const absl::Status& s : results) EXPECT_TRUE(s.ok()) << s;
}

// A module that computes in another dtype must convert first.
TEST(BridgeRefusals, ADifferenceOfDtypesIsNamed) {
  const auto results = RunRanks(2, [](Communicator& world) -> absl::Status {
    MIMO_ASSIGN_OR_RETURN(
        auto made, MakeBridge(world, Stage(0, 1, 1, 1), Stage(1, 1, 1, 1),
                              BridgeRouting::kShared));
    const bool source = world.rank() == 0;
    const BridgePayload payload{
        .inner = 4,
        .source_rows = {2},
        .destination_rows = {2},
        .dtype = source ? DType::kFloat32 : DType::kBFloat16};
    float buffer[8] = {};
    MIMO_RETURN_IF_ERROR(made.bridge->Forward(
        {payload, source ? buffer : nullptr, source ? nullptr : buffer},
        Stream()));
    return made.all->Health();
  });
  for (const absl::Status& s : results) {
    EXPECT_EQ(s.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(s.message()),
                HasSubstr("rank 0 sends 8 float32 but rank 1 receives 8 "
                          "bfloat16"));
  }
}

TEST(BridgeRefusalsDeathTest, BuffersOfARankThatIsNotOnThatSide) {
  const auto die = [](bool backward, bool send) {
    RunRanks(2, [&](Communicator& world) -> absl::Status {
      MIMO_ASSIGN_OR_RETURN(
          auto made, MakeBridge(world, Stage(0, 1, 1, 1), Stage(1, 1, 1, 1),
                                BridgeRouting::kShared));
      const BridgePayload payload{.source_rows = {1}, .destination_rows = {1}};
      float x = 0, y = 0;
      const Bridge::Pass pass{payload,
                              send || world.rank() == backward ? &x : nullptr,
                              !send || world.rank() != backward ? &y : nullptr};
      return backward ? made.bridge->Backward(pass, Stream())
                      : made.bridge->Forward(pass, Stream());
    });
  };
  const std::string source = "rank 1 is not in the source grid",
                    destination = "rank 0 is not in the destination grid";
  EXPECT_DEATH(die(false, true), source);
  EXPECT_DEATH(die(false, false), destination);
  EXPECT_DEATH(die(true, true), destination);
  EXPECT_DEATH(die(true, false), source);
}

}  // namespace
}  // namespace mimo
