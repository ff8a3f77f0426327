#include "mimo/parallel/sum_over_ranks.h"

#include <string>
#include <vector>

#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

TEST(SumOverRanks, TextsOfAnySize) {
  const std::vector<std::vector<std::string>> cases = {
      {"a", "", std::string("b\0c", 3)}, {"", "", ""}};
  for (const std::vector<std::string>& texts : cases) {
    const auto statuses = RunRanks(3, [&](Communicator& world) {
      Allocator memory;
      const auto got = GatherTexts(&world, memory, texts[world.rank()]);
      EXPECT_TRUE(got.ok() && *got == texts);
      return got.status();
    });
    for (const absl::Status& status : statuses) EXPECT_TRUE(status.ok());
  }
}

TEST(SumOverRanks, TheFirstRanksErrorIsAllRanks) {
  const std::vector<absl::Status> own = {
      absl::OkStatus(), absl::ResourceExhaustedError("disk full"),
      absl::NotFoundError("no file"), absl::OkStatus()};
  for (const absl::Status& status : RunRanks(4, [&](Communicator& world) {
         Allocator memory;
         EXPECT_TRUE(AgreeOverRanks(&world, memory, absl::OkStatus()).ok());
         return AgreeOverRanks(&world, memory, own[world.rank()]);
       })) {
    EXPECT_EQ(status, own[1]);
  }
}

}  // namespace
}  // namespace mimo
