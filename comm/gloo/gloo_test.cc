// gloo under the suite that all communicators pass, each rank a process.
#include <signal.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "comm/gloo/gloo_communicator.h"
#include "comm/testing/check_bridges.h"
#include "comm/testing/conformance.h"
#include "comm/testing/rank_processes.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

constexpr absl::Duration kLong = absl::Minutes(5);
constexpr DType kF32 = DType::kFloat32;

absl::Status ConformanceBody(const Job& job, Store& store) {
  MIMO_ASSIGN_OR_RETURN(auto world, ConnectGloo(job, store));
  ConformanceOptions options;
  if (job.world_size < 8) options.large_count = 0;  // eight have groups of all
  MIMO_RETURN_IF_ERROR(CheckConformance(*world, Stream{}, options));
  return CheckRandomOperations(*world, Stream{}, kFewer ? 50 : 500, 3);
}

absl::Status BridgesBody(const Job& job, Store& store) {
  MIMO_ASSIGN_OR_RETURN(auto world, ConnectGloo(job, store));
  return CheckBridges(*world, Stream{});
}

// The same bits as a sum in rank order, rounded once.
absl::Status RankOrderBody(const Job& job, Store& store) {
  MIMO_ASSIGN_OR_RETURN(auto world, ConnectGloo(job, store));
  const float big = 0x1p24f;  // big + 1 == big
  float x = job.rank == 0 ? big : job.rank == 1 ? 1 : -big;
  world->AllReduce(&x, &x, 1, kF32, ReduceOp::kSum, Stream{});
  MIMO_RETURN_IF_ERROR(world->Health());
  if (x != 0) return absl::DataLossError(absl::StrCat("found ", x));
  return absl::OkStatus();
}

// A call that waits for a rank which does not come returns by Abort.
absl::Status AbortBody(const Job& job, Store& store) {
  MIMO_ASSIGN_OR_RETURN(auto world, ConnectGloo(job, store));
  if (job.rank == 0) {
    std::thread other([&] { world->Abort(absl::AbortedError("enough")); });
    float x = 0;
    const absl::Time start = absl::Now();
    world->Recv(&x, 1, kF32, 1, Stream{});
    other.join();
    if (absl::Now() - start > absl::Seconds(20))
      return absl::DeadlineExceededError("it waited");
    if (world->Health().code() != absl::StatusCode::kAborted)
      return world->Health();
  }
  return store.Get("failure", kLong).status();
}

// What the others do when one rank leaves before its last call.
absl::Status LeaveBody(const Job& job, Store& store) {
  MIMO_ASSIGN_OR_RETURN(auto world, ConnectGloo(job, store));
  world->Barrier(Stream{});  // before it nobody knows that all are connected
  if (job.rank == 2) return absl::OkStatus();
  world->Barrier(Stream{});
  if (!absl::IsUnavailable(world->Health())) return world->Health();
  return absl::OkStatus();
}

// One rank is killed where the others split.
absl::Status SplitBody(const Job& job, Store& store) {
  MIMO_ASSIGN_OR_RETURN(auto world, ConnectGloo(job, store));
  world->Barrier(Stream{});
  MIMO_RETURN_IF_ERROR(store.Set(absl::StrCat("past/", job.rank), ""));
  if (job.rank == 2) {
    for (const char* other : {"past/0", "past/1"})
      MIMO_RETURN_IF_ERROR(store.Get(other, kLong).status());
    raise(SIGKILL);
  }
  const absl::Status status = world->Split("part", {{{0, 1, 2}}}).status();
  if (status != world->Health()) return absl::InternalError("another status");
  return status;
}

// This rank is killed once the others can look for it and before they find it.
class KilledWhenListed final : public Store {
 public:
  explicit KilledWhenListed(Store& store) : store_(store) {}

