#include "comm/testing/rank_processes.h"

#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

constexpr absl::Duration kLong = absl::Seconds(60);

absl::Status MeetBody(const Job& job, Store& store) {
  MIMO_RETURN_IF_ERROR(store.Set(absl::StrCat("rank ", job.rank), "here"));
  for (int rank = 0; rank < job.world_size; ++rank)
    MIMO_RETURN_IF_ERROR(
        store.Get(absl::StrCat("rank ", rank), kLong).status());
  std::cout << "rank " << job.rank << " of " << job.world_size << " met all, "
            << std::getenv("WORD") << std::endl;
  return absl::OkStatus();
}

absl::Status FailBody(const Job& job, Store&) {
  if (job.rank == 1) return absl::NotFoundError("no such thing");
  return absl::OkStatus();
}

// Rank 0 waits for rank 1's end, as the store tells of it.
absl::Status VictimBody(const Job& job, Store& store) {
  std::cout << "ready" << std::endl;
  if (job.rank == 1) pause();
  MIMO_ASSIGN_OR_RETURN(const std::string failure, store.Get("failure", kLong));
  std::cout << failure << std::endl;
  return absl::OkStatus();
}

TEST(RankProcesses, Meet) {
  RankProcesses ranks(3, "meet", {"WORD=again"});
  EXPECT_TRUE(ranks.Wait(kLong).ok()) << ranks.Output(0);
  EXPECT_TRUE(absl::StrContains(ranks.Output(2), "rank 2 of 3 met all, again"));
}

TEST(RankProcesses, TellWhoFailedAndWhy) {
  RankProcesses ranks(2, "fail");
  const absl::Status status = ranks.Wait(kLong);
  EXPECT_TRUE(absl::StrContains(
      status.message(), "rank 1 ended with 1:\nstatus: NOT_FOUND: no such"))
      << status;
}

TEST(RankProcesses, AreKilledOneByOne) {
  RankProcesses ranks(2, "victim");
  ASSERT_TRUE(ranks.AwaitOutput("ready", kLong));
  EXPECT_EQ(ranks.Wait(1, absl::Now()), -1);
  EXPECT_EQ(ranks.Wait(0, absl::Now() + kLong), 0);
  EXPECT_TRUE(absl::StrContains(ranks.Output(0), "rank 1's process ended"));
}

TEST(RankProcesses, TellTheSignal) {
  RankProcesses ranks(2, "victim");
  ASSERT_TRUE(ranks.AwaitOutput("ready", kLong));
  kill(ranks.pid(1), SIGKILL);
  EXPECT_EQ(ranks.Wait(1, absl::Now() + kLong), 128 + SIGKILL);
}

}  // namespace
}  // namespace mimo

int main(int argc, char** argv) {
  mimo::RunRankIfAsked({{"meet", mimo::MeetBody},
                        {"fail", mimo::FailBody},
                        {"victim", mimo::VictimBody}});
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
