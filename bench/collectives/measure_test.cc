#include "bench/collectives/measure.h"

#include <string>
#include <vector>

#include "comm/inproc/inproc.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;

// Bytes that a rank must send in a schedule without waste, counted move by
// move, as a share of S: the largest of any rank.
TEST(BusFactor, IsTheBusiestLinkOfARing) {
  for (const int n : {2, 3, 4, 8}) {
    // Each of n parts goes n - 1 steps along the ring, in every step from
    // another rank; an all-reduce does that twice.
    std::vector<double> sent(n);
    for (int part = 0; part < n; ++part)
      for (int step = 0; step < n - 1; ++step)
        sent[(part + step) % n] += 1.0 / n;
    for (const double share : sent) {
      EXPECT_DOUBLE_EQ(BusFactor(Collective::kAllGather, n), share);
      EXPECT_DOUBLE_EQ(BusFactor(Collective::kReduceScatter, n), share);
      EXPECT_DOUBLE_EQ(BusFactor(Collective::kAllToAll, n), share);
      EXPECT_DOUBLE_EQ(BusFactor(Collective::kAllReduce, n), 2 * share);
    }
    EXPECT_EQ(BusFactor(Collective::kBroadcast, n), 1);
    EXPECT_EQ(BusFactor(Collective::kSendRecv, n), 1);
    EXPECT_EQ(BusFactor(Collective::kExchange, n), 1);
  }
}

// The calls made are those named, as the communicator records them, and as many
// of each contender; their sizes are `bytes` of the larger buffer.
TEST(Measure, MakesTheCallsItNames) {
  constexpr int64_t kBytes = 9 * 8 * 64;
  for (const int ranks : {1, 2, 3})
    for (const Collective what : kCollectives) {
      SCOPED_TRACE(std::string(Name(what)) + " of " + std::to_string(ranks));
      const auto body = [&](Communicator& world) -> absl::Status {
        int first = 0, second = 0;
        const RunCollective run = OperationsOf(world);
        const auto counted = [&](int& calls) {
          return [&](Collective what, const void* send, void* recv,
                     int64_t count, DType dtype, Stream stream) {
            ++calls;
            run(what, send, recv, count, dtype, stream);
            const bool gathers = what == Collective::kAllGather ||
                                 what == Collective::kReduceScatter ||
                                 what == Collective::kAllToAll;
            EXPECT_EQ(count * (gathers ? ranks : 1), kBytes / 8);
            const Operation last = world.LastOperations().back();
            const bool idle = ranks == 1 && (what == Collective::kSendRecv ||
                                             what == Collective::kExchange);
            const bool third = ranks == 3 && world.rank() == 2 &&
                               what == Collective::kSendRecv;
            if (idle || third) return;
            const std::string name(what == Collective::kSendRecv ? "exchange"
                                                                 : Name(what));
            EXPECT_THAT(last.ToString(), HasSubstr(name));
          };
        };
        MIMO_ASSIGN_OR_RETURN(
            const std::vector<Timing> timings,
            Measure(world, Stream(), what, kBytes, DType::kFloat64, 1e-3,
                    {{"a", counted(first)}, {"b", counted(second)}}));
        EXPECT_EQ(timings.size(), 2u);
        for (const Timing& t : timings) {
          EXPECT_GT(t.us, 0);
          EXPECT_GE(t.enqueue_us, 0);
        }
        EXPECT_GE(first, 9);  // warm, pilot, five rounds
        EXPECT_EQ(first, second);
        return absl::OkStatus();
      };
      for (const absl::Status& status : RunRanks(ranks, body))
        EXPECT_TRUE(status.ok()) << status;
    }
}

TEST(Measure, AFailureEndsIt) {
  const auto results = RunRanks(2, [](Communicator& world) -> absl::Status {
    const RunCollective run = OperationsOf(world);
    int calls = 0;
    return Measure(world, Stream(), Collective::kAllReduce, 64, DType::kFloat32,
                   1e-3,
                   {{"bad",
                     [&](Collective what, const void* send, void* recv,
                         int64_t count, DType dtype, Stream stream) {
                       const bool differs = ++calls == 3 && world.rank() == 1;
                       run(what, send, recv, differs ? count - 1 : count, dtype,
                           stream);
                     }}})
        .status();
  });
  for (const absl::Status& status : results)
    EXPECT_THAT(status.message(), HasSubstr("all_reduce"));
}

}  // namespace
}  // namespace mimo
