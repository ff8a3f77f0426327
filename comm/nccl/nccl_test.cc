// NCCL's ranks: processes of this machine, one a GPU or, of conformance and
// bridges, sharing them.
#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <numeric>
#include <random>
#include <vector>

#include "absl/log/globals.h"
#include "absl/log/initialize.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/substitute.h"
#include "absl/time/clock.h"
#include "comm/nccl/nccl_communicator.h"
#include "comm/testing/check_bridges.h"
#include "comm/testing/conformance.h"
#include "comm/testing/device_buffer.h"
#include "comm/testing/gpus.h"
#include "comm/testing/rank_processes.h"
#include "gtest/gtest.h"
#include "kernels/base/device.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(2);
constexpr absl::Duration kStart = absl::Seconds(60);
constexpr absl::Duration kLong = absl::Seconds(300);

// 7 * i + scale, of element i.
std::vector<int32_t> Pattern(int64_t count, int32_t scale) {
  std::vector<int32_t> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = 7 * i + scale;
  return values;
}

absl::Status ConformanceBody(const Job& job, Store& store) {
  MIMO_ASSIGN_OR_RETURN(const auto world, ConnectNccl(OnGpu(job), store));
  const Stream stream = NewStream(Device::kCuda);
  MIMO_RETURN_IF_ERROR(CheckConformance(*world, stream));
  return CheckRandomOperations(*world, stream, 300, job.world_size);
}

absl::Status BridgesBody(const Job& job, Store& store) {
  MIMO_ASSIGN_OR_RETURN(const auto world, ConnectNccl(OnGpu(job), store));
  return CheckBridges(*world, NewStream(Device::kCuda));
}

// A graph of two collectives, replayed on other values.
absl::Status CaptureBody(const Job& job, Store& store) {
  MIMO_ASSIGN_OR_RETURN(const auto world, ConnectNccl(job, store));
  const Stream stream = NewStream(Device::kCuda);
  constexpr int64_t kCount = 100'003;
  DeviceBuffer in(stream), out(stream);
  int32_t* const x = in.Set(Pattern(kCount, 0));
  int32_t* const gathered = out.Poison<int32_t>(kCount * world->size());
  const auto run = [&] {
    world->AllReduce(x, x, kCount, DType::kInt32, ReduceOp::kMax, stream);
    world->AllGather(x, gathered, kCount, DType::kInt32, stream);
  };
  run();
  Synchronize(stream);
  BeginCapture(stream);
  run();
  const std::shared_ptr<void> graph = EndCapture(stream);
  for (int step = 1; step <= 50; ++step) {
    in.Set(Pattern(kCount, 1000 * step + world->rank()));
    Replay(graph, stream);
    const std::vector<int32_t> want =
        Pattern(kCount, 1000 * step + world->size() - 1);
    const std::vector<int32_t> found = out.Get<int32_t>();
    for (int64_t i = 0; i < kCount * world->size(); ++i) {
      if (found[i] != want[i % kCount])
        return absl::InternalError(absl::StrCat("replay ", step, ", element ",
                                                i, ": found ", found[i],
                                                ", wanted ", want[i % kCount]));
    }
  }
  world->Barrier(stream);
  for (const Operation& operation : world->LastOperations()) {
    if (!operation.done)
      return absl::InternalError(
          absl::StrCat("not done: ", operation.ToString()));
  }
  return world->Health();
}

// Many times more operations than there are events, on two streams and with
// groups of one rank, without a host wait.
absl::Status RunAheadBody(const Job& job, Store& store) {
  MIMO_ASSIGN_OR_RETURN(const auto world,
                        ConnectNccl(job, store, {.timeout = kTimeout}));
  std::vector<std::vector<int>> singles;
  for (int rank = 0; rank < world->size(); ++rank) singles.push_back({rank});
  MIMO_ASSIGN_OR_RETURN(const auto own, world->Split("own", singles));
  MIMO_ASSIGN_OR_RETURN(const auto pair, world->Split("pair", {{{1, 0}}}));
  if ((pair == nullptr) != (world->rank() > 1))
    return absl::InternalError("a rank outside of a group has it");
  const Stream streams[] = {NewStream(Device::kCuda), NewStream(Device::kCuda)};
  constexpr int64_t kCount = 1000;
  DeviceBuffer of_world(streams[0]), of_own(streams[1]);
  int32_t* const x = of_world.Set(Pattern(kCount, 1));
  int32_t* const y = of_own.Set(Pattern(kCount, 2));
  for (int i = 0; i < 10'000; ++i) {
    world->AllReduce(x, x, kCount, DType::kInt32, ReduceOp::kMax, streams[0]);
    own->AllReduce(y, y, kCount, DType::kInt32, ReduceOp::kSum, streams[1]);
  }
  if (of_world.Get<int32_t>() != Pattern(kCount, 1) ||
      of_own.Get<int32_t>() != Pattern(kCount, 2))
    return absl::InternalError("wrong values");
  MIMO_RETURN_IF_ERROR(own->Health());
  return world->Health();
}