  absl::StatusOr<std::string> Get(const std::string& key,
                                  absl::Duration timeout) override {
    return store_.Get(key, timeout);
  }
  void Start(Op op, const std::string& key, const std::string& value,
             Done done) override {
    if (op == Op::kSet) done = [](const auto&) { raise(SIGKILL); };
    store_.Start(op, key, value, std::move(done));
  }
  void Close() override { store_.Close(); }

 private:
  Store& store_;
};

absl::Status KilledInConnectBody(const Job& job, Store& store) {
  KilledWhenListed last(store);
  MIMO_ASSIGN_OR_RETURN(auto world,
                        ConnectGloo(job, job.rank == 3 ? last : store));
  world->Barrier(Stream{});  // all may have reached it before its end
  return world->Health();
}

// One rank never comes.
absl::Status AbsentBody(const Job& job, Store& store) {
  if (job.rank == 1) return absl::OkStatus();
  const auto world =
      ConnectGloo(job, store, {.timeout = absl::Milliseconds(500)});
  return world.status();
}

void ExpectOk(int size, const std::string& body) {
  RankProcesses ranks(size, body);
  const absl::Status status = ranks.Wait(kLong);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Gloo, Conformance) {
  for (const int size : {3, 8}) ExpectOk(size, "conformance");
}

TEST(Gloo, CarriesBridges) { ExpectOk(3, "bridges"); }

TEST(Gloo, SumsInRankOrder) { ExpectOk(3, "rank_order"); }

TEST(Gloo, AbortWakesAWaitingCall) { ExpectOk(2, "abort"); }

TEST(Gloo, ARankThatLeavesIsSeenAtOnce) {
  const absl::Time start = absl::Now();
  ExpectOk(3, "leave");
  EXPECT_LT(absl::Now() - start, absl::Seconds(30));  // the timeout is 60
}

TEST(Gloo, TheWatchdogTellsWhyASplitFails) {
  RankProcesses ranks(3, "split");
  for (const int rank : {0, 1}) {
    EXPECT_EQ(ranks.Wait(rank, absl::Now() + kLong), 1);
    EXPECT_TRUE(absl::StrContains(
        ranks.Output(rank),
        absl::StrCat("status: UNAVAILABLE: rank ", rank,
                     ": split(1 groups), sequence 1 in group world of ranks "
                     "[0, 1, 2] does not end; first report: rank 2's process "
                     "ended")))
        << ranks.Output(rank);
  }
}

// Which of two ranks looks for the other is up to their ports.
TEST(Gloo, ARankKilledAsTheyConnectIsSeenAtOnce) {
  for (int i = 0; i < 4; ++i) {
    const absl::Time start = absl::Now();
    RankProcesses ranks(4, "killed_in_connect");
    for (const int rank : {0, 1, 2}) {
      EXPECT_EQ(ranks.Wait(rank, absl::Now() + kLong), 1);
      EXPECT_TRUE(
          absl::StrContains(ranks.Output(rank), "rank 3's process ended"))
          << ranks.Output(rank);
    }
    EXPECT_LT(absl::Now() - start, absl::Seconds(30));  // the timeout is 60
  }
}

TEST(Gloo, NamesARankThatDoesNotCome) {
  RankProcesses ranks(2, "absent");
  EXPECT_EQ(ranks.Wait(0, absl::Now() + kLong), 1);
  EXPECT_TRUE(absl::StrContains(
      ranks.Output(0), "DEADLINE_EXCEEDED: gloo: rank 1 has not come within "))
      << ranks.Output(0);
}

}  // namespace
}  // namespace mimo

int main(int argc, char** argv) {
  mimo::RunRankIfAsked({{"conformance", mimo::ConformanceBody},
                        {"bridges", mimo::BridgesBody},
                        {"rank_order", mimo::RankOrderBody},
                        {"abort", mimo::AbortBody},
                        {"leave", mimo::LeaveBody},
                        {"split", mimo::SplitBody},
                        {"killed_in_connect", mimo::KilledInConnectBody},
                        {"absent", mimo::AbsentBody}});
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
