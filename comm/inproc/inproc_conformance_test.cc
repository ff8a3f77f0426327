// inproc under the suite that all communicators pass.
#include <atomic>

#include "absl/status/status.h"
#include "comm/inproc/inproc.h"
#include "comm/testing/conformance.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

void ExpectAllOk(const std::vector<absl::Status>& statuses) {
  for (size_t rank = 0; rank < statuses.size(); ++rank)
    EXPECT_TRUE(statuses[rank].ok()) << rank << ": " << statuses[rank];
}

TEST(InprocConformance, EveryOperation) {
  ExpectAllOk(RunRanks(8, [](Communicator& world) {
    return CheckConformance(world, Stream{});
  }));
}

TEST(InprocConformance, WorldsOfOtherSizes) {
  for (const int size : {1, 3, 5})
    ExpectAllOk(RunRanks(size, [size](Communicator& world) {
      return CheckConformance(world, Stream{},
                              {.group_sizes = {1, 2, size},
                               .counts = {0, 17},
                               .large_count = 0,
                               .seed = 2});
    }));
}

TEST(InprocConformance, RandomOperations) {
  for (const int size : {2, 5})
    ExpectAllOk(RunRanks(size, [](Communicator& world) {
      return CheckRandomOperations(world, Stream{}, kFewer ? 300 : 3000, 3);
    }));
}

TEST(InprocConformance, NobodyLeavesABarrierBeforeTheLastHasEntered) {
  constexpr int kRanks = 4;
  std::atomic<int> entered = 0;
  ExpectAllOk(RunRanks(kRanks, [&](Communicator& world) {
    for (int i = 1; i <= 2000; ++i) {
      ++entered;
      world.Barrier(Stream{});
      EXPECT_GE(entered, i * kRanks);
    }
    return absl::OkStatus();
  }));
}

}  // namespace
}  // namespace mimo