// All-reduces, each checked, until the world fails; at operation `DESYNC` rank
// 1 makes another call, after which NCCL, which compares no calls, may join any
// two: sums count only until then. The world's status.
absl::Status LoopBody(const Job& job, Store& store) {
  MIMO_ASSIGN_OR_RETURN(const auto world,
                        ConnectNccl(job, store, {.timeout = kTimeout}));
  int64_t desync = -1;
  if (const char* value = std::getenv("DESYNC"))
    if (!absl::SimpleAtoi(value, &desync))
      return absl::InvalidArgumentError("DESYNC");
  const Stream stream = NewStream(Device::kCuda);
  std::mt19937 random(1);
  constexpr int64_t kMost = 1 << 20;
  DeviceBuffer buffer(stream);
  for (int64_t step = 0;; ++step) {
    const int64_t count = 1 + random() % kMost;
    int32_t* const x = buffer.Set(Pattern(kMost, step * (world->rank() + 1)));
    if (world->rank() == 1 && step == desync)
      world->Broadcast(x, count, DType::kInt32, 1, stream);
    else
      world->AllReduce(x, x, count, DType::kInt32, ReduceOp::kSum, stream);
    const std::vector<int32_t> found = buffer.Get<int32_t>();
    if (!world->Health().ok()) {
      std::cout << "back at " << absl::Now() << std::endl;
      break;
    }
    const int n = world->size();
    for (int64_t i = 0; i < count && (desync < 0 || step < desync); ++i) {
      const int32_t want = n * 7 * i + step * n * (n + 1) / 2;
      if (found[i] != want)
        return absl::DataLossError(absl::StrCat("step ", step, " element ", i,
                                                ": found ", found[i],
                                                ", wanted ", want));
    }
    if (step == 3) std::cout << "in the loop" << std::endl;
  }
  return world->Health();
}

// Two groups of all ranks, each's operations behind the other's, which the host
// is some steps ahead of, as of a training step's reductions and its norm.
absl::Status ChainBody(const Job& job, Store& store) {
  MIMO_ASSIGN_OR_RETURN(const auto world,
                        ConnectNccl(job, store, {.timeout = kTimeout}));
  std::vector<int> all(world->size());
  std::iota(all.begin(), all.end(), 0);
  MIMO_ASSIGN_OR_RETURN(const auto data, world->Split("data", {{all}}));
  const Stream first = NewStream(Device::kCuda),
               second = NewStream(Device::kCuda);
  constexpr int64_t kCount = 1 << 20;
  DeviceBuffer of_data(first), of_world(second);
  int32_t* const x = of_data.Set(Pattern(kCount, 1));
  int32_t* const y = of_world.Set(Pattern(kCount, 2));
  for (int step = 0; world->Health().ok() && data->Health().ok(); ++step) {
    data->AllReduce(x, x, kCount, DType::kInt32, ReduceOp::kMax, first);
    WaitFor(second, first);
    world->AllReduce(y, y, kCount, DType::kInt32, ReduceOp::kMax, second);
    WaitFor(first, second);
    if (step % 8 == 7) Synchronize(first);
    if (step == 100) std::cout << "in the loop" << std::endl;
  }
  return world->Health();
}

TEST(Nccl, Conforms) {
  SKIP_BELOW_GPUS(2);
  for (int size = 2; size <= std::max(4, Gpus()); ++size) {
    RankProcesses ranks(size, "conformance");
    const absl::Status status = ranks.Wait(kLong);
    EXPECT_TRUE(status.ok()) << size << " ranks: " << status;
  }
}

