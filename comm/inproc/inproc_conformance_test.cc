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

// Under ThreadSanitizer fewer of the same: memory is not shared otherwise for
// another dtype or size.
#ifdef __SANITIZE_THREAD__
const ConformanceOptions kOptions = {
    .group_sizes = {2, 3, 8},
    .dtypes = {DType::kBFloat16, DType::kInt32},
    .counts = {0, 33},
    .large_count = 1 << 14};
constexpr int kRounds = 300;
#else
const ConformanceOptions kOptions;
constexpr int kRounds = 3000;
#endif

TEST(InprocConformance, EveryOperation) {
  ExpectAllOk(RunRanks(8, [](Communicator& world) {
    return CheckConformance(world, Stream{}, kOptions);
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
      return CheckRandomOperations(world, Stream{}, kRounds, 3);
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
