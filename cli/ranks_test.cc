// Processes of a job, each with its own part of RunOnRanks.
#include "cli/ranks.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "absl/time/clock.h"
#include "comm/rendezvous/store.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

// Rank 0 cannot hear of it, being stopped, nor tell it.
TEST(Ranks, AMistakeBesideAStoppedRankEndsItsOwn) {
  const int port = (*StoreServer::Start("127.0.0.1", 0, "key"))->port();
  const absl::Status mistake = absl::InvalidArgumentError("no cat.png");
  pid_t ranks[2];
  for (int rank : {0, 1}) {
    ranks[rank] = fork();
    if (ranks[rank] != 0) continue;
    const absl::Status status = RunOnRanks(
        Job{rank, 2, rank, 2, "127.0.0.1", port, "key"}, 1, RankOptions(),
        [] { return absl::OkStatus(); }, [] { return absl::OkStatus(); },
        [&](Communicator*, Kept&) {
          if (rank == 0) raise(SIGSTOP);
          absl::SleepFor(absl::Seconds(1));
          return mistake;
        });
    _exit(status == mistake ? 2 : 3);
  }
  int status = 0;
  ASSERT_EQ(waitpid(ranks[0], &status, WUNTRACED), ranks[0]);
  ASSERT_TRUE(WIFSTOPPED(status));
  const absl::Time start = absl::Now();
  ASSERT_EQ(waitpid(ranks[1], &status, 0), ranks[1]);
  EXPECT_EQ(status, W_EXITCODE(2, 0));
  EXPECT_LT(absl::Now() - start, absl::Seconds(30)) << "not the timeout";
  kill(ranks[0], SIGKILL);
  EXPECT_EQ(waitpid(ranks[0], &status, 0), ranks[0]);
}

}  // namespace
}  // namespace mimo