TEST(Nccl, CarriesBridges) {
  SKIP_BELOW_GPUS(2);
  RankProcesses ranks(4, "bridges");
  const absl::Status status = ranks.Wait(kLong);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Nccl, CapturedInAGraph) {
  SKIP_BELOW_GPUS(2);
  RankProcesses ranks(Gpus(), "capture");
  const absl::Status status = ranks.Wait(kStart);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Nccl, RunsAheadOfTheGpu) {
  SKIP_BELOW_GPUS(2);
  RankProcesses ranks(Gpus(), "run_ahead");
  const absl::Status status = ranks.Wait(kStart);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Nccl, ARankThatNeverComes) {
  SKIP_BELOW_GPUS(2);
  RankProcesses ranks(2, "late");
  ASSERT_NE(ranks.Wait(0, absl::Now() + kStart), 0);
  EXPECT_TRUE(absl::StrContains(ranks.Output(0), "not all ranks came"))
      << ranks.Output(0);
}

absl::Status LateBody(const Job& job, Store& store) {
  if (job.rank == 1)
    return store.Get("never", kStart).status();  // ended by the test
  return ConnectNccl(job, store, {.timeout = kTimeout}).status();
}

// Every living rank ends within the timeout, and says `why` with `code`.
void ExpectFailure(RankProcesses& ranks, int victim, const std::string& code,
                   const std::string& why) {
  const absl::Time start = absl::Now();
  for (int rank = 0; rank < Gpus(); ++rank) {
    if (rank == victim) continue;
    // The timeout, and time to leave NCCL and CUDA.
    EXPECT_EQ(ranks.Wait(rank, start + kTimeout + absl::Seconds(4)), 1)
        << ranks.Output(rank);
    EXPECT_TRUE(absl::StrContains(ranks.Output(rank), "status: " + code))
        << ranks.Output(rank);
    EXPECT_TRUE(absl::StrContains(ranks.Output(rank), why))
        << ranks.Output(rank);
    std::cout << "rank " << rank << " after " << absl::Now() - start << ": "
              << ranks.Output(rank);
  }
}

// Ranks 0 and 1 are sent `signal` in turn, in the loop of `body`; `why` names
// the one as $0.
void ExpectFailureBy(int signal, const std::string& body, int turns,
                     const std::string& code, const std::string& why) {
  for (int turn = 0; turn < turns; ++turn) {
    const int victim = turn % 2;
    RankProcesses ranks(Gpus(), body);
    ASSERT_TRUE(ranks.AwaitOutput("in the loop", kStart))
        << ranks.Output(0) << ranks.Output(1);
    absl::SleepFor(absl::Milliseconds(std::random_device()() % 50));
    kill(ranks.pid(victim), signal);
    ExpectFailure(ranks, victim, code, absl::Substitute(why, victim));
  }
}

TEST(NcclFaults, AKilledRank) {
  SKIP_BELOW_GPUS(2);
  ExpectFailureBy(SIGKILL, "loop", 2, "UNAVAILABLE", "rank $0's process ended");
}

// An abort that waits for its group's work, behind another group's on the GPU,
// keeps nobody waiting.
TEST(NcclFaults, AKilledRankWithTwoGroupsUnderWay) {
  SKIP_BELOW_GPUS(2);
  ExpectFailureBy(SIGKILL, "chain", 6, "UNAVAILABLE",
                  "rank $0's process ended");
}

TEST(NcclFaults, AStoppedRank) {
  SKIP_BELOW_GPUS(2);
  ExpectFailureBy(SIGSTOP, "loop", 2, "DEADLINE_EXCEEDED", "missing: rank $0");
}

TEST(NcclFaults, ARankThatMakesAnotherCall) {
  SKIP_BELOW_GPUS(2);
  RankProcesses ranks(
      Gpus(), "loop",
      {absl::StrCat("DESYNC=", 10 + std::random_device()() % 9)});
  ASSERT_TRUE(ranks.AwaitOutput("in the loop", kStart))
      << ranks.Output(0) << ranks.Output(1);
  ExpectFailure(ranks, -1, "FAILED_PRECONDITION", "broadcast(");
}

}  // namespace
}  // namespace mimo

int main(int argc, char** argv) {
  absl::InitializeLog();
  absl::SetStderrThreshold(absl::LogSeverityAtLeast::kInfo);
  mimo::RunRankIfAsked({{"conformance", mimo::ConformanceBody},
                        {"bridges", mimo::BridgesBody},
                        {"capture", mimo::CaptureBody},
                        {"run_ahead", mimo::RunAheadBody},
                        {"late", mimo::LateBody},
                        {"chain", mimo::ChainBody},
                        {"loop", mimo::LoopBody}});
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
