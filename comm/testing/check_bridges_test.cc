#include "comm/testing/check_bridges.h"

#include "comm/inproc/inproc.h"
#include "comm/testing/conformance.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

TEST(CheckBridges, OverThreads) {
  for (int size = 1; size <= (kFewer ? 3 : 4); ++size) {
    for (const absl::Status& status : RunRanks(size, [](Communicator& world) {
           return CheckBridges(world, Stream{});
         }))
      EXPECT_TRUE(status.ok()) << size << " ranks: " << status;
  }
}

}  // namespace
}  // namespace mimo
