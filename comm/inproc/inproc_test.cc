// What inproc promises beyond the conformance suite: each difference between
// the ranks' calls is named, and no failure leaves a rank waiting.
#include "comm/inproc/inproc.h"

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;
using Call = std::function<void(Communicator&)>;
using Groups = std::vector<std::vector<int>>;

constexpr Stream kStream;
constexpr DType kF32 = DType::kFloat32;
float g_send[64], g_recv[3][64];

// Rank 2 of three makes `odd` where the others make `even`; all get the same
// message.
std::string Message(const Call& even, const Call& odd) {
  const std::vector<absl::Status> statuses =
      RunRanks(3, [&](Communicator& world) {
        world.Barrier(kStream);
        (world.rank() == 2 ? odd : even)(world);
        const absl::Status health = world.Health();
        world.Barrier(kStream);  // changes nothing
        EXPECT_EQ(world.Health(), health);
        EXPECT_FALSE(world.LastOperations().back().done);
        return absl::OkStatus();
      });
  EXPECT_EQ(statuses[0].code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(statuses[0], statuses[1]);
  EXPECT_EQ(statuses[0], statuses[2]);
  return std::string(statuses[0].message());
}

Call AllReduce(int64_t count, DType dtype, ReduceOp op) {
  return [=](Communicator& c) {
    c.AllReduce(g_send, g_recv[c.rank()], count, dtype, op, kStream);
  };
}

TEST(Inproc, NamesTheFirstDifference) {
  const Call sum = AllReduce(3, kF32, ReduceOp::kSum);
  EXPECT_EQ(Message(sum, AllReduce(4, kF32, ReduceOp::kSum)),
            "group world of ranks [0, 1, 2]: rank 0 called all_reduce(sum, 3 "
            "float32), sequence 1 "
            "but rank 2 called all_reduce(sum, 4 float32), sequence 1");
  EXPECT_THAT(Message(sum, AllReduce(3, DType::kInt32, ReduceOp::kSum)),
              HasSubstr("rank 2 called all_reduce(sum, 3 int32)"));
  EXPECT_THAT(Message(sum, AllReduce(3, kF32, ReduceOp::kMin)),
              HasSubstr("rank 2 called all_reduce(min, 3 float32)"));
  EXPECT_THAT(Message(sum, [](Communicator& c) { c.Barrier(kStream); }),
              HasSubstr("rank 2 called barrier()"));
  const auto broadcast = [](int root) {
    return [=](Communicator& c) {
      c.Broadcast(g_recv[c.rank()], 3, kF32, root, kStream);
    };
  };
  EXPECT_THAT(Message(broadcast(0), broadcast(1)),
              HasSubstr("rank 0 called broadcast(3 float32, root 0), sequence "
                        "1 but rank 2 called broadcast(3 float32, root 1)"));
}

TEST(Inproc, NamesADifferenceOfCounts) {
  const auto all_to_all = [](std::vector<int64_t> send,
                             std::vector<int64_t> recv) {
    return [=](Communicator& c) {
      c.AllToAll(g_send, send, g_recv[c.rank()], recv, kF32, kStream);
    };
  };
  const Call ones = all_to_all({1, 1, 1}, {1, 1, 1});
  EXPECT_THAT(Message(ones, all_to_all({1, 1, 1}, {1, 2, 1})),
              HasSubstr("rank 1 sends 1 elements but rank 2 receives 2"));
  EXPECT_THAT(Message(ones, all_to_all({0, 1, 1}, {1, 1, 1})),
              HasSubstr("rank 2 sends 0 elements but rank 0 receives 1"));
  EXPECT_THAT(Message(ones,
                      [](Communicator& c) {
                        c.AllToAll(g_send, g_recv[c.rank()], 1, kF32, kStream);
                      }),
              HasSubstr("rank 0 called all_to_all(uneven float32), sequence 1 "
                        "but rank 2 called all_to_all(1 float32)"));
}

TEST(Inproc, NamesADifferenceOfSplits) {
  const auto split = [](std::string name, Groups groups) {
    return [=](Communicator& c) { EXPECT_FALSE(c.Split(name, groups).ok()); };
  };
  const Call pairs = split("pairs", {{0, 1}, {2}});
  EXPECT_THAT(Message(pairs, split("pears", {{0, 1}, {2}})),
              HasSubstr("into pairs and pears"));
  EXPECT_THAT(Message(pairs, split("pairs", {{1, 0}, {2}})),
              HasSubstr("of other ranks"));
  EXPECT_THAT(Message(pairs, split("pairs", {{0, 1}})),
              HasSubstr("rank 2 called split(1 groups)"));
}

TEST(Inproc, NamesADifferenceOfTransfers) {
  const Call send = [](Communicator& c) {
    if (c.rank() == 0) c.Send(g_send, 5, kF32, 2, kStream);
    c.Barrier(kStream);
  };
  EXPECT_THAT(
      Message(send,
              [](Communicator& c) { c.Recv(g_recv[2], 6, kF32, 0, kStream); }),
      HasSubstr("rank 0 sends 5 float32 but rank 2 receives 6 float32"));
  EXPECT_THAT(Message(send,
                      [](Communicator& c) {
                        c.Recv(g_recv[2], 5, DType::kInt32, 0, kStream);
                      }),
              HasSubstr("rank 0 sends 5 float32 but rank 2 receives 5 int32"));
}

TEST(Inproc, ARankThatEndsFailsThoseThatNeedIt) {
  for (const bool exchange : {false, true}) {
    const std::vector<absl::Status> statuses =
        RunRanks(3, [&](Communicator& world) {
          if (world.rank() == 1) return absl::OkStatus();
          if (!exchange)
            world.Barrier(kStream);
          else if (world.rank() == 0)
            world.Recv(g_recv[0], 1, kF32, 1, kStream);
          return absl::OkStatus();
        });
    EXPECT_EQ(statuses[0], absl::UnavailableError(absl::StrCat(
                               "group world of ranks [0, 1, 2]: rank 0 called ",
                               exchange ? "exchange(1 transfers, first peer 1)"
                                        : "barrier()",
                               ", sequence 0 but rank 1 has left")));
    EXPECT_TRUE(statuses[1].ok());
    EXPECT_EQ(statuses[2].ok(), exchange);
  }
}

TEST(Inproc, OthersMayGoOnWithTransfersWhenARankEnds) {
  for (const absl::Status& status : RunRanks(3, [&](Communicator& world) {
         for (int i = 0; i < 100 && world.rank() < 2; ++i) {
           int got = -1;
           if (world.rank() == 0) world.Send(&i, 1, DType::kInt32, 1, kStream);
           if (world.rank() == 1) {
             world.Recv(&got, 1, DType::kInt32, 0, kStream);
             EXPECT_EQ(got, i);
           }
         }
         return absl::OkStatus();
       }))
    EXPECT_TRUE(status.ok()) << status;
}

TEST(Inproc, ABodysErrorFailsTheWorld) {
  const std::vector<absl::Status> statuses =
      RunRanks(3, [](Communicator& world) {
        if (world.rank() == 1) return absl::NotFoundError("no such file");
        world.Barrier(kStream);
        return absl::OkStatus();
      });
  EXPECT_EQ(statuses[0], absl::NotFoundError("rank 1 failed: no such file"));
  EXPECT_EQ(statuses[1], absl::NotFoundError("no such file"));
  EXPECT_EQ(statuses[2], statuses[0]);
}

// The others do not take the end of its groups, which it comes to first, for
// the reason.
TEST(Inproc, ABodysErrorIsToldByItAlone) {
  testing::internal::CaptureStderr();
  const std::vector<absl::Status> statuses =
      RunRanks(3, [](Communicator& world) {
        auto part = world.Split("part", {{{0, 1, 2}}});
        if (world.rank() == 1) {
          *part = nullptr;
          absl::SleepFor(absl::Milliseconds(300));  // several looks
          return absl::NotFoundError("no such file");
        }
        (*part)->Barrier(kStream);
        world.Barrier(kStream);
        return absl::OkStatus();
      });
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  EXPECT_EQ(statuses[0], absl::NotFoundError("rank 1 failed: no such file"));
  EXPECT_EQ(statuses[1], absl::NotFoundError("no such file"));
  EXPECT_EQ(statuses[2], statuses[0]);
}

TEST(Inproc, SumsOfHalvesAreRoundedOnce) {
  // 1 + 2^-8 + 2^-8 in bfloat16: 1 + 2^-7, but 1 when rounded at each step.
  const std::vector<absl::Status> statuses =
      RunRanks(3, [](Communicator& world) {
        const uint16_t mine = world.rank() == 0 ? 0x3f80 : 0x3b80;
        uint16_t sum = 0;
        world.AllReduce(&mine, &sum, 1, DType::kBFloat16, ReduceOp::kSum,
                        kStream);
        EXPECT_EQ(sum, 0x3f81);
        return absl::OkStatus();
      });
  EXPECT_TRUE(statuses[0].ok());
}

}  // namespace
}  // namespace mimo
