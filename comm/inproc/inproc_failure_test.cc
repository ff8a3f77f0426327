// Ranks that hang or go other ways: seen by the others or by the watchdogs.
#include <algorithm>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/barrier.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "comm/inproc/inproc.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr absl::Duration kTimeout = absl::Seconds(1);
constexpr DType kF32 = DType::kFloat32;

// Runs `body` on ranks that, by it, never get on. Their watchdogs must let them
// go after about the timeout; returns their Health.
std::vector<std::string> Stuck(int size,
                               const std::function<void(Communicator&)>& body) {
  absl::Barrier all(size);
  std::vector<std::string> healths(size);
  RunRanks(
      size,
      [&](Communicator& world) {
        world.Barrier(Stream{});
        const absl::Time start = absl::Now();
        body(world);
        while (world.Health().ok()) absl::SleepFor(absl::Milliseconds(1));
        const absl::Duration waited = absl::Now() - start;
        EXPECT_GT(waited, kTimeout / 2);
        EXPECT_LT(waited, 3 * kTimeout);  // a loaded machine may be late
        EXPECT_EQ(world.Health().code(), absl::StatusCode::kDeadlineExceeded);
        healths[world.rank()] = std::string(world.Health().message());
        all.Block();  // a rank that ends would be a reason too
        return absl::OkStatus();
      },
      kTimeout);
  return healths;
}

TEST(InprocFailure, ARankThatNeverCallsIsNamed) {
  const std::vector<std::string> healths = Stuck(3, [](Communicator& world) {
    float x[4] = {};
    if (world.rank() != 1)
      world.AllReduce(x, x, 4, kF32, ReduceOp::kSum, Stream{});
  });
  for (const int rank : {0, 2})
    EXPECT_THAT(healths[rank],
                HasSubstr("all_reduce(sum, 4 float32), sequence 1 in group "
                          "world of ranks [0, 1, 2] does not end; missing: "
                          "rank 1 (done with barrier(), sequence 0)"));
  EXPECT_THAT(healths[1], HasSubstr("all_reduce(sum, 4 float32), sequence 1"));
}

TEST(InprocFailure, TwoGroupsInTwoOrders) {
  const std::vector<std::string> healths = Stuck(2, [](Communicator& world) {
    const std::vector<std::vector<int>> both = {{0, 1}};
    auto a = world.Split("a", both), b = world.Split("b", both);
    (world.rank() == 0 ? *a : *b)->Barrier(Stream{});
    for (Communicator* each : {a->get(), b->get(), &world})  // all fail
      while (each->Health().ok()) absl::SleepFor(absl::Milliseconds(1));
  });
  const std::string stuck = " of ranks [0, 1] does not end; rank ";
  EXPECT_THAT(healths[0], HasSubstr(absl::StrCat(
                              "rank 0: barrier(), sequence 0 in group a", stuck,
                              "1 is in barrier(), sequence 0 in group b")));
  EXPECT_THAT(healths[1], HasSubstr(absl::StrCat(
                              "rank 1: barrier(), sequence 0 in group b", stuck,
                              "0 is in barrier(), sequence 0 in group a")));
}

TEST(InprocFailure, SendsThatWaitForEachOther) {
  const std::vector<std::string> healths = Stuck(2, [](Communicator& world) {
    const float x = 1;
    world.Send(&x, 1, kF32, 1 - world.rank(), Stream{});
  });
  for (const std::string& health : healths)
    EXPECT_THAT(health, AllOf(HasSubstr("exchange(1 transfers, first peer "),
                              HasSubstr(" is in exchange(1 transfers, first")));
}

TEST(InprocFailure, ATransferAgainstACollective) {
  const std::vector<std::string> healths = Stuck(2, [](Communicator& world) {
    float x = 1;
    if (world.rank() == 0)
      world.Recv(&x, 1, kF32, 1, Stream{});
    else
      world.Broadcast(&x, 1, kF32, 0, Stream{});
  });
  EXPECT_THAT(healths[0],
              AnyOf(HasSubstr("rank 1 is in broadcast(1 float32, root 0)"),
                    HasSubstr("rank 0 is in exchange(1 transfers")));
}

// At a random place in a loop of operations, one rank makes another call, ends
// or fails its communicator. All come back, and every sum before is right.
TEST(InprocFailure, AtRandomPlaces) {
  for (int round = 0; round < 200; ++round) {
    std::mt19937_64 random(round);
    const int size = 2 + random() % 4, culprit = random() % size,
              place = random() % 50, kind = random() % 3;
    const std::vector<absl::Status> statuses =
        RunRanks(size, [&](Communicator& world) {
          for (int i = 0; i < 60; ++i) {
            if (i == place && world.rank() == culprit) {
              if (kind == 0) world.Barrier(Stream{});
              if (kind == 1) return absl::OkStatus();
              if (kind == 2) world.Abort(absl::AbortedError("enough"));
            }
            int64_t x[300];
            std::fill_n(x, 300, i + world.rank());
            world.AllReduce(x, x, 300, DType::kInt64, ReduceOp::kSum, Stream{});
            if (!world.Health().ok()) break;
            EXPECT_LT(i, place);
            EXPECT_EQ(std::count(x, x + 300, size * i + size * (size - 1) / 2),
                      300);
          }
          return absl::OkStatus();
        });
    const absl::StatusCode wanted[] = {absl::StatusCode::kFailedPrecondition,
                                       absl::StatusCode::kUnavailable,
                                       absl::StatusCode::kAborted};
    for (int rank = 0; rank < size; ++rank) {
      if (kind == 1 && rank == culprit) continue;
      EXPECT_EQ(statuses[rank].code(), wanted[kind]) << statuses[rank];
    }
  }
}

}  // namespace
}  // namespace mimo
